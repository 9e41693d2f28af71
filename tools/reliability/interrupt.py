"""Ctrl-C at random moments: ``python -m tools.reliability.interrupt [--moments 20] [--only WORD]``.

Runs get SIGINT, with all their processes, as from a terminal: a gate of ``tiny`` and a rounded candidate that measures a new
baseline, one whose weights are streamed from their files, one under pytest-xdist, and a study. Each has to end with 2, without
a traceback, with its JSON marked as interrupted, and without half a file. Beside the seconds until it ends, its processor time
in between is measured, since other work on the machine does not change that.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swcheck.loading.tiny import CHECKPOINT


@dataclass(frozen=True)
class Run:
    """A run: its command, when its part begins that is interrupted, and the processor seconds of it.

    ``reports`` says whether it writes ``out.json``.
    """

    words: tuple[str, ...]
    has_begun: Callable[[Path], bool]
    whole: float = 3.0
    reports: bool = True


def _gate(*words: str) -> Run:
    command = (
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "--model=tiny",
        "--swcheck-json=out.json",
        *words,
    )
    return Run(command, lambda folder: "swcheck:" in (folder / "said").read_text())


RUNS: Final = {
    "a gate that updates a baseline": _gate("--candidate=rtn:bits=4,block=128", "--swcheck-baseline=kept", "--swcheck-update"),
    "a gate of streamed models": _gate("--candidate=./copy", "--swcheck-stream", "--swcheck-dtype=bfloat16"),
    "a gate under pytest-xdist": _gate("--candidate=rtn:bits=4,block=128", "-n", "2"),
    "a study": Run((sys.executable, "-m", "swcheck", "study", "tiny", "--out=."), lambda _folder: True, 15.0, reports=False),
}  # fmt: skip


@dataclass(frozen=True)
class Ending:
    """How a run ended: seconds after the signal, processor seconds of these, and what is wrong with it."""

    seconds: float
    processor: float
    wrong: str


def interrupted(run: Run, share: float) -> Ending:
    """Interrupt a run when it has used this share of the processor time of its part that is interrupted."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(CHECKPOINT, folder / "copy")
        with (folder / "said").open("w") as said:
            environment = {**os.environ, "PYTHONUNBUFFERED": "1", "SWCHECK_CACHE_DIR": os.devnull}
            process = subprocess.Popen(  # noqa: S603 - our own run
                run.words, env=environment, cwd=folder, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
            )
            while not run.has_begun(folder) and process.poll() is None:
                time.sleep(0.02)
            begun = _processor(process.pid)
            while _processor(process.pid) - begun < share * run.whole:
                time.sleep(0.02)
            used, start = _processor(process.pid), time.monotonic()
            os.killpg(process.pid, signal.SIGINT)
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.monotonic() - start
        text, code = (folder / "said").read_text(), os.waitstatus_to_exitcode(status)
        wrong = [] if code == 2 else [f"code {code}"]
        wrong += [word for word in ("Traceback", "ERROR") if word in text]
        report = folder / "out.json"
        is_marked = report.exists() and json.loads(report.read_text()).get("interrupted")
        wrong += ["no JSON that says so"] if run.reports and not is_marked else []
        wrong += ["a temporary file"] if list(folder.rglob("*.part")) else []
        for file in folder.glob("*.json"):
            json.loads(file.read_text())
        if wrong:
            sys.stderr.write(text[-2000:])
        return Ending(seconds, max(0.0, usage.ru_utime + usage.ru_stime - used), ", ".join(wrong))


def _processor(process: int) -> float:
    """Return the processor seconds that a process and those below it have used; infinite if it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        children = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii").split()
    except OSError:
        return float("inf")
    if fields[0] == "Z":
        return float("inf")
    below = (_processor(int(child)) for child in children)
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK") + sum(one for one in below if one < float("inf"))


def main() -> int:
    """Interrupt runs; print the slowest of each kind; return 1 if one ended otherwise."""
    from tools.reliability.page import write_rows

    parser = argparse.ArgumentParser(description="Ctrl-C at random moments.")
    parser.add_argument("--moments", type=int, default=20, help="of each kind of run")
    parser.add_argument("--only", default="", help="kinds of runs whose name has this in it")
    parser.add_argument("--write", action="store_true", help="write the rows of docs/reliability.md")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it starts in the background ignore it
    rows, failed = [], False
    for name, run in RUNS.items():
        if options.only not in name:
            continue
        draw, endings = random.Random(0), []
        for _ in range(options.moments):
            endings.append(interrupted(run, draw.random()))
            sys.stderr.write(f"{name}: {endings[-1]}\n")
        rows.append((f"Ctrl-C during {name}", f"{options.moments} moments", _words(run, endings)))
        failed |= any(one.wrong for one in endings)
    if options.write:
        only = f" --only '{options.only}'" if options.only else ""
        write_rows("interrupt", rows, f"--moments {options.moments}{only}")
    else:
        sys.stdout.writelines(" | ".join(row) + "\n" for row in rows)
    return int(failed)


def _words(run: Run, endings: list[Ending]) -> str:
    seconds, processor = (sorted(one) for one in zip(*((one.seconds, one.processor) for one in endings), strict=True))
    half, wrong = len(endings) // 2, [one.wrong for one in endings if one.wrong]
    marked = " and a marked JSON" * run.reports
    return (
        f"{len(endings) - len(wrong)} ended with 2{marked}; median {seconds[half]:.1f} s, longest {seconds[-1]:.1f} s; "
        f"of these {processor[half]:.1f} s and at most {processor[-1]:.1f} s of the processor"
        + "".join(f"; {one}" for one in wrong)
    )


if __name__ == "__main__":
    raise SystemExit(main())
