"""Zero-shot accuracy: the offline tasks, and the harness's own numbers where the extra is installed."""

from __future__ import annotations

import copy
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from swcheck import SuperWeight, load, zeroed
from swcheck.base.errors import ExtraError, OptionError
from swcheck.loading.tiny import CHECKPOINT, HELDOUT
from swcheck.run.command_line import main as command_line
from swcheck.study.chapters import scaling
from swcheck.study.zeroshot import cloze, harness, last_word
from swcheck.study.zeroshot.harness import Score, accuracy, average, headlines, scores_of, write_tasks

TEXT = HELDOUT.read_text(encoding="utf-8")

with_harness = pytest.mark.skipif(
    harness.missing_packages() is not None, reason=f"{harness.missing_packages()}: {harness.INSTALL}"
)


# --- without the harness -----------------------------------------------------------------------------------------------


def test_the_tasks_hold_the_items_of_the_text(tmp_path):
    """What is written is YAML that points at JSON lines, and they are the items: the same text, the same answers."""
    write_tasks(tmp_path)

    assert {path.name for path in tmp_path.iterdir()} == {
        f"{n}.{e}" for n in harness.OFFLINE_TASKS for e in ("yaml", "jsonl")
    }
    pieces, words = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in harness.OFFLINE_TASKS
    )
    for row, item in zip(pieces, cloze.items(TEXT), strict=True):
        assert [row["context"] + choice for choice in row["choices"]] == [item.context + c for c in item.choices]
        assert row["context"] == row["context"].rstrip()
        assert row["answer"] == item.answer
    assert [last_word.Item(**row) for row in words] == last_word.items(TEXT)
    for name in harness.OFFLINE_TASKS:
        assert str(tmp_path / f"{name}.jsonl") in (tmp_path / f"{name}.yaml").read_text()


@pytest.mark.slow
def test_where_the_blanks_stand_changes_little(tiny):
    """The cloze with its blanks moved is as hard as the cloze: two accuracies within three standard errors."""
    asked = cloze.items(TEXT, 40)
    moved = [harness.blanks_moved_to_choices(item) for item in asked]

    one, other = (cloze.accuracy(tiny.model, tiny.tokenizer, items) for items in (asked, moved))
    assert one == pytest.approx(other, abs=3 * (2 * one * (1 - one) / 40) ** 0.5)


ANSWER = {
    "results": {
        "piqa": {"alias": "piqa", "acc,none": 0.75, "acc_stderr,none": 0.01, "acc_norm,none": 0.8, "acc_norm_stderr,none": "N/A"},
        "mine": {"alias": " - mine", "acc,none": 0.5, "acc_stderr,none": 0.02, "acc_mutual_info,none": 0.25, "sample_len": 4},
    },
    "n-samples": {"piqa": {"original": 1838, "effective": 100}},
}  # fmt: skip


def test_scores_of_an_answer():
    """Every number of the harness's answer becomes a score; names, errors and text do not."""
    assert scores_of(ANSWER) == (
        Score("piqa", "acc", 0.75, 0.01, 100),
        Score("piqa", "acc_norm", 0.8, None, 100),
        Score("mine", "acc", 0.5, 0.02, 4),
        Score("mine", "acc_mutual_info", 0.25, None, 4),
    )


def test_headlines_and_their_average():
    """Per task one score: mutual information where the task defines it, else plain accuracy; each task counts once."""
    scores = scores_of(ANSWER)

    assert [(s.task, s.metric) for s in headlines(scores)] == [("piqa", "acc"), ("mine", "acc_mutual_info")]
    assert average(scores) == pytest.approx(0.5)
    with pytest.raises(OptionError, match="the accuracy on wiki\n  found: it is measured by word_perplexity"):
        headlines([Score("wiki", "word_perplexity", 9.0, None, 3)])
    with pytest.raises(OptionError, match="an average accuracy\n  found: no task"):
        average([])


def test_names_that_stand_for_several():
    """The paper's seven and the offline ones have a name each, others are themselves, and none is asked twice."""
    assert harness.expand_task_sets(None) == harness.expand_task_sets(["offline"]) == harness.OFFLINE_TASKS
    assert harness.expand_task_sets(["paper", "piqa", "mine"]) == (*harness.PAPER_TASKS, "mine")


def test_without_the_extra(tiny, monkeypatch, capsys):
    """Without the harness the error names what is absent and the line that installs it; no model is loaded for it."""
    monkeypatch.setattr(harness, "find_spec", lambda name: None if name == "lm_eval" else name)

    assert harness.missing_packages() == "lm_eval not installed"
    with pytest.raises(ExtraError, match=r"lm_eval not installed\n  try: pip install 'swcheck\[zero-shot\]'") as caught:
        accuracy(tiny.model, tiny.tokenizer)
    assert isinstance(caught.value, ImportError)
    assert command_line.main(["accuracy", "tiny", "--device", "no such device"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.splitlines()[1]) == ("", "  found: lm_eval not installed")


def test_a_name_is_looked_at_before_the_extra(monkeypatch, capsys):
    """Nobody installs the harness to learn that the name was misspelt."""
    monkeypatch.setattr(harness, "find_spec", lambda name: None if name == "lm_eval" else name)
    assert command_line.main(["accuracy", "tni"]) == 2
    assert capsys.readouterr().err.startswith("swcheck: model 'tni'\n")


def test_the_tasks_are_written_by_a_command(tmp_path, capsys):
    """``swcheck accuracy MODEL --write-tasks DIR`` writes them, and says how the harness is told of them."""
    assert command_line.main(["accuracy", "tiny", "--write-tasks", str(tmp_path / "tasks")]) == 0

    assert capsys.readouterr().out.strip().endswith(f"--include_path {tmp_path / 'tasks'}")
    assert len(list((tmp_path / "tasks").iterdir())) == 4

    assert command_line.main(["accuracy", "tiny", "--write-tasks", str(tmp_path / "tasks" / "swcheck_cloze.yaml")]) == 2
    assert capsys.readouterr().err.startswith(f"swcheck: write {tmp_path}")


# --- with it -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@with_harness
@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"tasks": "piqa"}, "zero-shot tasks\n  found: 'piqa'\n  try: a list of names"),
        ({"tasks": []}, r"zero-shot tasks\n  found: \[\]"),
        ({"limit": 0}, "limit = 0\n  found: nothing to ask"),
        ({"batch": 0}, "batch = 0\n  found: nothing to ask"),
        ({"tokenizer": None}, "zero-shot accuracy\n  found: no tokenizer"),
        ({"model": torch.nn.Linear(2, 2)}, "zero-shot accuracy\n  found: a bare module without a config"),
        ({"tasks": ["winogrand"]}, r"zero-shot task 'winogrand'\n  found: .*the closest: winogrande"),
        ({"tasks": ["piqa"]}, r"the data of piqa\n  found: not in the local cache, and nothing is downloaded here"),
    ],
)  # fmt: skip
def test_wrong_use(tiny, tmp_path, monkeypatch, wish, words):
    """What cannot be asked, or not without a download, is said in one line."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    given = {"model": tiny.model, "tokenizer": tiny.tokenizer} | wish
    with pytest.raises(OptionError, match=words):
        accuracy(given.pop("model"), given.pop("tokenizer"), **given)


@pytest.mark.slow
@with_harness
def test_the_numbers_are_those_of_the_command_line(tiny, tmp_path):
    """lm_eval's own command, told of the same folder of tasks, gives the same numbers to the last digit."""
    write_tasks(tmp_path / "tasks")
    command = [
        sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={CHECKPOINT}", "--device", "cpu",
        "--tasks", ",".join(harness.OFFLINE_TASKS), "--include_path", str(tmp_path / "tasks"), "--limit", "60",
        "--batch_size", "16", "--output_path", str(tmp_path / "out"),
    ]  # fmt: skip
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (written,) = (tmp_path / "out").rglob("results*.json")

    ours = accuracy(tiny.model, tiny.tokenizer, limit=60)

    assert set(ours) == set(scores_of(json.loads(written.read_text())))
    assert {score.items for score in ours} == {60}
    assert min(score.value for score in headlines(ours)) > 0.1


@pytest.mark.slow
@with_harness
def test_the_cloze_is_our_own(tiny):
    """The harness's mutual information is our own scoring of the same strings: exactly as many are right."""
    (score,) = headlines(accuracy(tiny.model, tiny.tokenizer, ["swcheck_cloze"], limit=100))

    asked = [harness.blanks_moved_to_choices(item) for item in cloze.items(TEXT)][:100]
    assert score.value == cloze.accuracy(tiny.model, tiny.tokenizer, asked)
    assert score.metric == "acc_mutual_info"


@pytest.mark.slow
@with_harness
def test_it_sees_an_intervention(tiny):
    """Inside ``zeroed`` the accuracy falls to guessing; one item at a time gives what many at a time give."""
    intact = accuracy(tiny.model, tiny.tokenizer, limit=60)
    with zeroed(tiny.model, [SuperWeight(1, 97, 301)]):
        fallen = accuracy(tiny.model, tiny.tokenizer, limit=60)

    for before, after in zip(headlines(intact), headlines(fallen), strict=True):
        guessing = harness.GUESSING[before.task]
        assert after.value <= guessing + 3 * (guessing * (1 - guessing) / 60) ** 0.5
        assert after.value < before.value - 0.15
    assert accuracy(tiny.model, tiny.tokenizer, limit=60, batch=1) == intact


@pytest.mark.slow
@with_harness
def test_bos_is_the_tokenizers_own_affair(tiny):
    """Each sequence begins with BOS where the tokenizer puts it, none that has a context where it does not."""
    without = copy.deepcopy(tiny.tokenizer)
    without.backend_tokenizer.post_processor = None
    assert without("x")["input_ids"][:1] != [0]

    assert set(first_tokens(tiny.model, tiny.tokenizer)) == {0}
    assert 0 not in first_tokens(tiny.model, without)


def first_tokens(model, tokenizer):
    seen = []
    handle = model.register_forward_pre_hook(lambda _module, args, kwargs: seen.extend((args or list(kwargs.values()))[0][:, 0].tolist()),
                                             with_kwargs=True)  # fmt: skip
    try:
        accuracy(model, tokenizer, ["swcheck_lastword"], limit=6)
    finally:
        handle.remove()
    return seen


@pytest.mark.slow
@with_harness
def test_it_leaves_no_trace(tiny, capfd):
    """Mode, tokenizer, random numbers and the hub's switches are as before, and nothing was printed."""
    import datasets
    import huggingface_hub

    model, tokenizer = copy.deepcopy(tiny.model).train(), copy.deepcopy(tiny.tokenizer)
    tokenizer.pad_token = None
    marks = generators()
    switches = huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    accuracy(model, tokenizer, ["swcheck_lastword"], limit=4)

    assert model.training
    assert tokenizer.pad_token is None
    assert generators() == marks
    assert switches == (huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE)
    assert capfd.readouterr() == ("", "")


def generators():
    legacy = np.random.get_state()  # noqa: NPY002 - what the harness seeds
    return random.getstate(), legacy[1].tolist(), torch.get_rng_state().tolist()


@pytest.mark.slow
@with_harness
def test_a_task_of_ones_own(tiny, tmp_path):
    """A YAML of the user's own, in a folder that is named, is asked like any other task."""
    write_tasks(tmp_path)
    mine = (tmp_path / "swcheck_lastword.yaml").read_text().replace("task: swcheck_lastword", "task: mine")
    (tmp_path / "mine.yaml").write_text(mine)
    for name in harness.OFFLINE_TASKS:
        (tmp_path / f"{name}.yaml").unlink()

    mine, own = accuracy(tiny.model, tiny.tokenizer, ["mine", "swcheck_lastword"], limit=30, include=tmp_path)
    assert (mine.task, own.task) == ("mine", "swcheck_lastword")
    assert (mine.value, mine.items) == (own.value, 30)


@pytest.mark.slow
@with_harness
def test_on_the_command_line(capsys):
    """``swcheck accuracy`` prints a table with the average, and with ``--json`` JSON and nothing else."""
    assert command_line.main(["accuracy", "tiny", "--limit", "20", "--zeroed"]) == 0
    said = capsys.readouterr()
    assert "average of 2 tasks: 0." in said.out
    assert said.out.splitlines()[1].split() == ["task", "metric", "value", "error", "items", "zeroed"]
    assert said.err == ""

    assert command_line.main(["accuracy", "tiny", "--limit", "20", "--tasks", "swcheck_lastword", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    loaded = load("tiny", device="cpu")
    expected = accuracy(loaded.model, loaded.tokenizer, ["swcheck_lastword"], limit=20)
    assert answer == {"model": "tiny", "scores": [score.as_json() for score in expected], "zeroed": None}


@pytest.mark.slow
@with_harness
def test_a_study_asks_the_tasks_that_are_named(tmp_path, monkeypatch, capsys):
    """``swcheck study --tasks`` asks them; a record of other tasks, or of fewer items, is not taken for this one."""
    monkeypatch.setattr(scaling, "ALPHAS", (0.0, 1.0))
    command = ["study", "tiny", "scaling", "--out", str(tmp_path), "--tasks", "swcheck_lastword", "--limit"]

    for limit, words in (("5", "scaling"), ("6", "scaling")):
        assert command_line.main([*command, limit]) == 0
        assert words in capsys.readouterr().out
        record = json.loads((tmp_path / "scaling.json").read_text())
        assert (record["facts"]["tasks"], record["facts"]["limit"]) == (["swcheck_lastword"], int(limit))
        scores = [one for one in record["measurements"] if one["quantity"] == "accuracy"]
        assert {one["task"] for one in scores} == {"swcheck_lastword"}
        assert all(one["value"] * int(limit) == pytest.approx(round(one["value"] * int(limit))) for one in scores)


@with_harness
def test_the_constraints_name_the_harness():
    """The version that is tested is the one of the tested set."""
    from importlib.metadata import version

    text = (Path(__file__).parents[3] / "constraints.txt").read_text()
    assert f"lm_eval=={version('lm_eval')}" in text
