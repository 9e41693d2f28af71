"""The verdicts of all checks of a candidate, red ones too: what tests of an engine compare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from swcheck.base.errors import RobustnessError
from swcheck.base.records import Verdict
from swcheck.gate.assertions import (
    assert_collapses_when_zeroed,
    assert_perplexity_within,
    assert_predictions_preserved,
    assert_super_activations_preserved,
    assert_super_weights_preserved,
)
from swcheck.superweights.subject.as_subject import as_subject

if TYPE_CHECKING:
    import torch

CHECKS: Final = (
    assert_super_weights_preserved,
    assert_super_activations_preserved,
    assert_perplexity_within,
    assert_predictions_preserved,
    assert_collapses_when_zeroed,
)


def all_verdicts(
    candidate: Any, reference: Any, *, tokenizer: Any = None, token_ids: torch.Tensor | None = None
) -> dict[str, Verdict]:
    """Return the verdict of each check that compares ``candidate`` with ``reference``, by the check's name.

    The arguments are those of the assertions; what was measured is shared between the checks. A red verdict is returned
    as any other. Raises what an assertion raises besides ``RobustnessError``.
    """
    candidate, reference = (as_subject(one, tokenizer=tokenizer, token_ids=token_ids) for one in (candidate, reference))
    found = {}
    for check in CHECKS:
        try:
            verdict = check(candidate, reference)
        except RobustnessError as error:
            verdict = error.verdict
        found[verdict.check] = verdict
    return found
