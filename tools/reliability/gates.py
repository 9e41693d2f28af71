"""Many gates in one process: ``python -m tools.reliability.gates [--gates 100]``.

Each is a whole run of pytest on ``tiny``, green and red in turn, with a JSON report. After each, collected garbage left out,
the resident memory, open files, threads and hooks of torch are counted. The first ten warm up. Memory is what is not
mapped from files: of files the system takes pages back as it likes.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

WARM: Final = 10
CHECKS: Final = "super_weights or perplexity or predictions"


@dataclass(frozen=True)
class Size:
    """What a process holds: resident MiB that are no file's, open files, threads, children of torch's global hooks."""

    memory: float
    files: int
    threads: int
    hooks: int


def size() -> Size:
    """Return what this process holds now."""
    from torch.nn.modules import module

    gc.collect()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    resident = re.search(r"RssAnon:\s*(\d+) kB", status)
    hooks = (module._global_forward_hooks, module._global_forward_pre_hooks, module._global_backward_hooks)  # noqa: SLF001
    files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the folder of this process itself
    memory = int(resident[1]) / 1024 if resident else 0.0
    return Size(memory, files, threading.active_count(), sum(map(len, hooks)))


def gates(count: int) -> Iterator[Size]:
    """Run so many gates; yield what the process holds after each."""
    import pytest

    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for number in range(count):
            candidate, expected = (("rtn:bits=8,block=128", 0), ("zeroed", 1))[number % 2]
            if candidate == "zeroed" and not Path(candidate).exists():
                _save_zeroed(Path(candidate))
            words = ["-q", "-p", "no:cacheprovider", "--model=tiny", f"--candidate={candidate}", "-k", CHECKS]
            with contextlib.redirect_stdout(io.StringIO()) as said:
                code = pytest.main([*words, "--swcheck-tier=smoke", "--swcheck-json=out.json"])
            if int(code) != expected:
                raise AssertionError(f"gate {number} of {candidate} ended with {int(code)}:\n{said.getvalue()}")
            yield size()


def _save_zeroed(folder: Path) -> None:
    from tools.outputs import save_damaged_copy

    save_damaged_copy(folder.parent)


def main() -> int:
    """Run the gates; print the growth; return 1 where something grew."""
    from tools.reliability.page import write_rows

    parser = argparse.ArgumentParser(description="Many gates in one process.")
    parser.add_argument("--gates", type=int, default=100)
    parser.add_argument("--write", action="store_true", help="write the row of docs/reliability.md")
    options = parser.parse_args()
    sizes = []
    for number, found in enumerate(gates(options.gates)):
        sizes.append(found)
        if number % 10 == 0:
            sys.stderr.write(f"{number}: {found}\n")
    start, middle, end = sizes[min(WARM, len(sizes) - 1)], sizes[len(sizes) // 2], sizes[-1]
    words = (
        f"resident memory {start.memory:,.0f} MiB after gate {WARM}, {middle.memory:,.0f} in the middle, {end.memory:,.0f} at the end; "
        f"open files {start.files} to {end.files}, threads {start.threads} to {end.threads}, global hooks {start.hooks} to {end.hooks}"
    )
    sys.stdout.write(words + "\n")
    if options.write:
        much = f"{options.gates} gates, every second one red"
        write_rows("gates", [("whole runs of pytest in one process", much, words)], f"--gates {options.gates}")
    return int((end.files, end.threads, end.hooks) > (start.files, start.threads, start.hooks))


if __name__ == "__main__":
    raise SystemExit(main())
