"""``--swcheck-tensor-parallel``: processes of torchrun share a model, give the report of one process, and one speaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from tests.plugin import refused
from tests.versions import RECENT

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
SECONDS = 240


@pytest.fixture
def torchrun(tmp_path):
    """Run pytest in two processes of torchrun, on the CPU."""

    def run(*args: object, wait: bool = True, module: str = "pytest", **environment: str):
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SWCHECK_", "PYTEST_", "CI", "GITHUB_", "COV"))
        }
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", module]
        options = ["-p", "no:cacheprovider", "-p", "no:benchmark", "--swcheck-tensor-parallel"]
        process = subprocess.Popen(
            [*start, *(options if module == "pytest" else ()), *map(str, args)],
            cwd=tmp_path,
            env={**clean, "COLUMNS": "100", "SWCHECK_CACHE_DIR": os.devnull, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if not wait:
            return process
        out, err = process.communicate(timeout=SECONDS)
        return subprocess.CompletedProcess(args, process.returncode, out, err)

    return run


@RECENT
@pytest.mark.slow
def test_two_processes_locate_what_one_locates(torchrun, tmp_path):
    """One of them prints, the same to the last digit; an error is told once, and the code is that of one process."""
    words = [sys.executable, "-m", "swcheck", "locate", "tiny", "--json"]
    alone = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    both = torchrun("locate", "tiny", "--json", "--tensor-parallel", module="swcheck")
    assert (both.returncode, json.loads(both.stdout)) == (0, json.loads(alone.stdout)), both.stderr
    missing = torchrun("locate", "./nowhere", "--tensor-parallel", module="swcheck")
    assert missing.returncode != 0
    assert (missing.stdout, missing.stderr.count("swcheck: ")) == ("", 1)
    apart = torchrun("locate", "tiny", module="swcheck")
    assert "2 processes of torchrun, each for itself" in apart.stderr


def verdicts_in(file):
    """What a report file says of each check, in its order."""
    return json.loads(file.read_text())["verdicts"]


@RECENT
@pytest.mark.slow
def test_two_processes_give_the_report_of_one(torchrun, outer, tmp_path, zeroed, brief):
    """Green and red, with the causes and every number, to the last digit that is written; one table, one JSON, one JUnit."""
    words = "--model=tiny", "--candidate=rtn:bits=4", f"--candidate={zeroed}", brief
    alone = outer(*words, "--swcheck-json=one.json", "--swcheck-no-cache")
    both = torchrun(*words, "--swcheck-json=two.json", "--junitxml=two.xml")
    assert (alone.returncode, both.returncode) == (1, 1), both.stdout + both.stderr
    assert verdicts_in(tmp_path / "two.json") == verdicts_in(tmp_path / "one.json")
    assert {one["outcome"] for one in verdicts_in(tmp_path / "two.json")} == {"passed", "failed"}
    assert both.stdout.count("candidates against tiny") == 1
    assert both.stdout.count("test session starts") == 1
    assert both.stdout.count("written: ") == 1
    assert "swcheck: " not in both.stderr
    assert (tmp_path / "two.xml").read_text().count("<testsuite ") == 1


@RECENT
@pytest.mark.slow
def test_a_baseline_of_two_processes_is_that_of_one(torchrun, outer, tmp_path, brief):
    """It is written once, and a run of one process is green with it."""
    update = "--swcheck-update", "--swcheck-accept", "--swcheck-no-cache"
    words = "--model=tiny", "--candidate=rtn:bits=8", brief
    assert torchrun(*words, *update, "--swcheck-baseline=two").returncode == 0
    assert outer(*words, *update, "--swcheck-baseline=one").returncode == 0
    assert (tmp_path / "two" / "tiny.json").read_text() == (tmp_path / "one" / "tiny.json").read_text()
    assert outer(*words, "--swcheck-baseline=two").returncode == 0


@RECENT
@pytest.mark.slow
@pytest.mark.parametrize("alone", [0, 1])
def test_what_one_process_does_alone_ends_the_run(torchrun, tmp_path, alone):
    """The others wait for it in vain: the run ends soon, says what differed, and its JSON is marked as unfinished.

    Also where the signal of torchrun comes while the first process ends by itself.
    """
    (tmp_path / "conftest.py").write_text(
        "import os, pytest, signal\n"
        "@pytest.hookimpl(wrapper=True, tryfirst=True)\n"
        "def pytest_keyboard_interrupt():\n"
        "    os.kill(os.getpid(), signal.SIGTERM) if os.environ['RANK'] == '0' else None\n"
        "    return (yield)\n"
    )
    (tmp_path / "test_alone.py").write_text(
        "import os, swcheck\n"
        "def test_alone(swcheck_model):\n"
        f"    if os.environ['RANK'] == '{alone}':\n"
        "        raise MemoryError('no room')\n"
        "    swcheck.assert_super_weights_located(swcheck_model)\n"
    )
    started = time.monotonic()
    result = torchrun("test_alone.py", "--model=tiny", "--swcheck-json=out.json")
    assert time.monotonic() - started < SECONDS / 2
    assert result.returncode == 1
    assert f"process {alone}: test_alone.py::test_alone[tiny] failed: MemoryError: no room" in (
        result.stdout + result.stderr
    )
    assert json.loads((tmp_path / "out.json").read_text())["interrupted"] is True


@RECENT
@pytest.mark.slow
def test_a_signal_in_the_middle_of_a_hook_ends_the_run(torchrun, tmp_path):
    """Another plugin's hook that turns it into an error of its own does not make an internal error of it."""
    (tmp_path / "conftest.py").write_text(
        "import os, time\n"
        "def pytest_runtest_logstart():\n"
        "    if os.environ['RANK'] == '0':\n"
        "        try:\n"
        "            time.sleep(60)\n"
        "        except BaseException as error:\n"
        "            raise RuntimeError('half of a hook') from error\n"
    )
    (tmp_path / "test_alone.py").write_text(
        "import os, signal\n"
        "def test_alone(swcheck_session):\n"
        "    if os.environ['RANK'] == '1':\n"
        "        signal.default_int_handler(signal.SIGINT, None)\n"
    )
    result = torchrun("test_alone.py", "--model=tiny", "--swcheck-json=out.json")
    assert result.returncode != 0
    assert "INTERNALERROR" not in result.stdout + result.stderr
    assert json.loads((tmp_path / "out.json").read_text())["interrupted"] is True


@RECENT
@pytest.mark.slow
@pytest.mark.parametrize("alone", [0, 1])
def test_an_interrupt_of_one_process_ends_the_run(torchrun, tmp_path, alone):
    """The other one, which waits for it in the middle of a model, is ended too; the JSON is marked as unfinished."""
    (tmp_path / "test_alone.py").write_text(
        "import os, signal, swcheck\n"
        "def test_first(swcheck_model):\n"
        "    swcheck.assert_super_weights_located(swcheck_model)\n"
        "def test_alone(swcheck_model):\n"
        f"    if os.environ['RANK'] == '{alone}':\n"
        "        signal.default_int_handler(signal.SIGINT, None)\n"
        "    swcheck.assert_perplexity_within(swcheck_model)\n"
    )
    started = time.monotonic()
    result = torchrun("test_alone.py", "--model=tiny", "--swcheck-json=out.json")
    assert time.monotonic() - started < SECONDS / 2
    assert result.returncode != 0
    assert "INTERNALERROR" not in result.stdout + result.stderr
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["interrupted"] is True
    assert [verdict["check"] for verdict in document["verdicts"]] == ["super weights"]


@pytest.mark.slow
def test_processes_that_collect_other_tests_are_told_so(torchrun, tmp_path):
    """As with a plugin that shuffles them, each in its own order."""
    (tmp_path / "test_order.py").write_text(
        "import os, pytest\n"
        "@pytest.mark.parametrize('number', [0, 1] if os.environ['RANK'] == '0' else [1, 0])\n"
        "def test_order(number, swcheck_session):\n"
        "    pass\n"
    )
    result = torchrun("test_order.py", "--model=tiny")
    assert result.returncode == 1
    assert "the processes of torchrun differ" in result.stdout + result.stderr
    assert "in an order of their own" in result.stdout + result.stderr
    assert "1 passed" not in result.stdout


@pytest.mark.slow
def test_hypothesis_draws_the_same_in_every_process(torchrun, tmp_path):
    """Else one process would run the model on a prompt, and the other on another one.

    Numbers would also be drawn from the code of modules that are not installed, as swcheck is none here.
    """
    (tmp_path / "test_drawn.py").write_text(
        "import os, pathlib\n"
        "from hypothesis import given, strategies\n"
        "drawn = []\n"
        "@given(strategies.lists(strategies.booleans()))\n"
        "def test_drawn(number):\n"
        "    drawn.append(number)\n"
        "def test_written(swcheck_session):\n"
        "    pathlib.Path(os.environ['RANK'] + '.txt').write_text(repr(drawn))\n"
    )
    assert torchrun("test_drawn.py", "--model=tiny").returncode == 0
    drawn = [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)]
    assert drawn[0] == drawn[1]
    assert drawn[0].count(",") > 50


def test_without_torchrun_it_is_refused(inner):
    """With the command that starts the processes."""
    refused(
        inner("--model=tiny", "--swcheck-tensor-parallel"),
        "torchrun has not started this process",
        "torchrun --nproc-per-node=2 -m pytest",
    )


def test_torchrun_without_it_is_refused(inner, monkeypatch):
    """Each process would test the whole model, and write the same files."""
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    refused(inner("--model=tiny"), "2 processes, each of which would test whole models", "--swcheck-tensor-parallel")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("--swcheck-stream", "--swcheck-tensor-parallel --swcheck-stream"),
        ("--swcheck-device-map=auto", "two answers to where a model is put"),
        ("--swcheck-device=cpu", "--swcheck-tensor-parallel --swcheck-device"),
        ("-n2", "two answers to which process runs a check"),
    ],
)
def test_beside_another_answer_it_is_refused(inner, monkeypatch, other, said):
    """To where a model is put, or to who runs a check."""
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    refused(inner("--model=tiny", "--swcheck-tensor-parallel", other), said)


def test_an_error_of_the_command_line_is_told_once(inner, monkeypatch):
    """The second process of a machine gives the exit code alone."""
    for name, value in {**TORCHRUN, "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("swcheck.run.pytest_hooks.processes.ERROR_SECONDS", 0)
    result = inner("--model=tiny", "--swcheck-tensor-parallel", "--swcheck-stream")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert result.stdout.str() + result.stderr.str() == ""
