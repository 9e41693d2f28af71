"""The shipped checks: short tests that use the public fixtures and assertions.

``test_model`` checks a model alone, ``test_candidate`` compares a candidate with it and is skipped without a candidate,
``test_paper`` runs the studies of the paper. The marker ``swcheck`` gives each test the name of its check in the
report.
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

    They are drawn once for each reference and kept with its measurements. So a candidate is given the same prompts,
    also in another run against a baseline; what hypothesis draws depends on the modules that are imported.
    """
    check(DRAWN_PROMPTS.recall(reference, (), drawn_prompts))


def given_or_open(limit: Limit) -> Limit:
    """Return a limit that the user gave; for a default return an open one, and the assertion chooses by the scheme."""
    return Limit(None, None, "") if limit in DEFAULTS.values() else limit


def skip_without_causal_checks(subject: Subject) -> None:
    """Skip a test that zeroes weights in a tier without such checks (``smoke``)."""
    if not subject.tier.causal:
        pytest.skip(f"not in the {subject.tier.name} tier: pytest --swcheck-tier=standard")


def skip_if_not_applicable(verdict: Verdict) -> None:
    """Skip the test if the verdict is that the check does not apply to this model, with the reason of the verdict."""
    if verdict.outcome is Outcome.NOT_APPLICABLE:
        pytest.skip(verdict.summary)


def fail_if_nothing_to_guard(verdict: Verdict, subject: Any, *, allow_none: bool) -> None:
    """Fail if the model has no super weights, unless ``allow_none``: a gate that checks nothing must not be green."""
    if verdict.outcome is Outcome.NOT_APPLICABLE and not allow_none:
        cause, attempt = "nothing to guard", "--swcheck-allow-none, if that is as it should be for this model"
        conclude(replace(verdict, outcome=Outcome.FAILED, cause=cause, attempt=attempt), subject)
    skip_if_not_applicable(verdict)
