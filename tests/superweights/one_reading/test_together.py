"""A streamed subject is measured in few readings of its file, with the numbers of separate passes."""

from __future__ import annotations

import pytest
import torch

import swcheck
from swcheck.base.records import Limit
from swcheck.base.tiers import TIERS
from swcheck.gate.baseline.measure import measure_for_candidates
from swcheck.gate.checks.nulls import matched_null
from swcheck.lens import likelihood
from swcheck.lens.architecture.anatomy import checked_anatomy
from swcheck.lens.architecture.layer_by_layer import Run, run_together, visited
from swcheck.lens.likelihood import token_nats
from swcheck.lens.non_finite import non_finite_rows
from swcheck.lens.tokens import token_windows
from swcheck.loading import tiny
from swcheck.loading.streaming import pager
from swcheck.loading.streaming.mapped_pages import can_give_back
from swcheck.loading.streaming.pager import pager_of
from swcheck.superweights.measurements import located as locating
from swcheck.superweights.measurements.ablation import ablated_nats, nats_without_matched
from swcheck.superweights.measurements.inputs import prompt_ids, windows
from swcheck.superweights.measurements.located import located
from swcheck.superweights.measurements.residual_stream import (
    answers_finite,
    residual_stream,
    super_activations,
    zeroed_profile,
)
from swcheck.superweights.measurements.scores import (
    first_window_otherwise,
    intact_scores,
    nats_among,
    noise_floor,
    noise_windows,
)
from swcheck.superweights.measurements.weights import map_responses, non_finite_parameters
from swcheck.superweights.one_reading import together as one_reading
from swcheck.superweights.one_reading.together import measure_prompt_together
from swcheck.superweights.subject.as_subject import as_subject
from swcheck.superweights.subject.memory import Memory

pytestmark = pytest.mark.skipif(not can_give_back(), reason="only Linux shows which pages were written to")
IDS = torch.arange(80).view(1, -1)


@pytest.fixture
def streamed(monkeypatch):
    """Makes a streamed subject of tiny, measured on few windows; of a model this small every tensor counts."""
    monkeypatch.setattr(pager, "LEAST", 0)

    def make():
        loaded = swcheck.load("tiny", stream=True, dtype="bfloat16")
        ids = token_windows(loaded.tokenizer, tiny.HELDOUT.read_text(encoding="utf-8"), count=6, length=80)
        subject = as_subject(loaded, token_ids=ids)
        subject.memory, subject.tier = Memory(), TIERS["standard"]
        checked_anatomy(subject.module)  # finds the structure, which reads a layer
        return subject

    return make


@pytest.fixture
def apart(monkeypatch):
    """Switches off what is measured together, so that each number has a reading of its own."""

    def switch_off():
        monkeypatch.setattr(one_reading, "runs_by_layer", lambda _model: False)
        monkeypatch.setattr(locating, "_remember_passes", lambda *_: None)

    return switch_off


def readings(subject, measure):
    """How often ``measure`` reads the file of a streamed subject."""
    own = pager_of(subject.module)
    before, size = own.bytes_read, sum(span.size for span in own.parameters)
    measure()
    return (own.bytes_read - before) / size


def numbers(subject):
    """All numbers that a reading is shared for."""
    ids, weights = prompt_ids(subject), located(subject).super_weights
    place = super_activations(subject, weights)[0]
    nats, predictions = intact_scores(subject)
    return {
        "located": located(subject),
        "finite": answers_finite(subject, ids),
        "residual": residual_stream(subject, ids),
        "zeroed": torch.tensor(zeroed_profile(subject, place, weights, ids)),
        "nats": nats,
        "logs": predictions.logs,
        "alone": first_window_otherwise(subject),
        "noise": torch.tensor(noise_floor(subject)),
        "ablated": ablated_nats(subject, weights),
        "maps": map_responses(subject).values,
    }


def test_the_numbers_are_those_of_separate_passes(streamed, apart):
    """The search, the prompt, the text, its noise, the linear maps and the text with the super weights zeroed."""
    together = streamed()
    measure_for_candidates(together)
    shared = numbers(together)
    apart()
    alone = streamed()
    measure_for_candidates(alone)
    for name, value in numbers(alone).items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(
                shared[name], value, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
            )
        else:
            assert shared[name] == value, name
    assert shared["ablated"].mean() > shared["nats"].mean() + 1  # what was zeroed was zeroed


def test_a_reference_is_read_for_the_prompt_and_for_the_text(streamed, apart):
    """A reading for each, and a part of one for the prompts that were drawn; apart it takes more than twice as many."""
    subject = streamed()
    together = readings(subject, lambda: measure_for_candidates(subject))
    apart()
    other = streamed()
    assert together < 3.2 < 6.5 < readings(other, lambda: measure_for_candidates(other))


def test_the_nats_among_the_ids_of_the_tokenizer_share_the_reading(streamed, monkeypatch):
    """Of a model with more rows than the tokenizer has ids, to which a candidate may be cut down."""
    subject = streamed()
    monkeypatch.setattr(one_reading, "padded_ids", lambda _subject: 1023)
    one_reading.measure_text_together(subject)
    assert nats_among.knows(subject, 1023)
    assert readings(subject, lambda: nats_among(subject, 1023)) == 0
    torch.testing.assert_close(
        nats_among(subject, 1023), token_nats(subject.module, windows(subject), 1023), rtol=1e-3, atol=1e-3
    )


def test_noise_is_that_of_a_batch_also_where_windows_are_scored_alone(streamed, monkeypatch):
    """The first window is scored alone where it was in a batch, and beside a copy where it was alone."""
    subject = streamed()
    assert len(noise_windows(subject)) == 1
    monkeypatch.setattr(likelihood, "LOGITS_AT_ONCE", 1)
    assert len(noise_windows(subject)) == 2
    torch.testing.assert_close(first_window_otherwise(subject), intact_scores(subject)[0][0], rtol=1e-3, atol=1e-3)


def test_all_draws_of_the_matched_null_share_a_reading(streamed, apart):
    """Each draw zeroes other weights, in the layers of the super weights."""
    subject = streamed()
    weights = located(subject).super_weights
    ablated_nats(subject, weights)
    limit = Limit(None, 1.05, "given")
    intact_scores(subject)
    shared = readings(subject, lambda: matched_null(subject, weights, limit, 3))
    together = [nats_without_matched(subject, weights, seed) for seed in range(3)]
    apart()
    other = streamed()
    intact_scores(other)
    assert shared < 1.5 < 2.5 < readings(other, lambda: matched_null(other, weights, limit, 3))
    for seed, nats in enumerate(together):
        torch.testing.assert_close(nats, nats_without_matched(other, weights, seed), rtol=1e-4, atol=1e-4)


def test_the_search_for_nan_goes_beside_the_prompt(streamed):
    """It finds what a search of its own finds, in a layer and in a row of the embedding that no text uses."""
    subject = streamed()
    model = subject.module
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[3, 5] = torch.inf
        model.model.embed_tokens.weight[1001] = torch.nan
    expected = non_finite_rows(model)
    assert set(expected.values()) == {(3,), (1001,)}
    read = readings(subject, lambda: measure_prompt_together(subject, prompt_ids(subject)))
    assert read < 1.4
    assert non_finite_parameters.knows(subject)
    assert non_finite_parameters(subject) == expected


def test_a_pass_that_fails_in_a_visited_layer_holds_nothing_behind(streamed):
    """Neither hooks nor pages stay."""
    model = streamed().module

    def fail(layer):
        raise KeyError(layer)

    with pytest.raises(KeyError, match="0"), visited(model, fail), torch.no_grad():
        model(IDS, use_cache=False)
    assert pager_of(model)._held is None
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.model.layers)


def test_what_does_not_run_layer_by_layer_says_so():
    """A model in memory."""
    with (
        pytest.raises(ValueError, match="does not run layer by layer"),
        run_together(torch.nn.Linear(2, 2), [Run(IDS)]),
    ):
        pass
