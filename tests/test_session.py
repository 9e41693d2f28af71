"""What lives for one run: models loaded once and freed, verdicts that count."""

from __future__ import annotations

import pytest
import torch

from swcheck.errors import OptionError
from swcheck.records import Outcome, Verdict
from swcheck.session import Session
from swcheck.settings import Settings
from tests import checkpoints
from tests.test_engines import words_of


@pytest.fixture(scope="module")
def micro(tmp_path_factory) -> str:
    return str(checkpoints.micro(tmp_path_factory.mktemp("models") / "micro"))


def test_one_candidate_is_in_memory_at_a_time(micro, tmp_path):
    """The next candidate takes the place of the one before, and the reference is freed before the first."""
    other = str(checkpoints.micro(tmp_path / "other"))
    session = Session(Settings(models=(micro,), candidates=("tiny", other), device="cpu"))
    reference = session.reference(micro)
    first = session.candidate("tiny")
    module = first.module
    assert reference.module is None
    assert session.candidate() is first
    second = session.candidate(other)
    assert second.name == "other"
    assert module.lm_head.weight.is_meta
    assert first.memo == {}
    session.free()


def test_a_model_is_loaded_once_and_freed_for_the_next(micro):
    """Asked again a reference is the same object; the next one takes its place, and its weights are given back."""
    session = Session(Settings(models=("tiny", micro), device="cpu"))
    first = session.reference("tiny")
    assert session.reference("tiny") is first
    first.located()
    assert first.memo
    module = first.module
    second = session.reference(micro)
    assert second.name == "micro"
    assert module.lm_head.weight.is_meta
    assert not first.memo
    session.free()
    session.free()
    assert second is not session.reference(micro)


def test_a_candidate_outlives_the_loading_of_its_reference(micro):
    """Whichever of the two is asked for first, neither is freed by the other."""
    session = Session(Settings(models=("tiny",), candidates=(micro,)))
    candidate = session.candidate()
    session.reference("tiny")
    assert session.candidate() is candidate
    assert torch.isfinite(candidate.module.lm_head.weight).all()
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
        taken = {verdict.outcome for verdict in session.take(failed=failed)}
        assert taken == set(Outcome) - (set() if failed else {Outcome.FAILED, Outcome.INCONCLUSIVE})
        assert session.take(failed=True) == []
