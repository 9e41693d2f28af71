"""``--swcheck-candidate``: the gate is green for a healthy copy, red with its cause for a damaged one."""

from __future__ import annotations

import json
import shlex
from fnmatch import fnmatch
from pathlib import Path

import pytest

from swcheck.loading import engines
from tests import checkpoints, damage
from tests.loading.test_engines import installing
from tests.plugin import BOTH, MODEL, refused


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--candidate=tiny"], "found: no model"),
        (["--candidate="], "--swcheck-candidate\n  found: an empty value"),
        (["--model=tiny", "--candidate=./nowhere"], "model './nowhere'"),
        (["--model=tiny", "--candidate=nobody:int4"], "engine 'nobody'"),
        (["--model=tiny", "--candidate=rtn:bits=many"], "'bits=many' in rtn:bits=many"),
    ],
    ids=["no-model", "empty", "path", "engine", "scheme"],
)
def test_a_candidate_that_cannot_be(inner, words, said):
    """A candidate without a reference, or one that leads nowhere, is a usage error in words."""
    refused(inner(*words), said)


@pytest.mark.parametrize(("scheme", "said"), [("int5", "known: int4"), ("int4", "pip install 'no-such-module>=1'")])
def test_what_an_engine_cannot_make_is_said_before_anything_is_loaded(inner, monkeypatch, scheme, said):
    """A misspelt scheme and a missing package are usage errors, and the reference is not loaded for them."""
    installing(monkeypatch, "tests.loading.test_engines:ASKED")
    monkeypatch.setattr(engines, "load", lambda *_args, **_more: pytest.fail("a model was loaded"))
    result = inner("--model=tiny", f"--candidate=homemade:{scheme}")
    refused(result, "homemade", said)
    assert "collected" not in result.stdout.str()


@pytest.mark.parametrize("words", [("--model={}",), ("--model=tiny", "--candidate={}")], ids=["model", "candidate"])
def test_a_checkpoint_of_hqq_is_refused_unopened(inner, tmp_path, words):
    """What hqq saves is a pickle: that is the reason that is given, and not that the tokenizer is missing."""
    folder = checkpoints.copy_of_tiny(tmp_path / "hqq", checkpoints.as_hqq)
    said = ("its weights are a pickle (qmodel.pt), which can run any code on loading", "--candidate=hqq:4bit")
    refused(inner(*(word.format(folder) for word in words)), str(folder), *said)
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "qmodel.pt"]


def test_several_models_cannot_share_a_candidate(inner, micro):
    """A candidate has one reference: two models with it are refused."""
    refused(inner("--model=tiny", f"--model={micro}", "--candidate=tiny"), "found: 2 models: tiny, ")


def test_a_candidate_in_the_ini_file_waits_for_a_model(inner, pytester):
    """A candidate that the ini-file names does not break runs without a model."""
    pytester.makeini("[pytest]\nswcheck_candidate = tiny")
    pytester.makepyfile("def test_other(swcheck_session): assert swcheck_session.settings.candidates == ()")
    inner().assert_outcomes(passed=1)


@pytest.mark.slow
def test_a_healthy_copy_is_green(inner, tmp_path):
    """Tiny with its 1,000 next-largest weights rounded to 8 bits passes every check, and the table says against what."""
    copy = checkpoints.damaged(tmp_path / "rounded", damage.round_next_largest)
    result = inner("--model=tiny", f"--candidate={copy}", "-k", "test_candidate")
    assert result.ret == 0
    assert result.parseoutcomes()["passed"] >= 4
    result.stdout.fnmatch_lines(
        ["swcheck: loading tiny (7 MB) and *rounded (7 MB); *", "rounded against tiny", "super weights * passed"]
    )


@pytest.mark.slow
def test_a_zeroed_one_is_red_and_its_command_repeats(inner, zeroed):
    """The failure's first line is its cause, the summary has it too, and the command under it fails in the same way."""
    result = inner("--model=tiny", f"--candidate={zeroed}", "-k", "test_candidate and super_weights")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "_* test_super_weights[[]tiny-zeroed] _*",
            "super weight at layer 1 *97, 301* zeroed*: super weights of zeroed against tiny",
            "-* repeat -*",
            "pytest --model=tiny --candidate=*",
            "=* swcheck =*",
            "super weights * FAILED",
            "FAILED test_super_weights[[]tiny-zeroed] - super weight at layer 1 [[]97, 301[]]*",
        ]
    )
    for depths in ("Traceback", ".py:", "RobustnessError"):
        result.stdout.no_fnmatch_line(f"*{depths}*")
    [command] = [line for line in result.outlines if line.startswith("pytest --model=")]
    again = inner(*shlex.split(command)[1:])
    again.assert_outcomes(failed=1)
    again.stdout.fnmatch_lines(["super weight at layer 1 *"])


CHATTY = """
import logging, pytest

@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item):
    logging.getLogger("compiler").warning("a thousand graphs")
"""


@pytest.mark.slow
def test_logs_of_others_stand_under_no_failure(inner, pytester, zeroed):
    """A compiler's thousand lines would bury the cause; who asks for logs gets them."""
    pytester.syspathinsert(pytester.makepyfile(chatty=CHATTY).parent)
    words = ("-p", "chatty", "--model=tiny", f"--candidate={zeroed}", "-k", "test_candidate and super_weights")
    inner(*words).stdout.no_fnmatch_line("*a thousand graphs*")
    inner(*words, "--log-level=WARNING").stdout.fnmatch_lines(["*Captured log call*", "*a thousand graphs*"])


@pytest.mark.slow
def test_what_one_check_has_said_the_next_points_to(inner, zeroed):
    """Snippets, the proof of the fix and what was ruled out stand once for a candidate, a fix that is held to another number
    again; the file has them everywhere.
    """
    result = inner("--model=tiny", f"--candidate={zeroed}", "-k", "test_candidate", "--swcheck-json=out.json", "-v")
    said = result.stdout.str()
    assert said.count("llama-quantize") == 1
    assert said.count("a sick reference") == 1
    assert said.count("  as under test_super_weights: tried on, fix, try") == 3
    assert said.count("  as under test_super_weights: tried on, try") == 1
    assert said.count("  as under test_perplexity: ruled out") == 2
    assert said.count("restored through a hook") == 5
    verdicts = json.loads(Path("out.json").read_text(encoding="utf-8"))["verdicts"]
    assert sum("llama-quantize" in verdict["try"] for verdict in verdicts) == 5


@pytest.mark.slow
def test_a_red_gate_fits_a_screen(inner, brief, monkeypatch):
    """Three red checks of one cause take 32 lines of 80 columns beside those of pytest; no line of the table is folded."""
    monkeypatch.setenv("COLUMNS", "80")
    result = inner("--model=tiny", "--candidate=rtn:bits=2", brief)
    start = next(number for number, line in enumerate(result.outlines) if "= FAILURES =" in line)
    end = next(number for number, line in enumerate(result.outlines) if "= short test summary info =" in line)
    lines = [line for line in result.outlines[start:end] if not line.startswith(("=", "_", "-" * 9 + " ", "pytest "))]
    ours = [line for line in lines if " repeat -" not in line]
    assert result.parseoutcomes()["failed"] >= 2
    assert len(ours) <= 32
    assert max(map(len, ours)) <= 80
    assert (
        sum(line.startswith("the same cause as under test_") for line in ours) == result.parseoutcomes()["failed"] - 1
    )
    assert "\n".join(ours).count("what q2_K keeps") == 1


@pytest.mark.slow
def test_a_candidate_that_cannot_be_loaded_is_explained_once(inner, tmp_path):
    """What is wrong with its files stands under the first check and in the table; the others point to it."""
    torn = checkpoints.copy_of_tiny(tmp_path / "torn", checkpoints.config(hidden_size=128))
    result = inner("--model=tiny", f"--candidate={torn}", "-k", "test_candidate", "--swcheck-json=out.json")
    result.assert_outcomes(errors=5)
    assert result.stdout.str().count("  try: check that weights and config.json belong together") == 1
    assert result.stdout.str().count("  as under test_super_weights") == 4
    table = " ".join(result.stdout.str().rpartition("== swcheck ==")[2].split())  # where it folds depends on the path
    assert fnmatch(table, f"*super weights, super activations, *: the weights of *{torn}: * of another shape*")
    [said] = {(v["summary"], v["try"]) for v in json.loads(Path("out.json").read_text(encoding="utf-8"))["verdicts"]}
    assert "of another shape" in said[0]
    assert said[1].startswith("check that weights")


@pytest.mark.slow
def test_the_whole_cause_is_in_the_summary_under_ci(inner, zeroed, monkeypatch):
    """Where CI is set the short summary has the first line uncut, and only that."""
    monkeypatch.setenv("CI", "true")
    result = inner("--model=tiny", f"--candidate={zeroed}", "-k", "test_candidate and super_weights")
    [line] = [line for line in result.outlines if line.startswith("FAILED ")]
    assert line.endswith(": super weights of zeroed against tiny")


@pytest.mark.slow
def test_one_that_ends_before_the_layer_of_the_super_weight_is_red(inner, tmp_path, brief):
    """It is smaller, and no usage error: what it has is said in every form, and its perplexity is measured."""
    behind = [f".layers.{number}." for number in range(1, 5)]
    kept = checkpoints.tensors(lambda found: {n: one for n, one in found.items() if not any(b in n for b in behind)})
    cut = checkpoints.copy_of_tiny(tmp_path / "cut", kept, checkpoints.config(num_hidden_layers=1))
    result = inner(
        "--model=tiny", f"--candidate={cut}", brief, "-k", "test_candidate and not predictions",
        "--swcheck-json=out.json", "--swcheck-html=out.html",
    )  # fmt: skip
    result.assert_outcomes(failed=4, deselected=7)
    words = "no place for the super weight at layer 1 [97, 301]: the candidate has layer 0 alone"
    assert result.outlines[next(n for n, line in enumerate(result.outlines) if line.startswith("_")) + 1].startswith(
        words
    )
    verdicts = {verdict["check"]: verdict for verdict in json.loads(Path("out.json").read_text())["verdicts"]}
    assert {verdict["outcome"] for verdict in verdicts.values()} == {"failed"}
    assert all(words in verdict["cause"] for verdict in verdicts.values())
    assert verdicts["perplexity"]["measured"] > 2
    assert words in Path("out.html").read_text()


@pytest.mark.slow
def test_nan_is_a_failing_test(inner, poisoned):
    """A candidate with NaN loads and fails every check, exit code 1, with ``not finite`` first, also under -W error."""
    result = inner(
        "--model=tiny", f"--candidate={poisoned}", "-k", "test_candidate", "--swcheck-json=out.json", "-W", "error"
    )
    assert result.ret == 1
    assert set(result.parseoutcomes()) == {"failed", "deselected"}
    lines = result.outlines
    heads = [lines[number + 1] for number, line in enumerate(lines) if line.startswith("_") and line.endswith("_")]
    assert len(heads) == result.parseoutcomes()["failed"]
    assert heads[0].startswith("not finite")
    assert all(head.startswith(("not finite", "the same cause as under ")) for head in heads)
    verdicts = json.loads(Path("out.json").read_text())["verdicts"]
    assert {verdict["outcome"] for verdict in verdicts} == {"failed"}
    assert {verdict["candidate"] for verdict in verdicts} == {"poisoned"}


@pytest.mark.slow
def test_one_that_cannot_be_loaded_fails_its_own_checks_only(inner, tmp_path):
    """A candidate whose tensors are missing is red in words, while the reference is still judged."""
    folder = checkpoints.copy_of_tiny(
        tmp_path / "broken",
        checkpoints.tensors(lambda whole: {k: v for k, v in whole.items() if k != checkpoints.DOWN}),
    )
    result = inner("--model=tiny", f"--candidate={folder}", "-k", "perplexity")
    assert result.ret == 1
    result.assert_outcomes(passed=1, errors=1, deselected=BOTH - 2)
    result.stdout.fnmatch_lines(["all weights of *broken", "broken against tiny", "perplexity * ERROR"])


@pytest.mark.slow
def test_a_copy_of_the_same_name_is_told_apart(inner, tmp_path, micro):
    """Where candidate and reference are directories of one name the table has their paths."""
    copy = checkpoints.micro(tmp_path / "micro")
    result = inner(f"--model={micro}", f"--candidate={copy}", "-k", "perplexity")
    result.assert_outcomes(passed=2, deselected=BOTH - 2)
    result.stdout.fnmatch_lines([f"{copy} against"[:60] + "*"])


@pytest.mark.slow
def test_a_wrong_base_model_is_said(inner, micro):
    """A candidate of another shape is refused with the cause in the first line."""
    result = inner("--model=tiny", f"--candidate={micro}", "-k", "test_candidate and super_weights")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["wrong base model*"])


@pytest.mark.slow
@pytest.mark.whole_text
def test_several_candidates_make_one_table(inner, zeroed, tmp_path):
    """Each candidate has tests of its own, one row of one table, and a red one alone its words and its command."""
    good = checkpoints.damaged(tmp_path / "rounded", damage.round_next_largest)
    words = ("--model=tiny", f"--candidate={good}", f"--candidate={zeroed}", "--swcheck-json=out.json")
    result = inner(*words, "-k", "test_candidate and (super_weights or perplexity)", "-v")
    result.assert_outcomes(passed=2, failed=2, deselected=2 * BOTH - MODEL - 4)
    result.stdout.fnmatch_lines(
        [
            "swcheck: loading tiny (7 MB) and *rounded (7 MB); *",
            "swcheck.suite.test_candidate::test_super_weights[[]tiny-rounded] PASSED*",
            "swcheck.suite.test_candidate::test_perplexity[[]tiny-rounded] PASSED*",
            "swcheck: loading *zeroed (7 MB); *",
            "swcheck.suite.test_candidate::test_super_weights[[]tiny-zeroed] FAILED*",
            "pytest --model=tiny --candidate=*zeroed --pyargs *",
            "candidates against tiny",
            "candidate * super * perplexity * verdict",
            "rounded * x1.000 * x1.00* passed",
            "zeroed * x0.000 ! * x74,* ! * FAILED",
            "zeroed",
            "super weights *",
        ]
    )
    result.stdout.no_fnmatch_line("*repeat*rounded*")
    verdicts = json.loads(Path("out.json").read_text())["verdicts"]
    assert [verdict["candidate"] for verdict in verdicts] == ["rounded"] * 2 + ["zeroed"] * 2


def test_a_repeated_candidate_is_refused(inner, micro):
    """One candidate given twice would be judged twice: a usage error."""
    refused(inner("--model=tiny", f"--candidate={micro}", f"--candidate={micro}/."), "is given twice")
