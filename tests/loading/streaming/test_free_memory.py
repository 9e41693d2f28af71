"""What is free is the least of what the machine, the control groups and the limits leave."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from swcheck.loading.streaming.free_memory import FreeMemory, free_addresses, free_memory, give_back_free_memory

GIB = 2**30


@pytest.fixture
def system(tmp_path):
    """A machine with 8 GiB free, as its files say; ``write`` adds files to it."""

    def write(name, text):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="ascii")

    write("proc/meminfo", "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n")
    write("proc/self/cgroup", "")
    return tmp_path, write


def found(system):
    return free_memory(system[0] / "proc", system[0] / "cgroup")


def test_without_limits_it_is_what_the_machine_has(system):
    """``MemAvailable`` of the kernel, in bytes."""
    assert found(system) == FreeMemory(8 * GIB, "this machine")


@pytest.mark.parametrize(
    ("line", "folder", "limit", "usage"),
    [
        ("0::/job", "cgroup/job", "memory.max", "memory.current"),
        ("4:memory:/job", "cgroup/memory/job", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ],
)
def test_a_control_group_bounds_it(system, line, folder, limit, usage):
    """In both versions: the limit less what is used, cached files not counted as used."""
    system[1]("proc/self/cgroup", f"3:cpu:/other\n{line}\n")
    for name, text in ((limit, 4 * GIB), (usage, 3 * GIB), ("memory.stat", f"anon 5\ninactive_file {GIB}")):
        system[1](f"{folder}/{name}", f"{text}\n")
    assert found(system) == FreeMemory(2 * GIB, "the memory limit of the control group job")


def test_a_group_around_it_counts(system):
    """A group without a limit of its own is bounded by the one around it; one above the mount point is not looked for."""
    system[1]("proc/self/cgroup", "0::/outer/inner\n")
    for folder, limit in (("cgroup/outer/inner", "max"), ("cgroup/outer", str(GIB))):
        for name, text in (("memory.max", limit), ("memory.current", "0"), ("memory.stat", "")):
            system[1](f"{folder}/{name}", text)
    assert found(system) == FreeMemory(GIB, "the memory limit of the control group outer")


def test_where_nothing_is_known_it_is_none(tmp_path):
    """On a system without these files."""
    assert free_memory(tmp_path, tmp_path) is None


def test_a_limit_on_address_space(monkeypatch):
    """What ``ulimit -v`` leaves beside what is mapped; None without such a limit."""
    monkeypatch.setattr("resource.getrlimit", lambda _kind: (2**50, -1))
    free = free_addresses()
    assert 0 < free.size < 2**50
    monkeypatch.setattr("resource.getrlimit", lambda _kind: (-1, -1))
    assert free_addresses() is None


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do it themselves, or cannot")
def test_freed_pages_between_used_ones_are_given_back():
    """Of 64 MB in small blocks every fiftieth is kept, so that the heap cannot shrink; nearly all goes back."""

    def resident():
        return int(re.search(r"RssAnon:\s*(\d+)", Path("/proc/self/status").read_text())[1]) // 1024

    blocks = [bytearray(4000) for _ in range(16_000)]
    whole = resident()
    kept = blocks[::50]
    del blocks
    give_back_free_memory()
    assert len(kept) == 320
    assert whole - resident() > 40
