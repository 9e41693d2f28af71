"""Ctrl-C at random moments of a gate: ``python -m tools.reliability.interrupt [--moments 20]``.

A gate of ``tiny`` and a rounded candidate, which also measures a new baseline, gets SIGINT. It has to end with code 2, without a
traceback, with its JSON marked as interrupted, and without half a file. Beside the seconds until it ends, its processor time
in between is measured, since other work on the machine does not change that.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

WORDS = (
    "--model=tiny",
    "--candidate=rtn:bits=4,block=128",
    "--swcheck-baseline=kept",
    "--swcheck-update",
    "--swcheck-json=out.json",
)


@dataclass(frozen=True)
class Ending:
    """How a run ended: seconds after the signal, processor seconds of these, and what is wrong with it."""

    seconds: float
    processor: float
    wrong: str


def interrupted(share: float, whole: float) -> Ending:
    """Interrupt a run when it has used ``share`` of the ``whole`` processor time that a run takes from its first line on."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *WORDS]
        with (folder / "said").open("w") as said:
            environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
            process = subprocess.Popen(command, env=environment, cwd=folder, stdout=said, stderr=subprocess.STDOUT)  # noqa: S603 - our own run
            while "swcheck:" not in (folder / "said").read_text():
                time.sleep(0.02)
            begun = _processor(process.pid)
            while _processor(process.pid) - begun < share * whole:
                time.sleep(0.01)
            used, start = _processor(process.pid), time.monotonic()
            process.send_signal(signal.SIGINT)
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.monotonic() - start
        text, code = (folder / "said").read_text(), os.waitstatus_to_exitcode(status)
        wrong = [] if code == 2 else [f"code {code}"]
        wrong += [word for word in ("Traceback", "INTERNALERROR") if word in text]
        report = folder / "out.json"
        wrong += (
            [] if report.exists() and json.loads(report.read_text()).get("interrupted") else ["no JSON that says so"]
        )
        wrong += ["a temporary file"] if list(folder.rglob("*.part")) else []
        if wrong:
            sys.stderr.write(text[-2000:])
        return Ending(seconds, max(0.0, usage.ru_utime + usage.ru_stime - used), ", ".join(wrong))


def _processor(process: int) -> float:
    """Return the processor seconds that a process has used."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return float("inf")
    if fields[0] == "Z":  # it has ended
        return float("inf")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Interrupt runs; print the slowest; return 1 if one ended otherwise."""
    from tools.reliability.page import write_rows

    parser = argparse.ArgumentParser(description="Ctrl-C at random moments.")
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument(
        "--whole", type=float, default=3.0, help="processor seconds of the part of a run that is interrupted"
    )
    parser.add_argument("--write", action="store_true", help="write the row of docs/reliability.md")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it starts in the background ignore it
    draw = random.Random(0)
    endings = []
    for _ in range(options.moments):
        endings.append(interrupted(draw.random(), options.whole))
        sys.stderr.write(f"{endings[-1]}\n")
    seconds, processor = (
        sorted(values) for values in zip(*((one.seconds, one.processor) for one in endings), strict=True)
    )
    half = len(endings) // 2
    wrong = [one.wrong for one in endings if one.wrong]
    words = (
        f"{len(endings) - len(wrong)} ended with 2 and a marked JSON; median {seconds[half]:.1f} s, longest {seconds[-1]:.1f} s; "
        f"of these {processor[half]:.1f} s and at most {processor[-1]:.1f} s of the processor"
        + "".join(f"; {one}" for one in wrong)
    )
    sys.stdout.write(words + "\n")
    if options.write:
        write_rows(
            "interrupt",
            [("Ctrl-C during a gate that updates a baseline", f"{len(endings)} moments", words)],
            f"--moments {options.moments}",
        )
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
