"""What a run of pytest keeps for swcheck, and what the rooms of the skin ask of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from swcheck.run.options import Option
    from swcheck.run.session import Session
    from swcheck.run.settings import Settings

Specs = tuple[str | None, str | None]

SETTINGS: pytest.StashKey[Settings] = pytest.StashKey()
SESSION: pytest.StashKey[Session] = pytest.StashKey()
TAKEN: pytest.StashKey[Sequence[Option]] = pytest.StashKey()
"""The options whose short alias belongs to another plugin."""

TOLD: pytest.StashKey[dict[Specs, dict[tuple[str, str], str]]] = pytest.StashKey()
"""The rows that failures have shown so far, by model and candidate, each with the test that showed it."""


def settings_of(config: pytest.Config) -> Settings | None:
    """What this run asked swcheck for, None where it asked for nothing."""
    return config.stash.get(SETTINGS, None)


def specs_of(item: pytest.Item) -> Specs:
    """The model and the candidate that a test is about, as they were asked for; None where it is about none."""
    params = getattr(getattr(item, "callspec", None), "params", {})
    return params.get("swcheck_spec"), params.get("swcheck_candidate_spec")


def is_worker(config: pytest.Config) -> bool:
    """Whether this process is one of xdist's workers, which write nothing."""
    return hasattr(config, "workerinput")


@contextmanager
def uncaptured(config: pytest.Config) -> Iterator[None]:
    """Let what is written meanwhile be seen: a download may take an hour."""
    capture = config.pluginmanager.get_plugin("capturemanager")
    if capture is None or is_worker(config):
        yield
    else:
        with capture.global_and_fixture_disabled():
            yield
