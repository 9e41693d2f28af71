"""Kills writers: ``python -m tools.reliability.kill [--moments 100]``.

A process that holds the measurements of two references writes their baselines to one file, in turn, without end: packing,
digest, writing, renaming, and in every second trial writing and renaming alone. It gets SIGKILL at a random moment, again and again. The file has to be one of the two, whole,
after each. Then two such writers at once, while a reader reads; then a disk that is full at each of so many places of
the file (``RLIMIT_FSIZE``), where the old file has to stay.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import signal
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from swcheck.base.output_files import write_atomically
from swcheck.gate.baseline.document import read_document_file
from swcheck.gate.baseline.file import baseline_text, read_baseline


def references() -> tuple[Any, Any]:
    """Return two references with their measurements: tiny, and what its baseline says of it."""
    from swcheck import load
    from swcheck.gate.baseline.measure import measure_for_candidates
    from swcheck.superweights.subject.as_subject import as_subject

    subject = as_subject(load("tiny", device="cpu"))
    measure_for_candidates(subject)
    text = baseline_text(subject, {})
    return subject, read_baseline(text, "it")[0]


def write_for_ever(path: Path, pair: tuple[Any, Any], texts: tuple[str, ...]) -> None:
    """Write the two baselines in turn until the process is killed; without ``texts`` each is packed anew."""
    while True:
        for number, subject in enumerate(pair):
            write_atomically(path, texts[number] if texts else baseline_text(subject, {"revision": str(number)}))


def forked(path: Path, pair: tuple[Any, Any], texts: tuple[str, ...] = ()) -> int:
    """Start a writer; return its process id."""
    child = os.fork()
    if not child:
        with suppress(BaseException):
            write_for_ever(path, pair, texts)
        os._exit(1)
    return child


def killed(path: Path, pair: tuple[Any, Any], moments: int, seed: int = 0) -> tuple[int, int]:
    """Kill a writer at random moments; return how often the file was not whole, and how often a temporary file was left."""
    draw, broken, left = random.Random(seed), 0, 0
    write_atomically(path, baseline_text(pair[0], {"revision": "0"}))
    texts = tuple(baseline_text(subject, {"revision": str(number)}) for number, subject in enumerate(pair))
    for number in range(moments):
        child = forked(path, pair, texts if number % 2 else ())
        time.sleep(draw.uniform(0.0, 0.5))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        broken += not _is_whole(path)
        parts = list(path.parent.glob("*.part"))
        left += len(parts)
        for part in parts:
            os.utime(part, (0, 0))  # as if a minute had passed
        write_atomically(path.with_name("other"), "x")
        if list(path.parent.glob("*.part")):
            raise AssertionError("a temporary file that a killed writer left is not cleaned by the next one")
    return broken, left


def _is_whole(path: Path) -> bool:
    try:
        return read_document_file(path)["revision"] in {"0", "1"}
    except ValueError:
        return False


def written_by_two(path: Path, pair: tuple[Any, Any], seconds: float) -> tuple[int, int]:
    """Let two writers write at once; return how often it was read meanwhile, and how often it was not whole."""
    write_atomically(path, baseline_text(pair[0], {"revision": "0"}))
    children, reads, broken, end = [forked(path, pair) for _ in range(2)], 0, 0, time.monotonic() + seconds
    while time.monotonic() < end:
        reads, broken = reads + 1, broken + (not _is_whole(path))
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return reads, broken


def full(path: Path, pair: tuple[Any, Any], places: int) -> int:
    """Write where the disk is full after each of ``places`` lengths; return how often the old file did not stay, alone."""
    old, new = (baseline_text(pair[number], {"revision": str(number)}) for number in (0, 1))
    wrong = 0
    for number in range(places):
        write_atomically(path, old)
        child = os.fork()
        if not child:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            length = number * (len(new) - 1) // max(1, places - 1)
            resource.setrlimit(resource.RLIMIT_FSIZE, (length, resource.RLIM_INFINITY))
            try:
                write_atomically(path, new)
            except OSError:
                os._exit(0)
            os._exit(1)
        _, status = os.waitpid(child, 0)
        wrong += bool(status) or path.read_text(encoding="utf-8") != old or bool(list(path.parent.glob("*.part")))
    return wrong


def main() -> int:
    """Run the three; print their figures; return 1 if a file was ever half there."""
    from tools.reliability.page import write_rows

    parser = argparse.ArgumentParser(description="Kill writers of baselines.")
    parser.add_argument("--moments", type=int, default=100)
    parser.add_argument("--write", action="store_true", help="write the rows of docs/reliability.md")
    options = parser.parse_args()
    pair = references()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        broken, left = killed(folder / "baseline.json", pair, options.moments)
        reads, torn = written_by_two(folder / "baseline.json", pair, options.moments / 20)
        for part in folder.glob("*.part"):
            part.unlink()
        wrong = full(folder / "baseline.json", pair, options.moments)
    rows = [
        ("SIGKILL at random moments of a baseline update", f"{options.moments} moments",
         f"{broken} times not the old or the new file whole; {left} temporary files left, all cleaned by the next writer"),
        ("two writers of one baseline at once", f"{reads:,} reads meanwhile", f"{torn} times not a whole file"),
        ("a disk that is full while a baseline is written", f"{options.moments} lengths, from none to one byte short",
         f"{wrong} times not the old file alone"),
    ]  # fmt: skip
    if options.write:
        write_rows("kill", rows, f"--moments {options.moments}")
    else:
        for row in rows:
            os.write(1, (" | ".join(row) + "\n").encode())
    return int(bool(broken or torn or wrong))


if __name__ == "__main__":
    raise SystemExit(main())
