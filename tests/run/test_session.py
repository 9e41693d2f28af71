"""What lives for one run: models loaded once and freed, verdicts that count."""

from __future__ import annotations

import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from swcheck import (
    RobustnessError,
    SuperWeight,
    assert_perplexity_within,
    assert_predictions_preserved,
    assert_super_activations_preserved,
)
from swcheck.base.errors import CheckpointError, OptionError
from swcheck.base.output_files import write_atomically
from swcheck.base.records import Loaded, Outcome, Verdict
from swcheck.gate.diagnosis.evidence.reference_matrices import matrix_in_memory
from swcheck.loading import engines
from swcheck.run.session import RELOADS_BEFORE_KEEPING_BOTH, Session
from swcheck.run.settings import Settings
from swcheck.superweights.measurements.inputs import windows
from swcheck.superweights.measurements.located import located
from swcheck.superweights.measurements.weights import down_matrix, matrix_row
from swcheck.superweights.subject.as_subject import as_subject
from tests import checkpoints, damage, planted
from tests.gate.baseline.test_file import COMPARISONS
from tests.gate.checks.test_prompted_activations import TEXT, late
from tests.loading.test_engines import words_of


@pytest.fixture(scope="module")
def micro(tmp_path_factory) -> str:
    return str(checkpoints.micro(tmp_path_factory.mktemp("models") / "micro"))


@pytest.mark.slow
def test_one_candidate_is_in_memory_at_a_time(micro, tmp_path):
    """The next candidate takes the place of the one before, and the reference is freed before the first."""
    other = str(checkpoints.micro(tmp_path / "other"))
    session = Session(Settings(models=(micro,), candidates=("tiny", other), device="cpu"))
    reference = session.reference(micro)
    first = session.candidate("tiny")
    module = first.module
    assert not reference.held.in_memory
    assert session.candidate() is first
    second = session.candidate(other)
    assert second.name == "other"
    assert module.lm_head.weight.is_meta
    assert first.memory.values == {}
    session.free()


def test_a_model_is_loaded_once_and_freed_for_the_next(micro):
    """Asked again a reference is the same object; the next one takes its place, and its weights are given back."""
    session = Session(Settings(models=("tiny", micro), device="cpu"))
    first = session.reference("tiny")
    assert session.reference("tiny") is first
    located(first)
    assert first.memory.values
    module = first.module
    second = session.reference(micro)
    assert second.name == "micro"
    assert module.lm_head.weight.is_meta
    assert not first.memory.values
    session.free()
    session.free()
    assert second is not session.reference(micro)


@pytest.mark.slow
def test_a_candidate_outlives_the_loading_of_its_reference(micro):
    """Whichever of the two is asked for first, each makes room for the other, and comes again when it is measured."""
    session = Session(Settings(models=("tiny",), candidates=(micro,)))
    candidate = session.candidate()
    reference = session.reference("tiny")
    assert (candidate.held.in_memory, reference.held.in_memory) == (False, True)
    assert session.candidate() is candidate
    assert torch.isfinite(candidate.module.lm_head.weight).all()
    assert (candidate.held.in_memory, reference.held.in_memory) == (True, False)
    session.free()


@pytest.mark.slow
def test_a_model_that_a_test_has_taken_stays(micro):
    """Whoever takes a module may have changed it: it is neither freed for the other one nor loaded anew."""
    session = Session(Settings(models=("tiny",), candidates=(micro,)))
    candidate, reference = session.candidate(), session.reference("tiny")
    module = candidate.model
    assert reference.model is reference.module
    assert candidate.module is module
    session.free()


# --- one model at a time -----------------------------------------------------------------------------------------------

PROMPTS = [f"the rivers and the markets of {word} were open. And so on" for word in ("winter", "summer")]


@pytest.fixture
def held(monkeypatch):
    """The models that were in memory whenever another one was loaded, and all that were loaded."""
    found, loaded, load_one = [], [], engines.load

    def watched(spec, **options):
        found.extend(name for name, model in loaded if model() is not None and not model().lm_head.weight.is_meta)
        made = (options.pop("factory", None) or load_one)(spec, **options)
        loaded.append((spec, weakref.ref(made.model)))
        return made

    watched.found, watched.loaded = found, loaded
    monkeypatch.setattr("swcheck.run.session.engines.load", watched)
    return watched


def write_baseline(settings):
    """The baseline that such a run reads, as one with ``--swcheck-update`` writes it."""
    session = Session(replace(settings, update=True))
    session.reference(settings.models[0])
    session.free()
    for path, text in session.baselines.items():
        write_atomically(path, text)


def reds(session):
    """How many of the comparisons are red."""
    count = 0
    for check in COMPARISONS:
        try:
            check(session.candidate(), session.reference("tiny"))
        except RobustnessError:
            count += 1
    return count


@pytest.mark.slow
@pytest.mark.parametrize("recorded", [False, True], ids=["plain", "with a baseline"])
@pytest.mark.parametrize("candidate", ["rtn:bits=4,block=128,clip=3", "rtn:bits=4,block=128,clip=3,keep", "halved"])
def test_a_red_gate_has_one_model_in_memory(held, tmp_path, candidate, recorded):
    """Whatever explains a red verdict and proves its fix: a model is loaded when no other is there any more."""
    if candidate == "halved":
        candidate = str(checkpoints.damaged(tmp_path / candidate, damage.halve))
    settings = Settings(models=("tiny",), candidates=(candidate,), device="cpu")
    if recorded:
        settings = replace(settings, baseline=tmp_path / "kept")
        write_baseline(settings)
    session = Session(settings)

    assert reds(session) > 1
    assert held.found == []
    session.free()


@pytest.mark.slow
def test_a_prompt_is_shrunk_with_one_model_in_memory(held, monkeypatch):
    """A model without BOS is asked anew for prompts and windows; its candidate waits elsewhere meanwhile."""
    rules = {"tiny": planted.on_first_delimiter, "late": late}
    tokenizer = planted.tokenizer(bos=False)

    def made(spec, **_options):
        return Loaded(planted.sinking(rules[spec]), tokenizer, spec, TEXT)

    monkeypatch.setattr("swcheck.run.session.engines.load", partial(held, factory=made))
    session = Session(Settings(models=("tiny",), candidates=("late",), device="cpu"))

    with pytest.raises(RobustnessError) as caught:
        assert_super_activations_preserved(session.candidate(), session.reference("tiny"), prompts=PROMPTS)

    assert len(tokenizer(eval(caught.value.verdict.facts["worst_prompt"]))["input_ids"]) < 8
    assert held.found == []
    assert 4 < len(held.loaded) <= RELOADS_BEFORE_KEEPING_BOTH + 2
    session.free()


@pytest.mark.slow
def test_small_models_stay_where_a_suite_asks_both_in_turn(held, monkeypatch):
    """Prompts of somebody's own, one an assertion, would load two models for each: after some turns both are kept."""
    tokenizer = planted.tokenizer(bos=False)

    def made(spec, **_options):
        return Loaded(planted.sinking(planted.on_first), tokenizer, spec, TEXT)

    monkeypatch.setattr("swcheck.run.session.engines.load", partial(held, factory=made))
    session = Session(Settings(models=("tiny",), candidates=("copy",), device="cpu"))
    reference, candidate = session.reference("tiny"), session.candidate()

    for number in range(3 * RELOADS_BEFORE_KEEPING_BOTH):
        verdict = assert_super_activations_preserved(
            candidate, reference, prompts=[f"rivers and {number} markets"] * 20
        )

    assert verdict.measured == pytest.approx(1, abs=1e-5)
    assert len(held.loaded) <= RELOADS_BEFORE_KEEPING_BOTH + 4
    session.free()


@pytest.mark.slow
def test_a_candidate_on_other_tokens_is_the_same_model(held):
    """An assertion with ``token_ids`` measures the models of the run, and loads none of its own."""
    session = Session(Settings(models=("tiny",), candidates=("rtn:bits=8",), device="cpu"))
    reference, candidate = session.reference("tiny"), session.candidate()
    ids = windows(reference)[:2, :64]

    assert_perplexity_within(candidate, reference, token_ids=ids)

    assert held.found == []
    assert [name for name, _ in held.loaded].count("rtn:bits=8") <= 4
    assert as_subject(candidate, token_ids=ids).model is candidate.module
    assert not candidate.held.is_reloadable
    session.free()


@pytest.mark.slow
def test_a_reference_that_a_test_has_changed_is_measured_anew():
    """What the candidate was against it before is another number than what it is now."""
    session = Session(Settings(models=("tiny",), candidates=("rtn:bits=8",), device="cpu"))
    reference, candidate = session.reference("tiny"), session.candidate()
    assert assert_predictions_preserved(candidate, reference).measured < 0.01

    layer = reference.model.model.layers[2].mlp
    with torch.no_grad():
        layer.gate_proj.weight.neg_()
    with pytest.raises(RobustnessError) as caught:
        assert_predictions_preserved(candidate, reference)
    assert caught.value.verdict.measured > 0.1

    with torch.no_grad():
        layer.gate_proj.weight.neg_()
    assert assert_predictions_preserved(candidate, reference).measured < 0.01
    session.free()


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_again_is_no_missing_layer(tmp_path):
    """Where its files went away meanwhile, that is said."""
    folder = checkpoints.copy_of_tiny(tmp_path / "gone")
    session = Session(Settings(models=(str(folder),), candidates=("tiny",), device="cpu"))
    reference = session.reference(str(folder))
    session.candidate()
    (folder / "model.safetensors").unlink()

    with pytest.raises(CheckpointError, match=r"no \*\.safetensors"):
        matrix_in_memory(reference, "1.mlp.down_proj")
    session.free()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux says which files are mapped")
def test_a_freed_reference_leaves_its_file(tmp_path):
    """One remembered row or matrix that is a view would keep all of its file in memory."""
    folder = str(checkpoints.micro(tmp_path / "alone"))
    session = Session(Settings(models=(folder,), candidates=("tiny",), device="cpu"))
    reference = session.reference(folder)
    for kept in (matrix_row(reference, SuperWeight(1, 0, 0)), down_matrix(reference, 1)):
        assert torch.isfinite(kept).all()
    assert folder in Path("/proc/self/maps").read_text()
    del kept

    session.candidate()

    assert folder not in Path("/proc/self/maps").read_text()
    session.free()


def test_without_a_candidate(micro):
    """A candidate that nobody gave is an error in words."""
    with pytest.raises(OptionError, match="a candidate") as caught:
        Session(Settings(models=(micro,))).candidate()
    assert words_of(caught)[2] == "--candidate=DIRECTORY"


def test_text(tmp_path, micro):
    """A model is measured on the text that was given, else on its own, else on the package's."""
    (tmp_path / "text.txt").write_text("some words", encoding="utf-8")
    given = Session(Settings(models=(micro,), text=tmp_path / "text.txt"))
    assert given.text(given.reference(micro)) == "some words"
    session = Session(Settings(models=(micro,)))
    own = session.text(session.reference("tiny"))
    assert own == checkpoints.tiny.HELDOUT.read_text(encoding="utf-8")
    assert len(session.text(session.reference(micro))) > 10_000


def test_red_verdicts_count_only_in_a_failed_test():
    """Of a test that passed, only verdicts that are not red are taken; either way they are taken once."""
    session = Session(Settings())
    for failed in (False, True):
        session.verdicts += [Verdict("a", "m", outcome, "") for outcome in Outcome]
        taken = {verdict.outcome for verdict in session.take_verdicts(failed=failed)}
        assert taken == set(Outcome) - (set() if failed else {Outcome.FAILED, Outcome.INCONCLUSIVE})
        assert session.take_verdicts(failed=True) == []
