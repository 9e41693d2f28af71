"""Compares the configurations of a candidate and its reference."""

from __future__ import annotations

from typing import Any

from swcheck.superweights.measurements.configuration import (
    configuration,
    differing_fields,
    field_words,
    generation_settings,
)
from swcheck.superweights.measurements.inputs import vocabulary_size
from swcheck.superweights.measurements.scores import shared_ids
from swcheck.superweights.subject.subject import Subject


def configuration_differences(candidate: Subject, reference: Subject) -> dict[str, tuple[Any, Any]]:
    """Return by name the values, the candidate's and the reference's, of the fields that can change a number and differ.

    Empty where the reference's configuration is not known, as from a baseline of an older version.
    """
    known = reference.is_measurable or configuration.knows(reference)
    if candidate is reference or candidate.is_runtime or not known:
        return {}
    theirs = configuration(reference)  # first: it may need the reference in memory
    return differing_fields(configuration(candidate), theirs)


def configuration_words(candidate: Subject, reference: Subject) -> tuple[str, ...]:
    """Return the differences in words, as ``rope_theta 50 for 10,000``."""
    found = configuration_differences(candidate, reference)
    words = tuple(field_words(name, *values) for name, values in found.items())
    return words + _vocabulary_words(candidate, reference) + _generation_words(candidate, reference)


def _vocabulary_words(candidate: Subject, reference: Subject) -> tuple[str, ...]:
    """Return that the two vocabularies have other sizes, and on which ids they are scored then."""
    known = reference.is_measurable or vocabulary_size.knows(reference)
    if candidate is reference or not known or vocabulary_size(candidate) == vocabulary_size(reference):
        return ()
    words = field_words("vocab_size", vocabulary_size(candidate), vocabulary_size(reference))
    count = shared_ids(candidate, reference)
    return (words if count is None else f"{words}: both are scored on the {count:,} ids they share",)


def _generation_words(candidate: Subject, reference: Subject) -> tuple[str, ...]:
    """Return differences in what generation alone reads: no check measures them, so they are only said."""
    known = reference.is_measurable or generation_settings.knows(reference)
    if candidate is reference or candidate.is_runtime or not known:
        return ()
    theirs, ours = generation_settings(reference), generation_settings(candidate)
    ends = (f"eos_token_id {ours[0]} for {theirs[0]}, which generation alone reads",) if ours[0] != theirs[0] else ()
    return ends + (("another chat template",) if ours[1] != theirs[1] else ())
