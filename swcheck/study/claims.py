"""The paper's claims as an assertion: the result of a study passes or fails like any other check."""

from __future__ import annotations

from typing import Any

from swcheck.base.records import Verdict
from swcheck.gate.conclusion import conclude
from swcheck.study.catalogue import chapter_of
from swcheck.study.common.setup import Setup, setup_of
from swcheck.study.runner import measure_study


def assert_paper_claim(model: Any, name: str, *, setup: Setup | None = None) -> tuple[Verdict, ...]:
    """Run the study ``name`` on ``model`` and return the verdicts on its claims; raise the worst one that fails.

    ``model`` is what ``load`` returns. ``setup`` is shared by several studies of one model, which saves time. A study
    that only reports returns no verdicts. Raises ``RobustnessError`` for a claim that does not hold, ``OptionError``
    for an unknown name or a model without super weights.
    """
    __tracebackhide__ = True
    study_setup = setup_of(model) if setup is None else setup
    verdicts = chapter_of(name).judge(measure_study(study_setup, name))
    for verdict in sorted(verdicts, key=lambda verdict: verdict.red):
        conclude(verdict, study_setup.subject)
    return verdicts
