"""``--swcheck-device-map``: refused where it makes no sense; what accelerate does with it is tested among the plugins."""

from __future__ import annotations

from tests.plugin import refused


def test_an_unknown_map_is_refused(inner):
    """A word that accelerate does not know is a usage error with those it does."""
    refused(inner("--model=tiny", "--swcheck-device-map=everywhere"), "known: auto, balanced")


def test_a_map_and_a_device_are_two_answers(inner):
    """Together with a device it is refused."""
    refused(
        inner("--model=tiny", "--swcheck-device-map=auto", "--swcheck-device=cpu"),
        "two answers to where a model is put",
    )


def test_without_accelerate_the_install_line_is_given(inner, monkeypatch):
    """The package is optional, and the error names the extra that brings it."""
    monkeypatch.setattr("swcheck.loading.engines.find_spec", lambda _name: None)
    refused(
        inner("--model=tiny", "--swcheck-device-map=auto"),
        "accelerate is not installed",
        "pip install 'swcheck[device-map]'",
    )
