"""Two configurations are compared by the fields that can change a number."""

from __future__ import annotations

import copy
import json

import pytest

from swcheck.superweights.measurements.configuration import (
    configuration,
    differing_fields,
    field_words,
    with_field,
)
from swcheck.superweights.subject.as_subject import as_subject


@pytest.fixture
def fields(tiny):
    return json.loads(configuration(as_subject(tiny)))


def changed(fields, name, value):
    other = copy.deepcopy(fields)
    with_field(other, name, value)
    return differing_fields(json.dumps(other), json.dumps(fields))


@pytest.mark.parametrize(
    ("name", "value"),
    [("hidden_act", "gelu"), ("rms_norm_eps", 1e-5), ("rope_parameters.rope_theta", 50.0), ("num_attention_heads", 2)],
)
def test_a_field_with_an_effect_is_found_with_both_values(fields, name, value):
    """Nested fields have dots in their names; the candidate's value comes first."""
    (found,) = changed(fields, name, value).items()
    assert found[0] == name
    assert found[1][0] == value
    assert found[1][1] != value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_cache", False),
        ("eos_token_id", 7),
        ("_name_or_path", "x"),
        ("attention_dropout", 0.1),
        ("dtype", "float16"),
    ],
)
def test_a_field_without_effect_is_not_compared(fields, name, value):
    """What is read by training or generation alone, or names the checkpoint, is no difference."""
    assert changed(fields, name, value) == {}


def test_another_type_of_model_is_not_compared(fields):
    """Two families share names of fields that mean different things."""
    assert (
        differing_fields(json.dumps({**fields, "model_type": "mistral", "rms_norm_eps": 1}), json.dumps(fields)) == {}
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        (50.0, 10000.0, "rope_theta 50 for 10,000"),
        (1e-5, 1e-6, "rope_theta 1e-05 for 1e-06"),
        (None, 4096, "rope_theta none for 4,096"),
        (True, False, "rope_theta True for False"),
        ("gelu", "silu", "rope_theta gelu for silu"),
    ],
)
def test_a_difference_in_words(ours, theirs, words):
    """The last part of the name, the candidate's value for the reference's."""
    assert field_words("rope_parameters.rope_theta", ours, theirs) == words
