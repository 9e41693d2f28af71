"""Kernels that depend on the shape are red with the shape named; what rounds otherwise, or the reference shows too, is not."""

from __future__ import annotations

import copy
import inspect
from dataclasses import replace

import pytest
import torch
from transformers import StaticCache

import swcheck
from swcheck import (
    CheckpointError,
    Loaded,
    Outcome,
    RobustnessError,
    Scheme,
    all_verdicts,
    assert_perplexity_within,
    token_windows,
)
from swcheck.gate.checks.serving.shapes import has_own_kernels, is_swept, sweep
from swcheck.lens.architecture.anatomy import anatomy
from swcheck.superweights.measurements.scores import intact_scores
from swcheck.superweights.subject.as_subject import as_subject
from tests.in_process_runtime import InProcess
from tests.planted import Packed

ALONE, IN_BATCH = 9, 4
CHUNKED = 5
"""Chunks of 32, of 33, uneven ones, single tokens, and chunks through a static cache."""


class Kernel(Packed):
    """A packed map whose kernel is wrong in some rows of its output ``(B, T, H)``: ``fault`` says in which."""

    def __init__(self, plain, fault):
        super().__init__(plain)
        self.fault = fault

    def forward(self, x):
        out = super().forward(x)
        wrong = torch.zeros(out.shape[:2], dtype=torch.bool)
        self.fault(wrong)
        return torch.where(wrong[..., None], out.roll(1, -1), out)


def sound(_wrong):
    """No row."""


def tail(wrong):
    """Rows past the last multiple of 32, of all that are multiplied."""
    rows = wrong.view(-1)
    rows[len(rows) // 32 * 32 :] = True


def batch_rows(wrong):
    """Each row of a batch but the first."""
    wrong[1:] = True


def single(wrong):
    """A token alone: the kernel for generating."""
    wrong[:] = wrong.numel() == 1


def other_than(length):
    """Every pass but those of a whole window and of its beginnings."""

    def fault(wrong):
        wrong[:] = wrong.shape[1] == length

    return fault


def packed(tiny, fault):
    """Tiny with a packed up projection in layer 3, of such a kernel."""
    model = copy.deepcopy(tiny.model)
    mlp = anatomy(model).layers[3].mlp
    mlp.up_proj = Kernel(mlp.up_proj, fault)
    return Loaded(model, tiny.tokenizer, "packed", tiny.text, scheme=Scheme("absmax", 8))


@pytest.fixture(scope="module")
def reference(tiny):
    """tiny, measured on four windows of its own text that are a multiple of 32 long."""
    return as_subject(tiny, token_ids=token_windows(tiny.tokenizer, tiny.text, count=4, length=160))


def judged(candidate, reference):
    """The verdict, red or not."""
    try:
        return assert_perplexity_within(candidate, reference)
    except RobustnessError as error:
        return error.verdict


@pytest.mark.slow
def test_a_good_kernel_is_green_in_every_shape(tiny, reference):
    """And the report says how many were scored."""
    verdict = judged(packed(tiny, sound), reference)
    assert verdict.outcome in {Outcome.PASSED, Outcome.NEAR}
    assert len(verdict.facts["shapes"]["scored"]) == ALONE + IN_BATCH + 1 + CHUNKED
    assert max(map(abs, verdict.facts["shapes"]["scored"].values())) < 1e-4
    assert "; 19 other shapes within " in verdict.summary


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "shape"),
    [
        (tail, "31 tokens alone"),
        (single, "single tokens x"),
        (other_than(33), "33 tokens alone"),
    ],
    ids=["tail", "single token", "one length"],
)
def test_a_fault_in_one_shape_is_red_by_its_name(tiny, reference, fault, shape):
    """Whole windows pass; the shape that departs most is the first word of the cause, with what it costs."""
    verdict = judged(packed(tiny, fault), reference)
    assert verdict.outcome is Outcome.FAILED
    assert verdict.cause_kind == "kernels"
    assert verdict.cause.startswith(f"the kernels of this candidate depend on the shape: {shape}")
    assert verdict.measured > 1.05
    assert "another kernel or backend" in verdict.attempt


@pytest.mark.slow
def test_a_fault_in_further_rows_of_a_batch_is_named_in_every_check(tiny, reference):
    """There the whole windows lose, which are scored together, and one of them alone does not."""
    found = all_verdicts(packed(tiny, batch_rows), reference)
    for check in ("perplexity", "predictions"):
        assert found[check].cause_kind == "kernels"
        assert "depend on the shape: the last window alone x0." in found[check].cause
    assert any(" tokens in a batch of 4 x1." in text for name, text in found["perplexity"].detail if name == "also")


@pytest.mark.slow
def test_a_type_of_cache_that_loses_is_red_by_its_name(tiny, reference):
    """A model that reads a static cache wrongly, and any other right."""
    candidate = packed(tiny, sound)
    inner = candidate.model.forward

    def forward(*args, **options):
        cache = next((one for one in options.values() if isinstance(one, StaticCache)), None)
        answer = inner(*args, **options)
        if cache is not None:
            answer.logits = answer.logits.roll(1, -1)
        return answer

    candidate.model.forward = forward
    candidate.model.forward.__signature__ = inspect.signature(inner)
    verdict = judged(candidate, reference)
    assert verdict.cause_kind == "kernels"
    assert ", static KV cache x" in verdict.cause


@pytest.mark.slow
def test_a_setting_of_a_runtime_that_loses_is_red_by_its_name(reference):
    """What it computes under that alone is lost; a setting that it cannot have is said, and is not red."""

    class Sets(InProcess):
        settings = ("in physical batches of 32", "without flash attention", "with flash attention")
        lost = ""

        def set_log_probabilities(self, ids, *, setting):
            if setting == "without flash attention":
                raise CheckpointError("a context", "none without it", "with it")
            logs = super().set_log_probabilities(ids, setting=setting)
            return logs.roll(1, -1) if setting == self.lost else logs

    runtime = Sets(swcheck.load("tiny", device="cpu"))
    candidate = Loaded(runtime, reference.tokenizer, "sets", reference.text, scheme=Scheme("absmax", 8))
    verdict = judged(candidate, reference)
    assert verdict.outcome is Outcome.PASSED
    assert "; not in other shapes: 65 tokens without flash attention (none without it)" in verdict.summary
    runtime.lost = "in physical batches of 32"
    verdict = judged(candidate, reference)
    assert verdict.cause.startswith("the kernels of this candidate depend on the shape: 65 tokens in physical batches")


@pytest.mark.slow
def test_chunks_behind_a_cache_of_few_bits_may_differ_by_more(reference):
    """A tenth of a nat is red by the shape's name, but of a runtime whose own cache is coarse, and where inputs are rounded."""

    class Loses(InProcess):
        def chunked_log_probabilities(self, ids, *, cuts, cache=""):
            return super().chunked_log_probabilities(ids, cuts=cuts, cache=cache) - 0.1

    runtime = Loses(swcheck.load("tiny", device="cpu"))
    candidate = Loaded(runtime, reference.tokenizer, "loses", reference.text, scheme=Scheme("absmax", 8))
    assert "depend on the shape: chunks of 32 x1.105" in judged(candidate, reference).cause
    runtime.coarse_cache = True
    assert judged(candidate, reference).outcome is Outcome.PASSED
    runtime.coarse_cache = False
    assert judged(replace(candidate, scheme=Scheme("int8", 8, 8)), reference).outcome is Outcome.PASSED


@pytest.mark.slow
def test_a_kernel_that_refuses_a_length_is_red(tiny, reference):
    """With what it says."""

    def refuses(wrong):
        if wrong.shape == (1, 33):
            raise RuntimeError("M has to be even")

    verdict = judged(packed(tiny, refuses), reference)
    assert verdict.outcome is Outcome.FAILED
    assert "33 tokens alone ends in an error" in verdict.cause
    assert verdict.detail[0] == ("proof", "33 tokens alone: RuntimeError: M has to be even")


@pytest.mark.slow
def test_what_the_reference_shows_too_is_no_fault(tiny):
    """A model that means to answer short prompts otherwise, as some scale their positions."""
    models = [copy.deepcopy(tiny.model) for _ in range(2)]
    for model in models:
        mlp = anatomy(model).layers[3].mlp
        mlp.up_proj = Kernel(mlp.up_proj, other_than(33))
    ids = token_windows(tiny.tokenizer, tiny.text, count=2, length=160)
    reference = as_subject(models[0], token_ids=ids)
    verdict = judged(models[1], reference)
    assert verdict.outcome is Outcome.PASSED
    assert verdict.facts["shapes"]["shared"] == ["33 tokens alone", "chunks of 33"]
    assert "; 33 tokens alone +" in verdict.summary
    assert "as the reference" in verdict.summary


@pytest.mark.slow
def test_where_nothing_is_judged_a_fault_of_kernels_is(tiny, reference):
    """A fine-tuned candidate, whose perplexity is only reported, is held to what its own whole windows have."""
    ours = as_subject(packed(tiny, tail))
    ours.kind = "finetuned"
    assert judged(ours, reference).cause_kind == "kernels"


def test_torchs_own_maps_are_swept_where_it_is_asked_for(tiny, reference):
    """Packed maps always are."""
    plain = as_subject(tiny)
    assert not has_own_kernels(plain)
    assert not is_swept(plain)
    plain.sweep_shapes = True
    assert is_swept(plain)
    assert is_swept(as_subject(packed(tiny, sound)))


def test_streamed_weights_are_not_read_again_for_each_shape(reference):
    """It is said."""
    import swcheck

    streamed = as_subject(swcheck.load("tiny", device="cpu", dtype="bfloat16", stream=True))
    streamed.sweep_shapes = True
    found = sweep(streamed, reference)
    assert not found.found
    assert found.words == "; not in other shapes: its weights are read again for each"


@pytest.mark.slow
def test_without_the_reference_chunks_are_not_judged(tiny):
    """Of one that is known by its baseline alone the lengths and batches are scored, and what is left out is said."""
    reference = as_subject(copy.deepcopy(tiny.model), tokenizer=tiny.tokenizer)
    reference = as_subject(reference, token_ids=token_windows(tiny.tokenizer, tiny.text, count=2, length=160))
    intact_scores(reference)
    reference.owner = None
    reference.free()
    found = sweep(as_subject(packed(tiny, tail)), reference)
    assert found.worst.shape == "31 tokens alone"
    assert not any("chunks" in one.shape for one in found.found)
    assert list(found.lacking) == ["a window in chunks (that needs the reference in memory)"]
