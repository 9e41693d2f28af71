"""``--swcheck-model``: the main job, and every way to name a model that is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import checkpoints
from tests.checkpoints import config, text, without
from tests.plugin import CANDIDATE, MODEL, SHIPPED, refused

SEEN = ["perplexity", "super weights", "super activations", "collapse when zeroed"]


@pytest.mark.slow
@pytest.mark.whole_text
def test_the_main_job(inner, pytester):
    """In an empty folder ``pytest --model=tiny`` runs the suite, ends green with a table, and writes nothing."""
    result = inner("--model=tiny")
    assert result.ret == 0
    result.assert_outcomes(passed=MODEL, skipped=CANDIDATE)
    result.stdout.fnmatch_lines(
        [
            "swcheck: *, model tiny (command line), seed 0",
            "swcheck: loading tiny (7 MB); standard tier: 32 windows of 256 tokens, about *",
            f"swcheck.suite.test_model {'.' * MODEL}*",
            "=* swcheck =*",
            "tiny",
            "check * measured * limit * margin * outcome*",
            *[f"{check} * passed" for check in SEEN],
            "skipped: super weights, super activations, perplexity, *",
            "not covered: *",
        ],
        consecutive=False,
    )
    shown = result.outlines[result.outlines.index("tiny") :]
    assert max(map(len, shown)) <= 100
    assert [path.name for path in pytester.path.iterdir()] == []


@pytest.mark.slow
def test_nothing_is_written(outer, tmp_path):
    """In a process of its own, where hypothesis has nothing in memory yet, a run leaves the folder as empty as it was."""
    done = outer("--model=tiny", "-k", "test_model and super_activations", "-W", "error")
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model="], ["--swcheck-model", "found: an empty value"]),
        (["--model= "], ["--swcheck-model", "found: an empty value"]),
        (["--model=llma-7b"], ["model 'llma-7b'", "no model of this name in the index; the closest: llama-7b"]),
        (["--model=./nowhere"], ["model './nowhere'", "found: no such path"]),
        (["--model=/no/where/at/all"], ["model '/no/where/at/all'", "found: no such path"]),
        (["--model=nobody:int8"], ["engine 'nobody'", "found: installed: huggingface"]),
        (["--model=hugingface:tiny"], ["engine 'hugingface'", "the closest: huggingface"]),
        (["--model=tiny", "--model=tiny"], ["--swcheck-model", "found: tiny is given twice"]),
        (["--model=a b/c d"], ["model 'a b/c d'", "found: no such path"]),
        (["--model=" + "x" * 5000], ["found: no such path"]),
    ],
    ids=["empty", "blank", "alias", "relative", "absolute", "engine", "near-engine", "twice", "no-hub-id", "long"],
)
def test_a_name_that_leads_nowhere(inner, words, said):
    """A name that leads nowhere is a usage error that says what was asked, what was found and what to try."""
    refused(inner(*words), *said)


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        ([without("config.json")], "config.json in "),
        ([text("config.json", "{")], "JSON in "),
        ([text("config.json", "[]")], "is [], not an object"),
        ([config(model_type=None)], "not an object with model_type"),
        ([without("tokenizer.json")], "a tokenizer in "),
        ([without("model.safetensors")], "no *.safetensors file"),
        ([without("model.safetensors"), checkpoints.pickled], "its weights are a pickle (pytorch_model.bin)"),
        ([checkpoints.truncated], "the file is cut off"),
        ([text("model.safetensors", "")], "0 bytes, cut off inside the header"),
        ([text("model.safetensors", "\2\0\0\0\0\0\0\0[]")], "is [], not an object"),
        (
            [lambda folder: (folder / "model.safetensors").rename(folder / "w.safetensors")],
            "w.safetensors, but neither",
        ),
        (
            [checkpoints.sharded, without("model-00002-of-00002.safetensors")],
            "of which model-00002-of-00002.safetensors is",
        ),
        ([checkpoints.sharded, text("model.safetensors.index.json", "{")], "JSON in "),
        ([checkpoints.sharded, text("model.safetensors.index.json", "{}")], "a weight_map in "),
        ([checkpoints.bert], "BertForSequenceClassification, without a causal head"),
        ([checkpoints.t5], "T5ForConditionalGeneration, an encoder with a decoder"),
        ([checkpoints.bringing_code], "which loading would run"),
        ([text("adapter_config.json", "{}")], "an adapter (adapter_config.json)"),
    ],
    ids=lambda value: None if isinstance(value, list) else value.strip().split("(")[0][:30],
)
def test_a_directory_that_is_no_model(inner, tmp_path, edits, said):
    """What is wrong with a directory is said before anything is loaded."""
    folder = checkpoints.copy_of_tiny(tmp_path / "broken", *edits)
    result = inner(f"--model={folder}")
    refused(result, said, str(folder))
    assert not (folder / "exploded").exists()


def test_a_file_is_no_model(inner, tmp_path):
    """A path to a file is refused: the folder is wanted."""
    file = tmp_path / "model.safetensors"
    file.touch()
    refused(inner(f"--model={file}"), "found: a file")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (config(intermediate_size=500), "down_proj.weight: 256 x 512 where the config says 256 x 500"),
        (
            checkpoints.tensors(lambda whole: {k: v for k, v in whole.items() if k != checkpoints.DOWN}),
            "1 of its tensors",
        ),
        (text("tokenizer.json", "{"), "tokenizer.json found: Expecting property name"),
        (config(num_attention_heads=7), "the config in "),
        (config(model_type="homemade"), "the config in "),
        (config(architectures=None, model_type="bert"), "of its tensors are missing"),
    ],
    ids=["shape", "missing", "tokenizer", "config", "unknown-type", "other-type"],
)
def test_a_directory_that_cannot_be_loaded(inner, tmp_path, edit, said):
    """What only loading shows is a failure in words, exit code 1, without a traceback."""
    folder = checkpoints.copy_of_tiny(tmp_path / "broken", edit)
    result = inner(f"--model={folder}", "-k", "test_model and perplexity", "--swcheck-json=out.json")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(errors=1, deselected=SHIPPED - 1)
    shown = result.stdout.str()
    assert said in " ".join(shown.split())
    assert str(folder) in shown
    for depths in ("Traceback", "The above exception", "During handling", ".py:"):
        assert depths not in shown
    result.stdout.fnmatch_lines(["ERROR test_perplexity[[]broken] - *"])
    assert "Failed: " not in shown
    assert "Unusable" not in shown
    [verdict] = json.loads(Path("out.json").read_text())["verdicts"]
    assert (verdict["check"], verdict["model"], verdict["outcome"]) == ("perplexity", "broken", "failed")
    assert verdict["cause"] in " ".join(shown.split())


@pytest.mark.slow
def test_a_model_without_super_weights_is_red_in_words(inner, micro):
    """Where nothing is located the location check is red and says so; the rest is not applicable, perplexity judged."""
    result = inner(f"--model={micro}", "-rfs")
    assert result.ret == 1
    result.assert_outcomes(passed=1, failed=1, skipped=SHIPPED - 2)
    result.stdout.fnmatch_lines(
        [
            "nothing to guard: super weights of micro",
            "  no super weight: the largest value *",
            "  try: --swcheck-allow-none, *",
            "super weights * FAILED",
            "super activations * not applicable",
            "FAILED test_super_weights[[]micro] - nothing to guard*",
        ]
    )


@pytest.mark.slow
def test_several_models_run_one_after_the_other(inner, pytester, micro):
    """Ids are names, -k picks one, and all checks of a model run before the next one is loaded."""
    result = inner("--model=tiny", f"--model={micro}", "--co", "-q", "-m", "swcheck")
    names = [line.rpartition("[")[2].rstrip("]") for line in result.outlines if "[" in line]
    assert names == ["tiny"] * SHIPPED + ["micro"] * SHIPPED
    result = inner("--model=tiny", f"--model={micro}", "-k", "micro and test_model and perplexity")
    result.assert_outcomes(passed=1, deselected=2 * SHIPPED - 1)
    result.stdout.fnmatch_lines(["swcheck: loading */micro*"])
    result.stdout.no_fnmatch_line("swcheck: loading tiny*")


@pytest.mark.slow
def test_two_directories_of_one_name_keep_their_paths(inner, micro, tmp_path):
    """Ids stay unique where two directories are called the same, and two ways to write one directory are one model."""
    other = tmp_path / "micro"
    other.symlink_to(checkpoints.micro(tmp_path / "elsewhere" / "micro"))
    result = inner(f"--model={micro}", f"--model={other}", "--co", "-q", "-k", "test_model and perplexity")
    result.stdout.fnmatch_lines([f"*[[]{micro}]", f"*[[]{other}]"])
    refused(inner(f"--model={micro}", f"--model={micro}/../micro"), "is given twice")


@pytest.mark.slow
def test_a_home_directory_is_expanded(inner, micro, monkeypatch):
    """``~`` in a value that no shell expanded means the home directory."""
    monkeypatch.setenv("HOME", str(micro.parent))
    inner("--model=~/micro", "-k", "test_model and perplexity").assert_outcomes(passed=1, deselected=SHIPPED - 1)


def test_in_the_environment_it_runs_nothing_unasked(inner, pytester, monkeypatch):
    """A model from the environment is there for tests that ask for it; the suite joins for the command line only."""
    pytester.makepyfile("def test_mine(swcheck_spec): assert swcheck_spec == 'tiny'\ndef test_other(): pass")
    monkeypatch.setenv("SWCHECK_MODEL", "tiny")
    inner().assert_outcomes(passed=2)
