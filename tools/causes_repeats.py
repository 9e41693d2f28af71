"""Gates the same candidates twenty times, on one and two threads, in one process and in two: do verdicts change?

``python -m tools.causes_repeats`` runs pytest four times over twenty copies of two candidates of ``tiny``, in the smoke
tier on a short text, and keeps the answer in ``REPEATS``, so that it goes on where it was stopped; ``python -m tools.causes_table --page`` writes it into the page.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from swcheck import load
from swcheck.base.evaluation_text import evaluation_text
from swcheck.testing.candidates import candidate
from tools.causes_table import REPEATS

COPIES: Final = 20
KINDS: Final = (("rope theta", 50), ("rounded", 4))
"""One that is red, and one near its limit; in the words of ``swcheck.testing.candidates``."""

CHARACTERS: Final = 4_000
"""The text that is scored has this many characters: the same again needs no long one."""

WAYS: Final = {
    "one thread": (1, 0),
    "two threads": (2, 0),
    "one thread in each of two workers": (1, 2),
    "two threads in each of two workers": (2, 2),
}
"""Threads and workers of pytest-xdist."""

DIGITS: Final = 5
"""Numbers that agree to so many digits are the same: other threads add in another order."""


def save_copies(folder: Path) -> list[Path]:
    """Save each candidate once, and link its files into ``COPIES`` directories."""
    tiny, made = load("tiny", device="cpu"), []
    for kind, strength in KINDS:
        first = folder / f"{kind.replace(' ', '-')}-00"
        found = candidate(kind, tiny, strength)
        found.model.save_pretrained(first)  # type: ignore[operator]
        found.tokenizer.save_pretrained(first)
        made.append(first)
        for number in range(1, COPIES):
            other = folder / f"{kind.replace(' ', '-')}-{number:02}"
            other.mkdir()
            for file in first.iterdir():
                os.link(file, other / file.name)
            made.append(other)
    return made


def verdicts(folders: list[Path], threads: int, workers: int, folder: Path) -> dict[str, set[str]]:
    """Run the gate; return by candidate the verdicts of its copies, each as text."""
    report, text = folder / f"{threads}-{workers}.json", folder / "text.txt"
    text.write_text(evaluation_text()[:CHARACTERS], encoding="utf-8")
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--model=tiny",
        "--tb=no",
        "-n",
        str(workers),
    ]
    words += [
        *(f"--candidate={one}" for one in folders),
        "--swcheck-tier=smoke",
        f"--swcheck-text={text}",
        "--pyargs",
        "swcheck.suite.test_candidate",
        "--swcheck-no-cache",
        f"--swcheck-json={report}",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    subprocess.run(words, cwd=folder, env=environment, capture_output=True, check=False)  # noqa: S603 - our own command
    found: dict[str, set[str]] = {}
    for one in json.loads(report.read_text(encoding="utf-8"))["verdicts"]:
        if one["candidate"] is not None:
            measured = one["measured"]
            number = measured if not isinstance(measured, float) else f"{measured:.{DIGITS}g}"
            kind = Path(one["candidate"]).name.rpartition("-")[0]
            said = [one[name] for name in ("check", "outcome", "cause_kind")] + [number]
            found.setdefault(f"{kind}, {one['check']}", set()).add(str(said))
    return found


def words_of(found: dict[str, dict[str, list[str]]]) -> tuple[str, dict[str, list[str]]]:
    """Return words for what the ways found, and the checks in which something changed."""
    together: dict[str, set[str]] = {}
    for one in found.values():
        for key, said in one.items():
            together.setdefault(key, set()).update(said)
    changed = {key: sorted(said) for key, said in together.items() if len(said) > 1}
    kinds = ", ".join(kind for kind, _ in KINDS)
    words = (
        f"{COPIES} copies of each of {len(KINDS)} candidates of `tiny` ({kinds}), {'; '.join(found)}: {len(together)} checks "
        f"of candidates, {COPIES * len(found)} times each. "
    )
    words += "No outcome, cause or number" if not changed else f"In {len(changed)} of them an outcome, cause or number"
    return f"{words} (to {DIGITS} digits) changed.", changed


def main() -> None:
    """Run the ways that no earlier run ended, and keep what was found after each."""
    found = json.loads(REPEATS.read_text(encoding="utf-8"))["found"] if REPEATS.exists() else {}
    REPEATS.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folders = save_copies(folder)
        for way, (threads, workers) in WAYS.items():
            if way in found:
                continue
            found[way] = {key: sorted(said) for key, said in verdicts(folders, threads, workers, folder).items()}
            words, changed = words_of(found)
            REPEATS.write_text(
                json.dumps({"words": words, "changed": changed, "found": found}, indent=1), encoding="utf-8"
            )
            sys.stdout.write(f"{words}\n{json.dumps(changed, indent=1)}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
