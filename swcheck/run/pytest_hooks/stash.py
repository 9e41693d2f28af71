"""State of a run that is kept in ``pytest.Config.stash``, and small questions about a config or a test item."""

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
TAKEN_ALIASES: pytest.StashKey[Sequence[Option]] = pytest.StashKey()
"""The options whose short alias (``--model``, ``--candidate``) belongs to another plugin."""

SHOWN_ROWS: pytest.StashKey[dict[Specs, dict[tuple[str, str], str]]] = pytest.StashKey()
"""For each model and candidate: the rows (name, text) that failures have shown, with the test that showed each."""


INTERRUPTED: pytest.StashKey[bool] = pytest.StashKey()
"""Whether the run was interrupted: by Ctrl-C, by ``pytest.exit``, or by an internal error of pytest or a plugin."""


def settings_of(config: pytest.Config) -> Settings | None:
    """Return the settings of this run; None if it was given no option of swcheck."""
    return config.stash.get(SETTINGS, None)


def specs_of(item: pytest.Item) -> Specs:
    """Return the specs of the model and the candidate that a test is parametrized with; None for a missing one."""
    params = getattr(getattr(item, "callspec", None), "params", {})
    return params.get("swcheck_spec"), params.get("swcheck_candidate_spec")


def is_worker(config: pytest.Config) -> bool:
    """Return whether this process is a worker of xdist; workers write no files and print nothing."""
    return hasattr(config, "workerinput")


@contextmanager
def uncaptured(config: pytest.Config) -> Iterator[None]:
    """Suspend pytest's capture, so that output inside the block is visible at once: a download may take an hour."""
    capture = config.pluginmanager.get_plugin("capturemanager")
    if capture is None or is_worker(config):
        yield
    else:
        with capture.global_and_fixture_disabled():
            yield
