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


PRESSED = """
import os, signal, threading

def pytest_xdist_setupnodes():
    threading.Timer(0.06, os.killpg, (os.getpgid(0), signal.SIGINT)).start()
"""
"""Presses Ctrl-C while Python begins in a worker."""

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


@pytest.mark.slow
def test_a_run_that_another_plugin_breaks_off(outer, tmp_path):
    """What was measured before stands in the JSON, which says that the run did not finish."""
    (tmp_path / "conftest.py").write_text(
        "def pytest_runtest_logreport(report):\n    if 'test_second' in report.nodeid:\n        raise MemoryError('no room')\n"
    )
    (tmp_path / "test_own.py").write_text(OWN.replace("time.sleep(60)", "pass"))
    assert outer("test_own.py", "--swcheck-model=tiny", "--swcheck-json=out.json").returncode == 3
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["interrupted"] is True
    assert [verdict["check"] for verdict in document["verdicts"]] == ["super weights"]


@pytest.mark.slow
def test_an_interrupted_check(tmp_path):
    """``swcheck check`` is the run: a signal to it alone ends it with 2 and a marked JSON, and no process stays behind."""
    started = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    started += "from swcheck.__main__ import main; sys.exit(main())"
    words = ["check", "tiny", "--json=out.json", "--tier=smoke"]
    with (tmp_path / "said").open("w+") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", started, *words], cwd=tmp_path, stdout=said, stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while "swcheck: loading" not in (tmp_path / "said").read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 2
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert "Traceback" not in (tmp_path / "said").read_text()
    assert json.loads((tmp_path / "out.json").read_text())["interrupted"] is True


@pytest.mark.slow
def test_an_interrupt_while_workers_start(tmp_path):
    """Under xdist the run ends with 2 and no traceback, neither of this process nor of a worker's Python."""
    (tmp_path / "conftest.py").write_text(PRESSED)
    words = ["-p", "no:cacheprovider", "--model=tiny", "-n", "2"]
    process = subprocess.Popen(
        [sys.executable, "-c", STARTED, *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "KeyboardInterrupt !!!!" in out
    assert not [word for word in ("Traceback", "INTERNALERROR") if word in out]
