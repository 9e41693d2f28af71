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


NOTING = """
import gc, pytest, sys

class Noting:
    def __init__(self, config):
        self.folder, self.entries = config.rootpath, 0
        self.name = "worker" if hasattr(config, "workerinput") else "run"

    @pytest.hookimpl(trylast=True)
    def pytest_keyboard_interrupt(self, excinfo):
        self.entries = len(excinfo.traceback)

    def pytest_unconfigure(self):
        if self.entries:  # xdist starts another worker
            words = f"{self.entries} entry, frozen: {gc.get_freeze_count() > 0}, hypothesis: {'hypothesis' in sys.modules}"
            (self.folder / self.name).write_text(words)

def pytest_configure(config):
    config.pluginmanager.register(Noting(config))
"""
"""Notes of an interrupted run how many entries are shown, whether garbage is looked for at its end, and a package that it imported."""


@pytest.mark.slow
@pytest.mark.parametrize(("words", "name"), [((), "run"), (("-n", "1"), "worker")], ids=["alone", "xdist"])
def test_an_interrupt_leaves_out_what_takes_long(outer, tmp_path, words, name):
    """In a worker too, which the run waits for: one entry is shown, no garbage is looked for, nothing imported."""
    (tmp_path / "conftest.py").write_text(NOTING)
    (tmp_path / "test_own.py").write_text("def test_own(swcheck_spec):\n    raise KeyboardInterrupt\n")
    assert outer("test_own.py", "--swcheck-model=tiny", *words).returncode == 2
    assert (tmp_path / name).read_text() == "1 entry, frozen: True, hypothesis: False"


@pytest.mark.slow
def test_garbage_is_looked_for_again_after_an_interrupted_run(tmp_path):
    """The process that began the run may go on."""
    (tmp_path / "test_own.py").write_text("def test_own(swcheck_spec):\n    raise KeyboardInterrupt\n")
    asked = "import gc, pytest; code = pytest.main(['test_own.py', '--swcheck-model=tiny', '-p', 'no:cacheprovider'])\n"
    asked += "print('ended with', int(code), 'frozen', gc.get_freeze_count())"
    done = subprocess.run([sys.executable, "-c", asked], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "ended with 2 frozen 0" in done.stdout


SWALLOWING = """
import signal

def pytest_itemcollected(item):
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        pass
"""
"""Takes a Ctrl-C for an error of its own, as torch does while it is imported."""


@pytest.mark.slow
def test_an_interrupt_that_is_lost_while_the_suite_is_collected(tmp_path):
    """It ends the run as one that is not lost."""
    (tmp_path / "swallowing.py").write_text(SWALLOWING)
    words = [
        sys.executable,
        "-c",
        STARTED,
        "-p",
        "no:cacheprovider",
        "-p",
        "swallowing",
        "--model=tiny",
        "--collect-only",
    ]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr


DEAF = """
import time

def test_own(swcheck_spec):
    open("ready", "w").close()
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            time.sleep(1)
        except KeyboardInterrupt:
            pass
"""


@pytest.mark.slow
def test_a_worker_that_loses_its_interrupt_is_not_waited_for(tmp_path):
    """xdist would wait 10 seconds for it."""
    (tmp_path / "test_own.py").write_text(DEAF)
    words = ["-p", "no:cacheprovider", "--swcheck-model=tiny", "-n", "1", "test_own.py"]
    process = subprocess.Popen(
        [sys.executable, "-c", STARTED, *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    start = time.monotonic()
    process.communicate(timeout=60)
    assert process.returncode == 2
    assert time.monotonic() - start < 9
