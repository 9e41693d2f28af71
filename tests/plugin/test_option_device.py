"""``--swcheck-device``: a device this machine does not have is refused before anything is loaded."""

from __future__ import annotations

import pytest

from tests.plugin import refused


@pytest.mark.parametrize("name", ["cuda:99", "nonsense", "meta", "cpu:x"])
def test_a_device_that_is_not_there(inner, name):
    """A device that cannot hold a number is a usage error."""
    refused(inner("--model=tiny", f"--swcheck-device={name}"), f"device {name!r}", "leave it out")


def test_an_empty_device(inner):
    """An empty value is refused, not taken for none."""
    refused(inner("--model=tiny", "--swcheck-device="), "--swcheck-device\n  found: an empty value")


@pytest.mark.slow
def test_the_model_is_on_it(inner, pytester):
    """The model under test has its parameters where they were asked for."""
    pytester.makepyfile("def test_it(swcheck_model): assert swcheck_model.model.device.type == 'cpu'")
    inner("--model=tiny", "--swcheck-device=cpu", "test_the_model_is_on_it.py").assert_outcomes(passed=1)
