"""What lives for one run: settings read from raw values, models loaded once and freed, verdicts that count."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from swcheck.errors import OptionError
from swcheck.limits import DEFAULTS
from swcheck.records import Outcome, Verdict
from swcheck.session import (
    Session,
    Settings,
    forbidding_downloads,
    read_settings,
)
from tests import checkpoints
from tests.test_engines import words_of


@pytest.fixture(scope="module")
def micro(tmp_path_factory) -> str:
    return str(checkpoints.micro(tmp_path_factory.mktemp("models") / "micro"))


def test_nothing_asked_is_the_default():
    """Without a value every setting is its default."""
    assert read_settings({}, {}) == Settings()
    assert Settings().limits == DEFAULTS


def test_values_become_settings(tmp_path, micro):
    """Each raw value is in the settings, paths absolute, limits among the defaults."""
    (tmp_path / "text.txt").write_text("some words")
    values = {
        "model": ["tiny"], "candidate": [micro], "device": "cpu", "dtype": "float16", "text": str(tmp_path / "text.txt"),
        "limit": ["null=1.5"], "json": "out.json", "offline": True, "trust_remote_code": True, "allow_none": True,
    }  # fmt: skip
    settings = read_settings(values, dict.fromkeys(values, "ini"))
    assert (settings.models, settings.candidates, settings.specs) == (("tiny",), (micro,), ("tiny", micro))
    assert (settings.device, settings.dtype, settings.text) == ("cpu", "float16", tmp_path / "text.txt")
    assert settings.json == Path.cwd() / "out.json"
    assert settings.limits["null"].high == 1.5
    assert settings.limits["perplexity"] == DEFAULTS["perplexity"]
    assert settings.offline
    assert settings.trust_remote_code
    assert settings.allow_none


@pytest.mark.parametrize("name", ["model", "candidate", "device", "dtype", "text", "limit", "json"])
def test_an_empty_value_is_refused(name):
    """An empty text, alone or in a list, is never taken for nothing."""
    for value in ("", [""], ["tiny", " "]):
        if isinstance(value, list) == (name in {"model", "candidate", "limit"}):
            with pytest.raises(OptionError, match=f"--swcheck-{name}") as caught:
                read_settings({name: value}, {name: "command line"})
            assert words_of(caught)[1] == "an empty value"


def test_a_candidate_needs_one_reference(micro):
    """No model, asked for on the command line, and several models are refused; elsewhere a candidate waits for one."""
    with pytest.raises(OptionError, match="a candidate with one reference") as caught:
        read_settings({"candidate": ["tiny"]}, {"candidate": "command line"})
    assert words_of(caught)[1] == "no model"
    with pytest.raises(OptionError, match="a candidate with one reference") as caught:
        read_settings({"candidate": ["tiny"], "model": ["tiny", micro]}, {"candidate": "ini"})
    assert words_of(caught)[1] == f"2 models: tiny, {micro}"
    assert read_settings({"candidate": ["tiny"]}, {"candidate": "ini"}).candidates == ()


def test_one_model_twice_is_refused(micro):
    """Two ways to write one directory are one model."""
    with pytest.raises(OptionError, match="--swcheck-model") as caught:
        read_settings({"model": [micro, f"{micro}/../micro"]}, {})
    assert words_of(caught)[1] == f"{micro} is given twice"


def test_one_candidate_twice_is_refused(micro):
    """Two ways to write one candidate are one."""
    with pytest.raises(OptionError, match="--swcheck-candidate") as caught:
        read_settings({"model": ["tiny"], "candidate": [micro, f"{micro}/."]}, {})
    assert words_of(caught)[1] == f"{micro} is given twice"


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


def test_names(tmp_path, micro):
    """A directory goes by its name, by its whole path where another has the same, anything else by what was typed."""
    other = str(tmp_path / "micro")
    Path(other).mkdir()
    assert Settings(models=("tiny", micro)).name_of(micro) == "micro"
    assert Settings(models=("tiny", micro)).name_of("tiny") == "tiny"
    assert Settings(models=(micro, other)).name_of(micro) == micro
    assert Settings(models=(micro,), candidates=(other,)).name_of(other) == other
    assert Settings(models=("llama-7b",)).name_of("llama-7b") == "llama-7b"


@pytest.mark.parametrize(
    ("spec", "low"),
    [
        ("tiny", 10),
        ("tiny-pair", 10),
        ("llama-7b", 10),
        ("phi-3-mini", 10),
        ("llama-2-7b", 0),
        ("./mine", 0),
        ("gpt2", 0),
    ],
)
def test_a_collapse_is_demanded_where_one_is_published(spec, low):
    """x10 is asked of models whose published set is critical or deadly together; of others it is reported."""
    assert Settings().limits_for(spec)["collapse"].low == low
    mine = read_settings({"limit": ["collapse=5"]}, {})
    assert mine.limits_for(spec)["collapse"].low == 5


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


def test_downloads_are_forbidden_and_allowed_again(monkeypatch):
    """The environment says offline until it is taken back, then what it said before, or nothing."""
    for before in ("0", None):
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False) if before is None else monkeypatch.setenv(
            "HF_HUB_OFFLINE", before
        )
        take_back = forbidding_downloads()
        assert os.environ["HF_HUB_OFFLINE"] == "1"
        take_back()
        assert os.environ.get("HF_HUB_OFFLINE") == before
