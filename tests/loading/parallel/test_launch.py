"""Which process of torchrun this is: read from torchrun's own variables, and from nothing less."""

from __future__ import annotations

import pytest

from swcheck.base.terminal.visible import is_silent, tell
from swcheck.loading.parallel.launch import Launch, launch

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}


def test_a_process_of_torchrun_knows_its_number():
    """Of all processes, and of those of its machine."""
    assert launch(TORCHRUN) == Launch(rank=3, count=4, local_rank=1)
    assert not launch(TORCHRUN).is_first
    assert launch({**TORCHRUN, "RANK": "0"}).is_first


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {name: value for name, value in TORCHRUN.items() if name != "TORCHELASTIC_RUN_ID"},
        {name: value for name, value in TORCHRUN.items() if name != "LOCAL_RANK"},
        {**TORCHRUN, "RANK": "first"},
        {**TORCHRUN, "WORLD_SIZE": "-1"},
    ],
)
def test_anything_less_is_no_process_of_torchrun(environment):
    """Variables of the same names are set by other launchers and in notebooks, too."""
    assert launch(environment) is None


def test_all_but_the_first_process_are_silent(monkeypatch, capsys):
    """A line that one process tells is not told by the others."""
    tell("once")
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert is_silent()
    tell("again")
    monkeypatch.setenv("RANK", "0")
    tell("by the first")
    assert capsys.readouterr().err == "swcheck: once\nswcheck: by the first\n"
