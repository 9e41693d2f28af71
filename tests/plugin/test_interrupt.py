"""Ctrl-C ends a run at once: exit code 2, no traceback, nothing half, and what was measured is kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

OWN = """
import os, signal, time
from swcheck import assert_super_weights_located

def test_first(swcheck_model):
    assert_super_weights_located(swcheck_model)

def test_second(swcheck_model):
    open("ready", "w").close()
    time.sleep(60)
"""


STARTED = """
import signal, sys, pytest
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets its background jobs ignore Ctrl-C
sys.exit(pytest.console_main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("update", [False, True])
def test_an_interrupted_run(tmp_path, update):
    """The verdicts so far are in the JSON, which says that the run was interrupted; no baseline is measured any more."""
    (tmp_path / "test_own.py").write_text(OWN)
    more = ["--swcheck-baseline=kept", "--swcheck-update"] if update else []
    process = subprocess.Popen(
        [sys.executable, "-c", STARTED, "-p", "no:cacheprovider", "test_own.py", "--swcheck-model=tiny", "--swcheck-json=out.json", *more],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "Traceback" not in out
    assert "baselines measured anew" not in out
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["interrupted"] is True
    assert [verdict["check"] for verdict in document["verdicts"]] == ["super weights"]
    assert not (tmp_path / "kept").exists()
    assert [file.name for file in tmp_path.iterdir() if file.name.endswith(".part")] == []
