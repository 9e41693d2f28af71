"""Every installed engine is asked before a model is loaded: what it cannot make costs milliseconds."""

from __future__ import annotations

import subprocess
import sys

import pytest

import swcheck
from swcheck import SwcheckError
from swcheck.loading import engines

MISSPELT = [f"{name}:no-such-scheme" for name in swcheck.installed_engines() if name != engines.BUILT_IN]


@pytest.mark.parametrize("spec", MISSPELT)
def test_it_is_refused_without_a_model(spec, monkeypatch):
    """In words, and by the engine itself."""
    monkeypatch.setattr(engines, "load", lambda *_args, **_more: pytest.fail("a model was loaded"))
    with pytest.raises(SwcheckError, match=spec.partition(":")[0]):
        engines.check(spec)


def test_it_is_a_usage_error_of_the_gate(tmp_path):
    """No reference is loaded, no test collected."""
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--model=tiny", f"--candidate={MISSPELT[-1]}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "no-such-scheme" in done.stderr
    assert "collected" not in done.stdout
