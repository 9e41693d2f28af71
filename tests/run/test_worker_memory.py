"""Two models that do not fit beside each other are refused before any is loaded, with the figures."""

from __future__ import annotations

import pytest

from swcheck.base.errors import OptionError
from swcheck.base.formatting import format_size
from swcheck.loading import tiny
from swcheck.loading.streaming import streamable
from swcheck.loading.streaming.free_memory import FreeMemory
from swcheck.run import worker_memory
from swcheck.run.settings import Settings
from swcheck.run.worker_memory import check_room_for_workers

SIZE, OTHER = (
    sum(file.stat().st_size for file in tiny.CHECKPOINTS[name].glob("*.safetensors")) for name in ("tiny", "tiny-pair")
)
BOTH = SIZE + OTHER


@pytest.fixture
def memory(monkeypatch):
    """Let so many bytes be free."""

    def free(size):
        monkeypatch.setattr(worker_memory, "free_memory", lambda: FreeMemory(size, "this machine"))
        monkeypatch.setattr(streamable, "free_memory", lambda: FreeMemory(2**60, "this machine"))

    return free


def settings(**more):
    return Settings(models=("tiny",), candidates=("tiny-pair", "rtn:bits=4"), device="cpu", **more)


def test_models_that_do_not_fit_together_are_refused(memory):
    """One in each worker: as many workers as there are models, those of an engine left out; and what would fit is told."""
    memory(BOTH - 1)
    with pytest.raises(OptionError) as caught:
        check_room_for_workers(settings(), 8)
    assert caught.value.asked == "pytest -n 8: 2 models in memory at a time, one in each worker"
    assert f"together, and {format_size(BOTH - 1)} are free: this machine" in caught.value.found
    assert caught.value.attempt.startswith("-n 1, ")


@pytest.mark.parametrize(
    ("free", "workers", "more"),
    [
        (BOTH - 1, 1, {}),
        (BOTH, 2, {}),
        (OTHER // 2, 2, {}),
        (BOTH - 1, 2, {"stream": True}),
        (BOTH - 1, 2, {"device_map": "auto"}),
    ],
    ids=["one", "room", "none-fits", "streamed", "placed"],
)
def test_others_are_not(memory, free, workers, more):
    """One worker, room for both, a model that fits nowhere and is told of when it is loaded, and weights on the disk."""
    memory(free)
    check_room_for_workers(settings(**more), workers)


def test_what_is_converted_takes_what_it_becomes(memory):
    """In float32 tiny takes twice the bytes of its file."""
    memory(2 * SIZE + OTHER)
    check_room_for_workers(settings(), 2)
    with pytest.raises(OptionError):
        check_room_for_workers(settings(dtype="float32"), 2)
