"""What a run was asked for, read from raw values: taken whole, or refused in words before anything is loaded."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from swcheck.base.errors import OptionError, SwcheckError, UnknownModelError
from swcheck.base.limits import DEFAULTS
from swcheck.gate.baseline.document import sealed
from swcheck.run.settings import Settings, forbid_downloads, read_settings
from tests import checkpoints
from tests.loading.test_engines import words_of


@pytest.fixture(scope="module")
def micro(tmp_path_factory) -> str:
    return str(checkpoints.micro(tmp_path_factory.mktemp("models") / "micro"))


def test_nothing_asked_is_the_default():
    """Without a value every setting is its default."""
    assert read_settings({}, {}) == Settings()
    assert Settings().limits_for("tiny") == DEFAULTS


def test_values_become_settings(tmp_path, micro):
    """Each raw value is in the settings, paths absolute, limits among the defaults."""
    (tmp_path / "text.txt").write_text("some words")
    values = {
        "model": ["tiny"], "candidate": [micro], "device": "cpu", "dtype": "float16", "text": str(tmp_path / "text.txt"),
        "limit": {"ini": ["null=1.5"]}, "json": "out.json", "offline": True, "trust_remote_code": True, "allow_none": True,
    }  # fmt: skip
    settings = read_settings(values, dict.fromkeys(values, "ini"))
    assert (settings.models, settings.candidates, settings.specs) == (("tiny",), (micro,), ("tiny", micro))
    assert (settings.device, settings.dtype, settings.text) == ("cpu", "float16", tmp_path / "text.txt")
    assert settings.json == Path.cwd() / "out.json"
    assert settings.limits_for("tiny")["null"].high == 1.5
    assert settings.limits_for("tiny")["perplexity"] == DEFAULTS["perplexity"]
    assert settings.offline
    assert settings.trust_remote_code
    assert settings.allow_none


def test_a_reference_with_a_baseline_need_not_be_here(tmp_path, micro):
    """Its name is enough: nothing of it is checked or fetched, unless a candidate is made of it or it is measured anew."""
    baseline = sealed({"model": "nobody/nothing", "measurements": []})
    (tmp_path / "nobody-nothing.json").write_text(json.dumps(baseline))
    values = {"model": ["nobody/nothing"], "candidate": [micro], "baseline": str(tmp_path), "offline": True}
    settings = read_settings(values, dict.fromkeys(values, "ini"))
    assert settings.models_to_load == (micro,)
    for more in ({"candidate": ["rtn:bits=4"]}, {"update": True}, {"baseline": None}):
        with pytest.raises(UnknownModelError, match="downloads are forbidden"):
            read_settings({**values, **more}, dict.fromkeys(values, "ini"))


@pytest.mark.parametrize("name", ["model", "candidate", "device", "dtype", "text", "limit", "json"])
def test_an_empty_value_is_refused(name):
    """An empty text, alone or in a list, is never taken for nothing."""
    for value in ("", [""], ["tiny", " "], {"ini": ["null=1.5", " "]}):
        if type(value) is {"model": list, "candidate": list, "limit": dict}.get(name, str):
            with pytest.raises(OptionError, match=f"--swcheck-{name}") as caught:
                read_settings({name: value}, {name: "command line"})
            assert words_of(caught)[1] == "an empty value"


@pytest.mark.parametrize("text", ["0", "-5", "many", "1.5", "9" * 12])
def test_a_cache_of_no_number_of_tokens_is_refused(text):
    """Before anything is loaded."""
    with pytest.raises(OptionError, match=r"--swcheck-cache-window=[\s\S]*no positive number"):
        read_settings({"cache_window": text}, {})


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
    mine = read_settings({"limit": {"ini": ["collapse=5"]}}, {})
    assert mine.limits_for(spec)["collapse"].low == 5


def test_downloads_are_forbidden_and_allowed_again(monkeypatch):
    """The environment says offline until it is taken back, then what it said before, or nothing."""
    for before in ("0", None):
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False) if before is None else monkeypatch.setenv(
            "HF_HUB_OFFLINE", before
        )
        take_back = forbid_downloads()
        assert os.environ["HF_HUB_OFFLINE"] == "1"
        take_back()
        assert os.environ.get("HF_HUB_OFFLINE") == before


@pytest.mark.parametrize("name", ["text", "json", "baseline"])
@pytest.mark.parametrize("value", ["~nobody-of-this-name/x", "a\0b", "x" * 400])
def test_a_path_that_can_be_none_is_refused(name, value):
    """A user that does not exist, a NUL byte and a name that is too long are refused in words before the work."""
    values = {"model": ["tiny"], name: value, **({"update": True} if name == "baseline" else {})}
    with pytest.raises(SwcheckError, match=r"found: .*(home directory|null byte|File name too long)"):
        read_settings(values, dict.fromkeys(values, "command line"))
