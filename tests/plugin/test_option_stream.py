"""``--swcheck-stream``: the run says so, its numbers are those of a model in memory, and it is of the CPU alone."""

from __future__ import annotations

import json

import pytest

from swcheck.loading.streaming.mapped_pages import can_give_back
from tests.plugin import refused


@pytest.mark.slow
@pytest.mark.skipif(not can_give_back(), reason="only Linux shows which pages were written to")
def test_a_streamed_gate_has_the_numbers_of_a_loaded_one(pytester, inner):
    """Of perplexity; the estimate says how often its file is read."""
    words = "--model=tiny", "--swcheck-dtype=bfloat16", "-k", "test_perplexity"
    measured = {}
    for name, more in (("loaded", ()), ("streamed", ("--swcheck-stream",))):
        result = inner(*words, *more, f"--swcheck-json={name}.json")
        assert result.ret == 0
        verdicts = json.loads((pytester.path / f"{name}.json").read_text())["verdicts"]
        measured[name] = {one["check"]: one["measured"] for one in verdicts if one["measured"] is not None}
    result.stdout.fnmatch_lines(["*; streamed, its file read from the disk: tiny about 4 times*"])
    assert measured["streamed"] == pytest.approx(measured["loaded"], rel=0.01)
    assert measured["loaded"]


def test_it_is_of_the_cpu(inner):
    """With a device map, or another device, it is refused before anything is loaded."""
    words = "a streamed model runs on the CPU alone"
    refused(inner("--model=tiny", "--swcheck-stream", "--swcheck-device-map=auto"), words)
    refused(inner("--model=tiny", "--swcheck-stream", "--swcheck-device=meta"), words)
