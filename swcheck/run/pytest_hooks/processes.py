"""One run in several processes of torchrun: the first speaks and writes, and all come to the same end.

The processes share one model, so that each has to run the same checks in the same order: what one of them does alone, the
others would wait for. So they compare the tests that they have collected, and the outcome of each. A process that differs,
or does not answer, ends the run. The others behave as workers of xdist do, which all plugins know: they print and write nothing.
"""

from __future__ import annotations

import hashlib
import json
import signal
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, Final, NoReturn

import pytest

from swcheck.base.errors import OptionError
from swcheck.base.terminal.visible import tell, visible_line
from swcheck.loading.parallel.launch import ERROR_SECONDS, Launch, launch
from swcheck.run.pytest_hooks.stash import INTERRUPTED

if TYPE_CHECKING:
    from swcheck.run.settings import Settings

PLUGIN: Final = "swcheck-processes"

STORED: Final = "swcheck"
"""The beginning of the keys in the store of torchrun."""

START_SECONDS: Final = 7200
"""So long a process waits for the others before the first test: the first one may be downloading a model."""

TEST_SECONDS: Final = 1800
"""So long it waits for them after a test that passed, in which they may have been slower."""

FAILED_SECONDS: Final = 30
"""So long after one that failed: where it failed here alone, the others wait for this process in vain, and never come."""

REPORT_SECONDS: Final = 60
"""So long the others wait until the first process has written its reports: torchrun ends all when one has failed."""

ENDED: Final = "torchrun has ended this process, because another one has failed"

EXIT_DIFFERENT: Final = 3
"""The exit code where the processes differ: pytest's own for an internal error."""


def join(config: pytest.Config, settings: Settings) -> None:
    """Let this process take part in a run of several, if it is one. It is silent from here on, unless it is the first.

    Raises ``OptionError`` where it is to start workers of xdist besides.
    """
    found = launch()
    if not settings.tensor_parallel or found is None or found.count == 1:
        return
    if workers := getattr(config.option, "numprocesses", None):
        asked = f"--swcheck-tensor-parallel in {found.count} processes of torchrun, with -n {workers}"
        raise OptionError(asked, "two answers to which process runs a check", "leave out -n")
    config.pluginmanager.register(Processes(config, found), PLUGIN)
    if not found.is_first:
        facts = {"workerid": f"rank{found.rank}", "workercount": found.count, "testrunuid": "", "mainargv": []}
        config.workerinput, config.workeroutput = facts, {}  # type: ignore[attr-defined]
        config.pluginmanager.set_blocked("terminalreporter")
    from swcheck.strategies import drawn_equally

    undo = ExitStack()
    undo.enter_context(drawn_equally())
    config.add_cleanup(undo.close)


def is_told_by_another() -> bool:
    """Return whether another process of this machine tells the same error of the command line, after time for it."""
    found = launch()
    if found is None or found.local_rank == 0:
        return False
    time.sleep(ERROR_SECONDS)
    return True


def of(config: pytest.Config) -> Processes | None:
    """Return the part that this process has in a run of several; None in a run of one."""
    found: Processes | None = config.pluginmanager.get_plugin(PLUGIN)
    return found


def command(settings: Settings) -> tuple[str, ...]:
    """Return the words that start pytest as this run was started."""
    found = launch() if settings.tensor_parallel else None
    return ("pytest",) if found is None else ("torchrun", f"--nproc-per-node={found.count}", "-m", "pytest")


def store_of_run() -> Any:
    """Return the store through which the processes compare what they have."""
    from swcheck.loading.parallel.group import store_of_processes

    return store_of_processes()


class Processes:
    """The hooks of one process among several."""

    def __init__(self, config: pytest.Config, own: Launch) -> None:
        self.config, self.own = config, own
        self.outcomes: list[list[str]] = []
        self.reason = ""
        self.compared = 0
        self.exit_status = 0
        self.signalled = self.ending = False
        if own.is_first:  # the others have no report to write
            signal.signal(signal.SIGTERM, self.end_by_signal)

    def compare_tests(self, items: Sequence[pytest.Item]) -> None:
        """End the run unless every process has collected these tests, in this order."""
        names = "\n".join(item.nodeid for item in items)
        digest = hashlib.sha256(names.encode()).hexdigest()
        found = f"{len(items)} tests collected, in an order of their own"
        hint = "let no plugin shuffle them (pytest -p no:randomly), and give every process the same files"
        self._compare(digest, f"{found}; {hint}", START_SECONDS)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """After a test, end the run unless it went the same way in every process."""
        self.outcomes, self.reason = [], ""
        result = yield
        if self.signalled:  # an exception in the middle of a test may have got lost
            self._exit(ENDED)
        failed = any(outcome == "failed" for _, outcome, _ in self.outcomes)
        words = f"{item.nodeid} {'failed: ' + self.reason if failed else 'passed or was skipped'}"
        self._compare([item.nodeid, self.outcomes], words, FAILED_SECONDS if failed else TEST_SECONDS)
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        words = ""
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            words = next(iter((report.longreprtext if crash is None else crash.message).splitlines()), "")
            self.reason = self.reason or words
        self.outcomes.append([str(report.when), report.outcome, words.partition(":")[0]])  # of an error its class

    @pytest.hookimpl(tryfirst=True)
    def pytest_keyboard_interrupt(self) -> None:
        """Note that the run ends early, also where no report is written. No further signal disturbs the reports."""
        self.config.stash[INTERRUPTED] = True
        for number in (signal.SIGINT, signal.SIGTERM) if self.own.is_first else ():
            signal.signal(number, signal.SIG_IGN)

    @pytest.hookimpl(tryfirst=True)
    def pytest_internalerror(self) -> None:
        """Take an error that the signal has left behind, as in the middle of a hook, for the end that it asked for."""
        if self.signalled:
            self._exit(ENDED)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Let the other processes wait for the first one, whose exit code they take, unless the run ends early."""
        del exitstatus
        self.exit_status = int(session.exitstatus)
        if self.own.is_first or not self.compared or self.config.stash.get(INTERRUPTED, False):
            return
        with suppress(Exception):  # the first one is gone: torchrun tells how it ended
            from swcheck.loading.parallel.group import wait_for

            session.exitstatus = int(wait_for(store_of_run(), f"{STORED}/end", REPORT_SECONDS))

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        """Tell the others that the reports are written."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self.own.is_first and self.compared:
            with suppress(Exception):
                store_of_run().set(f"{STORED}/end", str(self.exit_status))

    def end_by_signal(self, *_signal: object) -> None:
        """End the run as Ctrl-C does: torchrun sends this signal where another process has failed."""
        if self.ending:  # in which another exception would take the place of the one that ends it
            return
        self.signalled = True
        self._exit(ENDED)

    def _compare(self, value: object, words: str, seconds: float) -> None:
        """Raise ``pytest.exit`` unless every process comes here with an equal ``value`` in time. ``words`` say what happened here."""
        from swcheck.loading.parallel.group import wait_for

        self.compared += 1
        store, mine = store_of_run(), json.dumps(value)
        keys = {rank: f"{STORED}/{self.compared}/{rank}" for rank in range(self.own.count)}
        store.set(keys[self.own.rank], json.dumps([mine, words]))
        for rank, key in keys.items():
            try:
                theirs, other_words = json.loads(wait_for(store, key, seconds))
            except TimeoutError:
                self._end(f"process {rank} does not come that far", words)
            if theirs != mine:
                self._end(f"process {rank}: {other_words}", words)

    def _end(self, others: str, words: str) -> None:
        told = visible_line(f"the processes of torchrun differ: process {self.own.rank}: {words}; {others}")
        if not self.own.is_first:
            tell(told, by_all=True)
        self._exit(told)

    def _exit(self, words: str) -> NoReturn:
        """End the run early: nothing is measured any more, and the JSON is marked."""
        self.ending = self.config.stash[INTERRUPTED] = True
        pytest.exit(words, returncode=EXIT_DIFFERENT)
