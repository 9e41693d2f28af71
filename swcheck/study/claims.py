"""The paper's claims as an assertion: what a study measures passes or fails, like every other check."""

from __future__ import annotations

from typing import Any

from swcheck.base.records import Verdict
from swcheck.gate.conclusion import conclude
from swcheck.study.catalogue import chapter
from swcheck.study.common.setup import Setup, setup_of
from swcheck.study.runner import measured


def assert_paper_claim(model: Any, name: str, *, setup: Setup | None = None) -> tuple[Verdict, ...]:
    """Take the study ``name`` of ``model`` and return the verdicts of what it claims; the worst red one is raised.

    ``model`` is what ``load`` returns. ``setup`` saves what several studies of one model share. Raises
    ``RobustnessError`` for a claim that does not hold, ``OptionError`` for an unknown name or a model without any super
    weight. A study that only reports has no verdicts.
    """
    __tracebackhide__ = True
    chosen = setup_of(model) if setup is None else setup
    verdicts = chapter(name).judge(measured(chosen, name))
    for verdict in sorted(verdicts, key=lambda one: one.red):
        conclude(verdict, chosen.subject)
    return verdicts
