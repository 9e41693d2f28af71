"""Installed and unused, swcheck is silent and free."""

from __future__ import annotations

import pytest

from tests.plugin import SHIPPED

HEAVY = ["torch", "transformers", "numpy", "hypothesis", "tabulate", "huggingface_hub", "safetensors"]
LOOKING = f"""
import sys

def test_nothing_was_imported():
    assert [name for name in {HEAVY!r} if name in sys.modules] == []
    assert "swcheck.plugin" in sys.modules
    assert sorted(name for name in sys.modules if name.startswith("swcheck")) == [
        "swcheck", "swcheck.base", "swcheck.base.errors", "swcheck.base.terminal", "swcheck.base.terminal.visible",
        "swcheck.loading", "swcheck.loading.parallel", "swcheck.loading.parallel.launch", "swcheck.plugin", "swcheck.run",
        "swcheck.run.options", "swcheck.run.pytest_hooks", "swcheck.run.pytest_hooks.collection", "swcheck.run.pytest_hooks.failure_text",
        "swcheck.run.pytest_hooks.interrupt", "swcheck.run.pytest_hooks.processes", "swcheck.run.pytest_hooks.reporter", "swcheck.run.pytest_hooks.run_errors",
        "swcheck.run.pytest_hooks.stash", "swcheck.run.pytest_hooks.workers"
    ]
"""
OTHERS = ("-p", "no:hypothesispytest", "-p", "no:anyio")


def test_it_imports_nothing_heavy(outer, tmp_path):
    """In a run that uses nothing of it, only its light rooms are imported, and it prints nothing."""
    (tmp_path / "test_looking.py").write_text(LOOKING)
    done = outer(*OTHERS)
    assert done.returncode == 0, done.stdout
    assert "swcheck:" not in done.stdout
    assert "swcheck" not in done.stdout.replace("swcheck-0", "").replace(str(tmp_path), "")
    assert done.stderr == ""


@pytest.mark.slow
def test_it_works_without_autoloading(outer, tmp_path):
    """``--disable-plugin-autoload -p swcheck`` loads it by its name, and a model brings the suite."""
    done = outer("--disable-plugin-autoload", "-p", "swcheck", "--model=tiny", "--co", "-q")
    assert f"{SHIPPED} tests collected" in done.stdout, done.stdout + done.stderr


def test_it_can_be_switched_off(inner, pytester):
    """``-p no:swcheck`` takes options, fixtures and marker away."""
    pytester.makepyfile("def test_it(): pass\ndef test_asks(swcheck_spec): pass")
    result = inner("-p", "no:swcheck")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*fixture 'swcheck_spec' not found"])
    assert inner("-p", "no:swcheck", "--swcheck-model=tiny").ret == pytest.ExitCode.USAGE_ERROR


@pytest.mark.parametrize("words", [(), ("-v",), ("-W", "error", "--strict-markers", "--strict-config")])
def test_it_prints_nothing(inner, pytester, words):
    """Without an option there is no header line, no section and no warning, and every test runs."""
    pytester.makepyfile("def test_it(): pass")
    result = inner(*words)
    result.assert_outcomes(passed=1)
    result.stdout.no_re_match_line(r".*swcheck(?!-)")


def test_a_test_that_asks_for_a_model_is_skipped(inner, pytester):
    """Without a model a test that needs one is skipped, and the reason is the command that gives one."""
    pytester.makepyfile("def test_it(swcheck_model): pass\ndef test_limits(swcheck_limits): pass")
    result = inner("-rs")
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(["SKIPPED * no model given: pytest --model=tiny"])
