"""What was measured of a reference is kept for the next run: the same numbers, never those of something else."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from swcheck import assert_perplexity_within
from swcheck.loading import engines
from swcheck.run import reference_cache
from swcheck.run.reference_cache import ReferenceCache, is_kept
from swcheck.run.session import Session
from swcheck.run.settings import Settings
from tests import checkpoints


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """An empty cache."""
    monkeypatch.setenv("SWCHECK_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def settings(tmp_path):
    """A run of a small model of random weights on a short text."""
    model = checkpoints.micro(tmp_path / "micro")
    text = tmp_path / "text.txt"
    text.write_text("def area(width, height):\n    return width * height\n" * 60)
    return Settings(models=(str(model),), text=text)


def measured(settings):
    """The perplexity of the reference of one run, as exactly as it is known."""
    session = Session(settings)
    verdict = assert_perplexity_within(session.reference(settings.models[0]))
    session.free()
    return verdict.measured


def no_model(*_arguments, **_options):
    pytest.fail("a model was loaded")


@pytest.mark.slow
def test_the_second_run_has_the_same_numbers_and_loads_nothing(folder, settings, monkeypatch):
    """The number is the same to the last bit, and no model is loaded for it."""
    first = measured(settings)
    assert len(list(folder.iterdir())) == 1
    assert is_kept(settings, settings.models[0])
    monkeypatch.setattr(engines, "load", no_model)
    assert measured(settings) == first


@pytest.mark.slow
def test_a_number_that_is_missing_is_measured(folder, settings):
    """The reference that is known in part can be loaded: what is new is measured and kept as well."""
    measured(settings)
    session = Session(settings)
    reference = session.reference(settings.models[0])
    assert not reference.held.in_memory
    assert reference.module is not None
    session.free()


@pytest.mark.slow
@pytest.mark.parametrize("change", ["weights", "text", "tier", "seed", "dtype", "code"])
def test_whatever_a_number_depends_on_makes_another_entry(folder, settings, change, monkeypatch, tmp_path):
    """Another file in the model's folder, another text, tier, seed or dtype, or other code: nothing is found."""
    spec = settings.models[0]
    measured(settings)
    if change == "weights":
        os.utime(f"{spec}/model.safetensors", ns=(1, 1))
    elif change == "text":
        settings.text.write_text("another text " * 400)
    elif change == "code":
        monkeypatch.setattr(reference_cache, "_stamps", lambda *_: "other")
    else:
        settings = replace(settings, **{change: {"tier": "smoke", "seed": 1, "dtype": "bfloat16"}[change]})
    assert not is_kept(settings, spec)
    assert ReferenceCache(settings, spec).read() is None


@pytest.mark.slow
@pytest.mark.parametrize("damage", [b"", b"{", b'{"schema": 1}', b"\xff" * 100])
def test_a_damaged_entry_is_measured_anew(folder, settings, damage):
    """Whatever a file of the cache has become, the run is as if it were not there."""
    first = measured(settings)
    [file] = folder.iterdir()
    file.write_bytes(damage)
    assert measured(settings) == first
    assert ReferenceCache(settings, settings.models[0]).read() is not None


@pytest.mark.slow
def test_without_a_cache_nothing_is_read_or_kept(folder, settings, monkeypatch):
    """The option switches it off; a folder that cannot be made is no error."""
    first = measured(replace(settings, no_cache=True))
    assert not folder.exists()
    monkeypatch.setenv("SWCHECK_CACHE_DIR", f"{settings.text}/below/a/file")
    assert measured(settings) == first


@pytest.mark.slow
def test_a_run_that_was_interrupted_keeps_nothing(folder, settings):
    """After an interrupt nothing is measured or written."""
    session = Session(settings)
    session.reference(settings.models[0])
    session.free(measure=False)
    assert not folder.exists()


@pytest.mark.slow
def test_a_model_that_code_outside_has_touched_is_not_kept(folder, settings):
    """Where a test took the module itself, it may have changed it."""
    session = Session(settings)
    assert session.reference(settings.models[0]).model is not None
    session.free()
    assert not folder.exists()


@pytest.mark.slow
def test_the_oldest_entries_are_removed(folder, settings, monkeypatch):
    """There are never more files than the bound; what was used last stays."""
    monkeypatch.setattr(reference_cache, "MOST_FILES", 2)
    for seed in range(3):
        measured(replace(settings, seed=seed))
        for number, file in enumerate(reversed(reference_cache.entries())):
            os.utime(file, (number, number))
    assert [is_kept(replace(settings, seed=seed), settings.models[0]) for seed in range(3)] == [False, True, True]


@pytest.mark.slow
def test_the_cache_is_listed_and_cleared(folder, settings, run):
    """The command names each model with tier and size, a damaged file as such, and removes all of it."""
    assert run("cache")[1] == f"{folder}: nothing is kept\n"
    measured(settings)
    (folder / "other.json").write_text("{")
    code, out, _ = run("cache")
    assert code == 0
    assert out.startswith(f"{folder}: 2 measured references, 1 MB\n")
    assert "\n  micro       standard  cpu     checkpoint  1 MB  " in out
    assert "\n  other.json  damaged " in out
    assert run("cache", "--clear")[1] == f"removed: 2 measured references, 1 MB, from {folder}\n"
    assert list(folder.iterdir()) == []
