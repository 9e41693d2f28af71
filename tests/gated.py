"""A candidate through the checks of the gate, until one is red."""

from __future__ import annotations

from swcheck import (
    RobustnessError,
    assert_perplexity_within,
    assert_predictions_preserved,
    assert_super_weights_preserved,
)
from swcheck.superweights.subject.as_subject import as_subject

CHECKS = (assert_perplexity_within, assert_predictions_preserved, assert_super_weights_preserved)


def first_red(made, reference):
    """The first red verdict of a candidate whose kind the weights decide; None where all are green."""
    subject = as_subject(made)
    subject.kind = "auto"
    for check in CHECKS:
        try:
            check(subject, reference)
        except RobustnessError as error:
            return error.verdict
    return None
