"""Which worker of pytest-xdist runs a check: those of one model, and those of one candidate, stay together.

Each worker loads and scores what its checks need. Spread test by test, every worker would load every candidate. xdist's
own groups (``--dist loadgroup``) are marked in node ids, which pytest from 9.2 on does not read any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import pytest

from swcheck.run.pytest_hooks.collection import suite_is_included
from swcheck.run.pytest_hooks.stash import settings_of

if TYPE_CHECKING:
    from xdist.scheduler import LoadGroupScheduling

TOGETHER: Final = frozenset({"load", "loadgroup"})
"""The values of ``--dist`` under which checks stay together: the default of ``-n``, and the one that asks for groups."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadGroupScheduling | None:
    """Return a scheduler that keeps the checks of a model or candidate in one worker, for a run that has the suite."""
    settings = settings_of(config)
    if settings is None or not suite_is_included(config) or config.getoption("dist") not in TOGETHER:
        return None
    from xdist.scheduler import LoadGroupScheduling

    names = [[settings.name_of(spec) for spec in specs] for specs in (settings.candidates, settings.models)]

    class ByModel(LoadGroupScheduling):  # type: ignore[misc]
        """Work units are the checks of one candidate, of one model alone, and what the user's own groups say."""

        def _split_scope(self, nodeid: str) -> str:
            return scope_of(nodeid, *names) or str(super()._split_scope(nodeid))

    return ByModel(config, log)


def scope_of(nodeid: str, candidates: Sequence[str], models: Sequence[str]) -> str:
    """Return the candidate that a test is run for, else its model, as the parameters in its node id say; empty for none."""
    given = f"-{nodeid.partition('[')[2].rpartition(']')[0]}-"
    for names in (candidates, models):
        found = [name for name in names if f"-{name}-" in given]
        if found:
            return max(found, key=len)
    return ""
