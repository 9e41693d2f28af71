"""How much memory this process may still take: what the machine has, and what control groups and limits leave of it.

``give_back_free_memory`` hands to the system what Python and torch have freed.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
CONTROL_GROUPS: Final = Path("/sys/fs/cgroup")
NO_LIMIT: Final = 2**60
"""Control groups of the first version write a number near 2**63 for no limit."""


@dataclass(frozen=True)
class FreeMemory:
    """``size`` bytes are free, as ``source`` says: the machine, or a limit."""

    size: int
    source: str


def free_memory(proc: Path = PROC, groups: Path = CONTROL_GROUPS) -> FreeMemory | None:
    """Return what this process may still take, the least of all that bounds it; None where that is not known.

    Cached files count as free, since the kernel gives them up first.
    """
    found = [*_of_machine(proc), *_of_groups(proc, groups)]
    return min(found, key=lambda one: one.size, default=None)


def free_addresses(proc: Path = PROC) -> FreeMemory | None:
    """Return how much address space this process may still map; None where that is not limited (``ulimit -v``)."""
    if sys.platform == "win32":
        return None
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    used = 0
    with suppress(OSError, ValueError, IndexError):
        used = int((proc / "self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    return FreeMemory(max(0, limit - used), "the limit on address space (ulimit -v)")


def give_back_free_memory() -> None:
    """Give the pages that were freed and lie between used ones back to the system; glibc alone keeps them for itself.

    Without it a process that runs one gate after another grows by about a megabyte a gate, of nothing but such pages.
    """
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # another C library, as musl, has no such function
            ctypes.CDLL(None).malloc_trim(0)


def _of_machine(proc: Path) -> Iterator[FreeMemory]:
    with suppress(OSError, ValueError, IndexError):
        for line in (proc / "meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                yield FreeMemory(1024 * int(line.split()[1]), "this machine")


def _of_groups(proc: Path, groups: Path) -> Iterator[FreeMemory]:
    """Yield what each control group around this process leaves, those of both versions."""
    lines: list[str] = []
    with suppress(OSError, ValueError):
        lines = (proc / "self/cgroup").read_text(encoding="utf-8").splitlines()
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        version_1 = "memory" in controllers.split(",")
        if not version_1 and controllers:
            continue
        root = groups / "memory" if version_1 else groups
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if version_1 else ("memory.max", "memory.current")
        inside = root / path.strip("/")
        for folder in (inside, *inside.parents):
            if folder == root or root in folder.parents:
                yield from _left_in(folder, *names)


def _left_in(folder: Path, limit_name: str, usage_name: str) -> Iterator[FreeMemory]:
    with suppress(OSError, ValueError):  # "max" is no number: no limit
        limit = int((folder / limit_name).read_text(encoding="ascii"))
        used = int((folder / usage_name).read_text(encoding="ascii"))
        cached = 0
        for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(" ")
            if name in {"inactive_file", "total_inactive_file"}:
                cached = max(cached, int(value))
        if limit < NO_LIMIT:
            yield FreeMemory(max(0, limit - used + cached), f"the memory limit of the control group {folder.name}")
