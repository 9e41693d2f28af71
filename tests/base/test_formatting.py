"""Numbers as people read them."""

from __future__ import annotations

import pytest

from swcheck.base.formatting import format_duration, format_size


@pytest.mark.parametrize(
    ("span", "words"), [(0.01, "~1 s"), (3.4, "~3 s"), (89, "~89 s"), (240, "~4 min"), (7200, "~2 h")]
)
def test_times_are_spoken(span, words):
    """Seconds, minutes, hours, never more digits than are known."""
    assert format_duration(span) == words


@pytest.mark.parametrize(("size", "words"), [(6_957_592, "7 MB"), (1000, "1 MB"), (13_476_000_000, "13.5 GB")])
def test_sizes_are_spoken(size, words):
    """Megabytes and gigabytes."""
    assert format_size(size) == words
