"""Measures everything about a reference that a candidate is compared with, so that its weights can be freed."""

from __future__ import annotations

from collections.abc import Sequence

from swcheck.base.limits import DEFAULTS, NULL_DRAWS
from swcheck.base.records import Prompt
from swcheck.gate.checks.activations import compare_activations
from swcheck.gate.checks.contributions import compare_contributions
from swcheck.gate.checks.dependence import collapse, compare_dependence
from swcheck.gate.checks.nulls import largest_null, matched_null
from swcheck.gate.checks.pair import Pair
from swcheck.gate.checks.predictions import compare_perplexity
from swcheck.gate.checks.single_model import perplexity_at_most
from swcheck.gate.relation.candidate_kind import weight_sample
from swcheck.superweights.measurements.ablation import intact_nats
from swcheck.superweights.measurements.configuration import configuration, generation_settings
from swcheck.superweights.measurements.contributions import largest_input_columns, sink_tokens
from swcheck.superweights.measurements.generation import greedy_text
from swcheck.superweights.measurements.inputs import has_bos, prompt_ids, sample_ids, vocabulary_size
from swcheck.superweights.measurements.located import located
from swcheck.superweights.measurements.residual_stream import activation_profile, residual_sketch, super_activations
from swcheck.superweights.measurements.scores import nats_among, padded_ids
from swcheck.superweights.measurements.weights import map_responses, matrix_row, parameter_count
from swcheck.superweights.one_reading.together import measure_text_together
from swcheck.superweights.subject.subject import Subject


def measure_for_candidates(reference: Subject, prompts: Sequence[str | Prompt] = ()) -> None:
    """Measure everything that a candidate is compared with, by comparing the reference with itself.

    The activations are read on the default prompt and on ``prompts``. The numbers are kept in the reference's memory.
    """
    located(reference)  # first: of a streamed model the passes of the search show what others would read the file for
    measure_text_together(reference)
    compare_contributions(Pair("super weights", reference, reference), DEFAULTS["contribution"])
    for chosen in (None, prompts) if prompts else (None,):
        compare_activations(Pair("super activations", reference, reference), chosen, DEFAULTS["activation"])
    compare_perplexity(Pair("perplexity", reference, reference), DEFAULTS["perplexity"], None)
    if reference.tier.causal:
        compare_dependence(Pair("dependence", reference, reference), DEFAULTS["dependence"])
    greedy_text(reference)
    intact_nats(reference)  # every proof of a cause needs them, also without super weights
    weights, prompt = located(reference).super_weights, prompt_ids(reference)
    for weight in weights:
        matrix_row(reference, weight)
    for weight, sink in zip(weights, sink_tokens(reference, weights, prompt) if weights else (), strict=True):
        largest_input_columns(reference, weight, prompt, sink)
    for place in super_activations(reference, weights):
        activation_profile(reference, place, prompt)
    residual_sketch(reference, prompt)
    map_responses(reference)
    configuration(reference)
    generation_settings(reference)
    sample_ids(reference)
    weight_sample(reference)
    _ = (vocabulary_size(reference), parameter_count(reference), has_bos(reference))
    if (tokens := padded_ids(reference)) > 0:
        nats_among(reference, tokens)


def measure_own_checks(reference: Subject) -> None:
    """Measure what the checks of the reference alone need in addition: its perplexity, its collapse, its nulls."""
    weights = located(reference).super_weights
    perplexity_at_most(reference, None)
    if not reference.tier.causal:
        return
    collapse(reference, weights, DEFAULTS["collapse"])
    matched_null(reference, weights, DEFAULTS["null"], NULL_DRAWS)
    largest_null(reference, weights, DEFAULTS["others"])
