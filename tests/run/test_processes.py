"""The processes of a run compare what they do, and end it where one differs or does not answer."""

from __future__ import annotations

import pytest
from torch.distributed import HashStore

from swcheck.loading.parallel import group
from swcheck.loading.parallel.group import wait_for
from swcheck.loading.parallel.launch import Launch
from swcheck.run.pytest_hooks import processes
from swcheck.run.pytest_hooks.processes import EXIT_DIFFERENT, Processes, command
from swcheck.run.settings import Settings


@pytest.fixture
def second(monkeypatch, pytestconfig):
    """The second of two processes, in a store of its own, without a handler of signals; gives the store too."""
    store = HashStore()
    monkeypatch.setattr(group, "store_of_processes", lambda: store)
    return Processes(pytestconfig, Launch(rank=1, count=2, local_rank=1)), store


def test_equal_processes_go_on(second):
    """Each comparison has a place of its own in the store."""
    process, store = second
    store.set("swcheck/1/0", '["\\"same\\"", "went well"]')
    store.set("swcheck/2/0", '["[1, 2]", "went well"]')
    process._compare("same", "went well", 1)
    process._compare([1, 2], "went well", 1)
    assert process.compared == 2


def test_a_difference_ends_the_run_and_both_are_told(second, capsys):
    """With what happened in either process, and an exit code that no check gives."""
    process, store = second
    store.set("swcheck/1/0", '["\\"other\\"", "test_a failed: no room"]')
    with pytest.raises(pytest.exit.Exception) as caught:
        process._compare("same", "test_a passed", 1)
    words = "the processes of torchrun differ: process 1: test_a passed; process 0: test_a failed: no room"
    assert str(caught.value) == words
    assert caught.value.returncode == EXIT_DIFFERENT
    assert capsys.readouterr().err == f"swcheck: {words}\n"


def test_a_process_that_does_not_answer_ends_the_run(second):
    """After the time that is given it, not later."""
    process, _ = second
    with pytest.raises(pytest.exit.Exception, match="process 0 does not come that far"):
        process._compare("same", "test_a failed: no room", 0.1)


def test_what_another_process_writes_is_waited_for():
    """It is text; a time that is over is an error."""
    store = HashStore()
    with pytest.raises(TimeoutError, match=r"key after 0\.1 s"):
        wait_for(store, "key", 0.1)
    store.set("key", "value")
    assert wait_for(store, "key", 0.1) == "value"


def test_tests_are_compared_by_name_and_order(second, monkeypatch, pytestconfig):
    """Two processes that shuffle differently have collected the same names."""
    seen = []
    monkeypatch.setattr(Processes, "_compare", lambda _self, value, *_words: seen.append(value))

    class Item:
        def __init__(self, nodeid):
            self.nodeid = nodeid

    one, other = Item("test_a"), Item("test_b")
    process, _ = second
    for items in ([one, other], [other, one], [one, other]):
        process.compare_tests(items)
    assert seen[0] == seen[2] != seen[1]


@pytest.mark.parametrize(
    ("settings", "started", "words"),
    [
        (Settings(), None, ("pytest",)),
        (Settings(), Launch(0, 2, 0), ("pytest",)),
        (Settings(tensor_parallel=True), Launch(0, 4, 0), ("torchrun", "--nproc-per-node=4", "-m", "pytest")),
    ],
)
def test_a_run_is_repeated_as_it_was_started(monkeypatch, settings, started, words):
    """By torchrun, with as many processes, where they shared the models."""
    monkeypatch.setattr(processes, "launch", lambda: started)
    assert command(settings) == words
