"""``--swcheck-tier``: how much is measured, what is left out, and that a baseline belongs to one tier."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.plugin import refused


@pytest.mark.parametrize("value", ["quick", "", "Standard"])
def test_an_unknown_tier(inner, value):
    """A name that is none of the three is a usage error in words."""
    refused(inner("--model=tiny", f"--swcheck-tier={value}"), "tier")


@pytest.mark.slow
def test_smoke_leaves_out_what_it_cannot_pay(inner, healthy):
    """Weights, activations, perplexity and predictions are judged, the rest is skipped with its reason, never silently."""
    result = inner("--model=tiny", f"--candidate={healthy}", "--swcheck-tier=smoke", "--swcheck-json=out.json")

    result.assert_outcomes(passed=7, skipped=4)
    result.stdout.fnmatch_lines(
        [
            "*tier smoke (command line)*",
            "swcheck: loading tiny (7 MB); smoke tier: 16 windows of 256 tokens, about 1.0 passes, ~*",
            "perplexity * in 16 windows of the model's own text*",
            "skipped: collapse when zeroed, null: matched weights, null: largest others (not in the smoke tier:",
            "skipped: dependence (not in the smoke tier: pytest --swcheck-tier=standard)",
        ]
    )
    verdicts = json.loads(Path("out.json").read_text())["verdicts"]
    assert {verdict["facts"]["tier"] for verdict in verdicts if verdict["outcome"] == "passed"} == {"smoke"}
    assert [verdict["check"] for verdict in verdicts if verdict["outcome"] == "skipped"] == [
        "collapse when zeroed",
        "null: matched weights",
        "null: largest others",
        "dependence",
    ]


@pytest.mark.slow
def test_smoke_sees_the_damage_and_proves_its_cause(inner, zeroed):
    """A lost super weight is red in the smoke tier, with the proof through a hook."""
    result = inner("--model=tiny", f"--candidate={zeroed}", "--swcheck-tier=smoke", "-k", "test_candidate")

    assert result.parseoutcomes()["failed"] >= 3
    result.stdout.fnmatch_lines(["  proof * of the loss returns*", "*perplexity of zeroed against tiny"])
    result.stdout.fnmatch_lines(["pytest --model=tiny --candidate=* --swcheck-tier=smoke --pyargs *"])


@pytest.mark.parametrize("source", ["ini", "environment"])
def test_its_twins(inner, pytester, monkeypatch, asking, source):
    """The ini-file and the environment can name it."""
    if source == "ini":
        pytester.makeini("[pytest]\nswcheck_tier = full\nswcheck_model = tiny")
    else:
        monkeypatch.setenv("SWCHECK_TIER", "full")
    asking(f"settings.tier == 'full' and settings.origins['tier'] == '{source}'")
    inner().assert_outcomes(passed=1)


@pytest.mark.slow
def test_a_baseline_belongs_to_its_tier(inner, zeroed):
    """It is measured again as it was, without asking; in another tier it is refused in words."""
    words = ("--model=tiny", "--swcheck-baseline=kept")
    written = inner(*words, "--swcheck-tier=smoke", "--swcheck-update", "--swcheck-accept")
    written.assert_outcomes(passed=3, skipped=8)
    assert json.loads(Path("kept/tiny.json").read_text())["tier"] == "smoke"

    again = inner(*words, f"--candidate={zeroed}", "-k", "test_candidate")
    again.stdout.fnmatch_lines(["swcheck: loading the baseline of tiny and *zeroed (7 MB); smoke tier: *"])
    again.stdout.fnmatch_lines(["super weight at layer 1 *97, 301* zeroed*", "  proof * of the loss returns*"])

    other = inner(*words, "--swcheck-tier=full", "-k", "perplexity")
    assert other.ret == 1
    other.stdout.fnmatch_lines(["*full tier", "*it was measured in the smoke tier"])
