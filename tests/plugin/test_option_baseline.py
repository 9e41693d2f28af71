"""``--swcheck-baseline``, ``--swcheck-update`` and ``--swcheck-accept``."""

from __future__ import annotations

import json
import shutil

import pytest

from swcheck.gate.baseline import identity
from swcheck.gate.baseline.document import sealed
from tests import checkpoints, damage
from tests.plugin import BOTH, CANDIDATE, MODEL, refused


@pytest.fixture
def baselines(inner, pytester):
    """A folder with the baseline of tiny."""
    result = inner("--model=tiny", "--swcheck-baseline=baselines", "--swcheck-update", "--swcheck-accept")
    result.assert_outcomes(passed=MODEL, skipped=CANDIDATE)
    return pytester.path / "baselines"


@pytest.mark.slow
def test_updating_writes_and_still_fails(inner, pytester):
    """An update rewrites the file and is red all the same, for it wants a review; the numbers are in it."""
    result = inner("--model=tiny", "--swcheck-baseline=here", "--swcheck-update")

    assert result.ret == 1
    result.assert_outcomes(passed=MODEL, skipped=CANDIDATE, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of swcheck::baselines*",
            "*review and commit*",
            "ERROR swcheck::baselines - baselines measured anew: here/tiny.json",
        ]
    )
    result.stdout.no_fnmatch_line("* FAILED")
    result.stdout.no_fnmatch_line("*swcheck.suite.test_candidate *E*")
    text = (pytester.path / "here" / "tiny.json").read_text()
    assert len(text) < 1_000_000
    assert json.loads(text)["super_weights"][0]["row"] == 97


@pytest.mark.slow
def test_a_baseline_takes_the_place_of_its_reference(inner, baselines, monkeypatch):
    """With it the reference is not loaded: its own checks and those of a candidate run on what is in the file."""
    healthy = checkpoints.copy_of_tiny(baselines.parent / "copy")
    from swcheck.loading import engines

    load = engines.load
    loaded = []
    monkeypatch.setattr(
        "swcheck.loading.engines.load", lambda spec, **options: loaded.append(spec) or load(spec, **options)
    )

    result = inner("--model=tiny", f"--candidate={healthy}", "--swcheck-baseline=baselines")

    result.assert_outcomes(passed=BOTH)
    assert loaded == [str(healthy)]


@pytest.mark.slow
def test_a_damaged_candidate_is_red_against_a_baseline(inner, baselines):
    """The cause is the one that the reference itself would show."""
    zeroed = checkpoints.damaged(baselines.parent / "zeroed", damage.zero)

    result = inner("--model=tiny", f"--candidate={zeroed}", "--swcheck-baseline=baselines", "-k", "test_candidate")

    assert result.ret == 1
    result.stdout.fnmatch_lines(["super weight at layer 1 [[]97, 301[]] zeroed*"])


@pytest.mark.slow
def test_other_conditions_stand_in_the_report(inner, baselines):
    """A baseline of another torch is used, and the report of the run says so, in the table's place and in the JSON."""
    file = baselines / "tiny.json"
    facts = json.loads(file.read_text())
    file.write_text(json.dumps(sealed({**facts, "torch": "1.0"})))

    result = inner(
        "--model=tiny", "--swcheck-baseline=baselines", "--swcheck-json=out.json", "-k", "model and perplexity"
    )

    result.stdout.fnmatch_lines(["note: the baseline was measured with torch 1.0, this run has *"])
    verdict = json.loads((baselines.parent / "out.json").read_text())["verdicts"][0]
    assert verdict["facts"]["notes"][0].startswith("the baseline was measured with torch 1.0")


@pytest.fixture
def cached(monkeypatch, tmp_path):
    """The snapshot of ``mine/model`` in a hub cache of its own: tiny's files."""
    folder = tmp_path / "hub" / "models--mine--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots").mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return checkpoints.copy_of_tiny(folder / "snapshots" / ("0" * 40))


@pytest.mark.slow
def test_a_baseline_of_a_hub_model_has_its_identity_and_needs_no_copy(inner, pytester, cached):
    """Weights and revision are in the file; other ones are refused; where the model is not here, the file is enough."""
    names = "--model=mine/model", "--swcheck-baseline=kept", "--swcheck-offline"
    inner(*names, "--swcheck-update", "--swcheck-accept", "-k", "test_model and perplexity").assert_outcomes(passed=1, deselected=MODEL + CANDIDATE - 1)  # fmt: skip
    facts = json.loads((pytester.path / "kept" / "mine-model.json").read_text())
    assert (facts["weights"], facts["revision"]) == (identity.weights_identity(cached), "0" * 40)

    checkpoints.tensors(lambda whole: {name: -tensor for name, tensor in whole.items()})(cached)
    inner(*names, "-k", "test_model and perplexity").stdout.fnmatch_lines(["*it was measured with other weights*"])
    shutil.rmtree(cached.parents[1])
    healthy = checkpoints.copy_of_tiny(pytester.path / "copy")
    inner(*names, f"--candidate={healthy}", "-k", "test_candidate and perplexity").assert_outcomes(passed=1, deselected=MODEL + CANDIDATE - 1)  # fmt: skip


def test_a_missing_baseline_is_refused(inner):
    """Without the file, and not asked to write it, the run ends before anything is loaded."""
    refused(inner("--model=tiny", "--swcheck-baseline=nowhere"), "baseline of tiny", "--swcheck-update writes it")


def test_updating_needs_a_folder(inner):
    """An update without a folder is a usage error."""
    refused(inner("--model=tiny", "--swcheck-update"), "no folder to write to")


@pytest.mark.slow
def test_a_baseline_of_another_text_is_refused(inner, baselines):
    """The numbers of another text are not compared."""
    text = baselines.parent / "other.txt"
    text.write_text("def other(text):\n    return text\n" * 400)

    result = inner("--model=tiny", "--swcheck-baseline=baselines", f"--swcheck-text={text}", "-k", "perplexity")

    assert result.ret == 1
    result.stdout.fnmatch_lines(["*it was measured with another text*"])


def test_a_file_that_is_no_baseline_is_an_error_in_words(inner, pytester):
    """A broken file, and one that was edited by hand, is named before anything is loaded."""
    (pytester.path / "bad").mkdir()
    for text in ("{", json.dumps({"schema": 4, "digest": "0", "model": "tiny", "measurements": []})):
        (pytester.path / "bad" / "tiny.json").write_text(text)
        result = inner("--model=tiny", "--swcheck-baseline=bad", "-k", "perplexity")
        refused(result, "baseline ", "no baseline of swcheck", "--swcheck-update")
