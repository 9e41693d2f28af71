"""The shared check of a runtime: what it states it shows, what it does not state it refuses, and the numbers agree."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import pytest
import torch

from swcheck import Capability, check_engine
from tests.in_process_runtime import InProcess, InProcessEngine


def engine(runtime=InProcess, monkeypatch=None, **options):
    if monkeypatch is not None:
        monkeypatch.setattr("tests.in_process_runtime.InProcess", runtime)
    return InProcessEngine(options=options)


def test_a_sound_runtime_passes():
    """The reading has the contribution that the override shows."""
    (reading,) = check_engine(engine(), ["float"])
    assert reading.contribution == pytest.approx(2.625, rel=1e-3)
    assert reading.skip == "not offered"


def test_log_probabilities_alone_pass():
    """A runtime that shows nothing else is sound, and gives no reading."""
    assert check_engine(engine(shows=()), ["float"]) == ()


class SaysTooMuch(InProcess):
    """States less than it shows."""

    def token_ids(self, text):
        return self._ids(text)


class SumsAboveOne(InProcess):
    def log_probabilities(self, ids):
        return super().log_probabilities(ids) + 0.1


class OneRowTooMany(InProcess):
    def log_probabilities(self, ids):
        logs = super().log_probabilities(ids)
        return torch.cat([logs, logs[:1]])


class KeepsAll(InProcess):
    """Its cache never rolls over."""

    def rolled_log_probabilities(self, ids, *, window, first):
        return super().rolled_log_probabilities(ids, window=len(ids), first=first)


class LosesAll(InProcess):
    """Its cache is half as large as it is told."""

    def rolled_log_probabilities(self, ids, *, window, first):
        return super().rolled_log_probabilities(ids, window=window // 2, first=first)


class ForgetsChunks(InProcess):
    """Each chunk begins with an empty cache."""

    def chunked_log_probabilities(self, ids, *, cuts, cache=""):
        logs = super().chunked_log_probabilities(ids, cuts=cuts, cache=cache)
        logs[cuts[0] :] = super().log_probabilities(ids[cuts[0] :])
        return logs


class MixesRows(InProcess):
    """The windows of a batch come back in another order."""

    def batched_log_probabilities(self, rows):
        return super().batched_log_probabilities(rows)[::-1]


class LosesSetting(InProcess):
    """Under its other setting all tokens but the first are lost."""

    settings = ("in physical batches of 32",)

    def set_log_probabilities(self, ids, *, setting):
        return super().set_log_probabilities(ids * 0 + ids[0], setting=setting)


class MixesRequests(InProcess):
    """The answers to requests come back in another order."""

    def concurrent_log_probabilities(self, rows):
        return super().concurrent_log_probabilities(rows)[::-1]


class IgnoresOverrides(InProcess):
    def overridden(self, values):
        return nullcontext()


class LeavesTraces(InProcess):
    @contextmanager
    def overridden(self, values):
        with super().overridden(values):
            yield
        self.module.lm_head.weight.data[:100] *= 1.1


class OtherLayer(InProcess):
    def values(self, ids, *, residual=(), inputs=()):
        found = super().values(ids, residual=residual, inputs=inputs)
        return {n: one[:, :-1] for n, one in found[0].items()}, found[1]


class UntoldToken(InProcess):
    def log_probabilities(self, ids):
        return super().log_probabilities(ids).index_fill(1, ids[3:4], -torch.inf)


@pytest.mark.parametrize(
    ("runtime", "shows", "words"),
    [
        (SaysTooMuch, {Capability.VALUES}, "it shows that"),
        (SumsAboveOne, set(), "at most 1 together"),
        (OneRowTooMany, set(), "log-probabilities, float32"),
        (UntoldToken, set(), "every token that follows"),
        (KeepsAll, set(Capability), "a cache of 8 tokens changes those behind it alone"),
        (LosesAll, set(Capability), "a cache with room for all tokens changes nothing"),
        (ForgetsChunks, set(Capability), "a window in chunks gives what it gives alone"),
        (MixesRows, set(Capability), "7 rows of the first window of a batch"),
        (MixesRequests, set(Capability), "7 rows of the first of two requests at once"),
        (LosesSetting, set(Capability), "a window in physical batches of 32 gives what it gives alone"),
        (IgnoresOverrides, set(Capability), r"writes \+395"),
        (LeavesTraces, set(Capability), "other log-probabilities"),
        (OtherLayer, set(Capability), r"tensors \(T, H\)"),
    ],
)
def test_a_fault_is_named(runtime, shows, words, monkeypatch):
    """Each fault of a runtime is an assertion error that says what was asked and found."""
    with pytest.raises(AssertionError, match=words):
        check_engine(engine(runtime, monkeypatch, shows=shows), ["float"])
