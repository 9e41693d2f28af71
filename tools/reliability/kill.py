"""Kills writers: ``python -m tools.reliability.kill [--moments 100]``.

A process writes two versions of what a run writes, in turn, without end: a baseline, what the cache keeps of a reference, the
reports of a run, the files of a study. In every second trial it makes the content anew each time, in the others it writes
alone. It gets SIGKILL at a random moment, again and again. Each file has to be one of the two versions, whole, after each,
and what was left under a temporary name is cleaned by the next writer. Then two writers of a baseline at once, while a
reader reads; then a disk that is full at each of so many places of the file (``RLIMIT_FSIZE``), where the old one has to stay.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

from swcheck.base.output_files import write_atomically
from swcheck.base.records import Limit, Outcome, Verdict
from swcheck.gate.baseline.document import read_document_file
from swcheck.gate.baseline.file import baseline_text, read_baseline

Writer: TypeAlias = Callable[[Path, int], None]
"""Makes version 0 or 1 of some files anew, and writes them into a folder."""

Versions: TypeAlias = Mapping[str, tuple[bytes, bytes]]
"""The two versions of each file, by its name."""


def references() -> tuple[Any, Any]:
    """Return two references with their measurements: tiny, and what its baseline says of it."""
    from swcheck import load
    from swcheck.gate.baseline.measure import measure_for_candidates
    from swcheck.superweights.subject.as_subject import as_subject

    subject = as_subject(load("tiny", device="cpu"))
    measure_for_candidates(subject)
    text = baseline_text(subject, {})
    return subject, read_baseline(text, "it")[0]


def writers(pair: tuple[Any, Any]) -> dict[str, Writer]:
    """Return the writers of all that a run writes, by the name of what they write."""

    def baseline(folder: Path, number: int) -> None:
        write_atomically(folder / "baseline.json", baseline_text(pair[number], {"revision": str(number)}))

    def cache(folder: Path, number: int) -> None:
        from swcheck.run.reference_cache import FOLDER_VARIABLE, ReferenceCache
        from swcheck.run.settings import read_settings

        os.environ[FOLDER_VARIABLE] = str(folder)
        ReferenceCache(read_settings({"model": ["tiny"]}, {"model": "command line"}), "tiny").write(pair[number])

    def reports(folder: Path, number: int) -> None:
        from swcheck.run.reports.report_files import report_texts
        from swcheck.run.settings import read_settings

        values = {kind: str(folder / f"out.{kind}") for kind in ("json", "markdown", "html")}
        settings = read_settings(values, dict.fromkeys(values, "command line"))
        verdict = Verdict(
            "perplexity", "tiny", Outcome.FAILED, f"run {number}", "c", 2.0 + number, Limit(None, 1.0, "given"), "x"
        )
        reported = [(f"a.py::test_{test}", verdict) for test in range(100)]
        for path, text in report_texts(settings, reported, (), warning="", interrupted=False).items():
            write_atomically(path, text)

    def study(folder: Path, number: int) -> None:
        from swcheck.study.common.plots import write_picture
        from swcheck.study.common.record import Measurement, Study, as_csv, as_json

        points = tuple(Measurement("perplexity", number + 1.0, x=float(x)) for x in range(1000))
        found = Study("scaling", "tiny", points)
        write_atomically(folder / "scaling.json", as_json(found))
        write_atomically(folder / "scaling.csv", as_csv([found]))
        write_picture(folder / "scaling.png", "scaling", lambda figure: figure.subplots().plot([0, number]))

    return {
        "a baseline": baseline,
        "the cache of a reference": cache,
        "the reports of a run": reports,
        "a study": study,
    }


def versions(folder: Path, write: Writer) -> Versions:
    """Write both versions into a folder, and return what was written."""
    found: list[dict[str, bytes]] = []
    for number in (1, 0):
        write(folder, number)
        found.append({file.name: file.read_bytes() for file in folder.iterdir()})
    made = {name: (data, found[0][name]) for name, data in found[1].items()}
    if not made or any(first == second for first, second in made.values()):
        raise AssertionError(f"the two versions are not two: {sorted(made)}")
    return made


def forked(folder: Path, write: Writer) -> int:
    """Start a process that writes the two versions in turn until it is killed; return its id."""
    child = os.fork()
    if not child:
        with suppress(BaseException):
            while True:
                write(folder, 0)
                write(folder, 1)
        os._exit(1)
    return child


def ended(child: int) -> None:
    """Kill a writer. Raises if it had ended by itself."""
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        raise AssertionError("a writer ended by itself")


def killed(folder: Path, write: Writer, moments: int, seed: int = 0) -> tuple[int, int]:
    """Kill a writer at random moments; return how often a file was not whole, and how many temporary files were left."""
    draw, broken, left, both = random.Random(seed), 0, 0, versions(folder, write)

    def alone(folder: Path, number: int) -> None:
        for name, data in both.items():
            write_atomically(folder / name, data[number])

    for number in range(moments):
        child = forked(folder, alone if number % 2 else write)
        time.sleep(draw.uniform(0.0, 0.5))
        ended(child)
        broken += not _are_whole(folder, both)
        parts = list(folder.glob("*.part"))
        left += len(parts)
        for part in parts:
            os.utime(part, (0, 0))  # as if a minute had passed
        write(folder, 0)
        if list(folder.glob("*.part")):
            raise AssertionError("a temporary file that a killed writer left is not cleaned by the next one")
    return broken, left


def _are_whole(folder: Path, both: Versions) -> bool:
    return all((folder / name).read_bytes() in data for name, data in both.items())


def written_by_two(folder: Path, write: Writer, seconds: float) -> tuple[int, int]:
    """Let two writers write a baseline at once; return how often it was read meanwhile, and how often it was not whole."""
    write(folder, 0)
    children, reads, broken, end = [forked(folder, write) for _ in range(2)], 0, 0, time.monotonic() + seconds
    while time.monotonic() < end:
        reads, broken = reads + 1, broken + (not _is_read(folder / "baseline.json"))
    for child in children:
        ended(child)
    for part in folder.glob("*.part"):
        part.unlink()
    return reads, broken


def _is_read(path: Path) -> bool:
    try:
        return read_document_file(path)["revision"] in {"0", "1"}
    except ValueError:
        return False


def full(folder: Path, both: tuple[bytes, bytes], places: int) -> int:
    """Write where the disk is full after each of ``places`` lengths; return how often the old file did not stay, alone."""
    path, (old, new), wrong = folder / "baseline.json", both, 0
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
        wrong += bool(status) or path.read_bytes() != old or bool(list(folder.glob("*.part")))
    return wrong


def main() -> int:
    """Run all; print their figures; return 1 if a file was ever half there."""
    from tools.reliability.page import write_rows

    parser = argparse.ArgumentParser(description="Kill writers.")
    parser.add_argument("--moments", type=int, default=100, help="shared by what is written")
    parser.add_argument("--write", action="store_true", help="write the rows of docs/reliability.md")
    options = parser.parse_args()
    pair, rows, failed = references(), [], False
    every = writers(pair)
    for seed, (name, write) in enumerate(every.items()):
        with tempfile.TemporaryDirectory() as folder:
            moments = options.moments // len(every)
            broken, left = killed(Path(folder), write, moments, seed)
            words = f"{broken} times not the old or the new file whole; {left} temporary files left, all cleaned by the next writer"
            rows.append((f"SIGKILL at random moments of writing {name}", f"{moments} moments", words))
            failed |= bool(broken)
    with tempfile.TemporaryDirectory() as name:
        write, folder = every["a baseline"], Path(name)
        both = versions(folder, write)["baseline.json"]
        reads, torn = written_by_two(folder, write, options.moments / 20)
        wrong = full(folder, both, options.moments)
        words = f"{options.moments} lengths, from none to one byte short"
        rows.append(
            ("two writers of one baseline at once", f"{reads:,} reads meanwhile", f"{torn} times not a whole file")
        )
        rows.append(("a disk that is full while a baseline is written", words, f"{wrong} times not the old file alone"))
    if options.write:
        write_rows("kill", rows, f"--moments {options.moments}")
    else:
        for row in rows:
            os.write(1, (" | ".join(row) + "\n").encode())
    return int(failed or bool(torn or wrong))


if __name__ == "__main__":
    raise SystemExit(main())
