"""The shipped checks: short, readable tests that use only the public fixtures and assertions.

``test_model`` speaks of a model on its own, ``test_candidate`` of a candidate beside it; without a candidate those are
skipped. The marker names the check as the report does.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, Phase, configuration, given, seed, settings

from swcheck.checks import conclude
from swcheck.plugin import SEED
from swcheck.records import Limit, Outcome, Verdict
from swcheck.strategies import prompt_lists
from swcheck.subject import Subject

FEW: Final = settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=False,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
"""Few examples, each a list of prompts scored in one pass; no shrinking, a pass of a large model is not cheap."""


def for_any_prompts(check: Callable[[list[str]], None], reference: Subject) -> None:
    """Call ``check`` with a few lists of prompts that hypothesis draws.

    Drawn once per reference and kept with its numbers, so that a candidate, perhaps in another run against a baseline,
    is asked what the reference was asked: what hypothesis draws depends on the modules that are loaded.
    """
    for prompts in reference.once("prompts", drawn_prompts):
        check(list(prompts))


def drawn_prompts() -> tuple[tuple[str, ...], ...]:
    """A few lists of prompts."""
    found: list[tuple[str, ...]] = []

    @seed(SEED)
    @FEW
    @given(prompts=prompt_lists(size=24))
    def draw(prompts: list[str]) -> None:
        found.append(tuple(prompts))

    with nothing_written():
        draw()
    return tuple(found)


@contextmanager
def nothing_written() -> Iterator[None]:
    """Let hypothesis keep its tables of characters out of the working directory."""
    home: Any = configuration.storage_directory(intent_to_write=False)
    with tempfile.TemporaryDirectory() as elsewhere:
        configuration.set_hypothesis_home_dir(elsewhere)
        try:
            yield
        finally:
            configuration.set_hypothesis_home_dir(Path(getattr(home, "path", home)))


def asked(limit: Limit) -> Limit:
    """A limit that was asked for; else an open one, which leaves the choice to the assertion: it knows the scheme."""
    return limit if limit.source == "given" else Limit(None, None, "")


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
