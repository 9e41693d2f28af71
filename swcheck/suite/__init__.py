"""The shipped checks: short, readable tests that use only the public fixtures and assertions.

``test_model`` speaks of a model on its own, ``test_candidate`` of a candidate beside it; without a candidate those are
skipped. The marker names the check as the report does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from swcheck.base.limits import DEFAULTS
from swcheck.base.records import Limit, Outcome, Prompt, Verdict
from swcheck.gate.conclusion import conclude
from swcheck.strategies import drawn_prompts
from swcheck.superweights.measurements.inputs import DRAWN_PROMPTS
from swcheck.superweights.subject.subject import Subject


def for_any_prompts(check: Callable[[Sequence[Prompt]], None], reference: Subject) -> None:
    """Call ``check`` with the prompts that hypothesis draws.

    Drawn once per reference and kept with its numbers, so that a candidate, perhaps in another run against a baseline,
    is asked what the reference was asked: what hypothesis draws depends on the modules that are loaded.
    """
    check(DRAWN_PROMPTS.recall(reference, (), drawn_prompts))


def asked(limit: Limit) -> Limit:
    """A limit that is no default; else an open one, which leaves the choice to the assertion: it knows the scheme."""
    return Limit(None, None, "") if limit in DEFAULTS.values() else limit


def affordable(subject: Subject) -> None:
    """Skip the test in a tier that measures nothing but weights, activations and perplexity."""
    if not subject.tier.causal:
        pytest.skip(f"not in the {subject.tier.name} tier: pytest --swcheck-tier=standard")


def applicable(verdict: Verdict) -> None:
    """Skip the test, with the verdict's words, where it does not apply to this model."""
    if verdict.outcome is Outcome.NOT_APPLICABLE:
        pytest.skip(verdict.summary)


def guarding(verdict: Verdict, subject: Any, *, allow_none: bool) -> None:
    """Fail where there is nothing to guard, unless that was allowed: a gate that guards nothing must not be green."""
    if verdict.outcome is Outcome.NOT_APPLICABLE and not allow_none:
        cause, attempt = "nothing to guard", "--swcheck-allow-none, if that is as it should be for this model"
        conclude(replace(verdict, outcome=Outcome.FAILED, cause=cause, attempt=attempt), subject)
    applicable(verdict)
