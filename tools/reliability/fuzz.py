"""Fuzzes every reader, guided by coverage: ``python -m tools.reliability.fuzz [--seconds 600] [--keep] [READER ...]``.

The seconds are shared by the readers. Needs atheris (``pip install -e '.[fuzz]'``). Inputs that reach new lines begin with
``tests/corpus/``; with ``--keep`` some of them, of every size, are written back there. A fault is written to
``tests/corpus/READER/`` as well, where ``tests/tools/test_corpus.py`` finds it, and the exit code is 1. With
``--write`` the row of ``docs/reliability.md`` is written anew.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
CORPUS: Final = ROOT / "tests" / "corpus"
LARGEST_KEPT: Final = 4096
MOST_KEPT: Final = 25
NAMES: Final = (
    "safetensors", "config", "index", "baseline", "study", "history", "project", "tokenizer", "tokenizer_config", "text",
    "gguf", "adapter", "options",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What fuzzing one reader gave: the number of inputs, the places of code reached, and the words of a fault."""

    inputs: int
    reached: int
    fault: str


def fuzzed(name: str, reader: Any, seconds: int, *, keep: bool) -> Outcome:
    """Fuzz one reader for so many seconds, in a process that is forked from this one."""
    with tempfile.TemporaryDirectory() as folder:
        corpus, faults = Path(folder, "corpus"), Path(folder, "faults")
        faults.mkdir()
        shutil.copytree(CORPUS / name, corpus) if (CORPUS / name).is_dir() else corpus.mkdir()
        for number, data in enumerate(reader.good):
            Path(corpus, f"good-{number}").write_bytes(data)
        limits = ["-timeout=10", "-rss_limit_mb=4096", "-max_len=8192", "-len_control=20", "-print_final_stats=1"]
        said = _said([name, f"-max_total_time={seconds}", f"-artifact_prefix={faults}/", *limits, str(corpus)], reader)
        found = sorted(faults.iterdir())
        if keep:
            _keep(name, corpus)
        for file in found:
            _store(name, file)
        inputs = re.findall(r"stat::number_of_executed_units:\s*(\d+)", said)
        reached = re.findall(r"cov: (\d+)", said)
        words = re.findall(
            r"^(?:\s*=== Uncaught Python exception: ===\n)?([\w.]*(?:Error|Exception)\b.*)$", said, re.MULTILINE
        )
        fault = (words[-1] if words else said[-500:] or "it ended without a word") if found or not inputs else ""
        return Outcome(int(inputs[-1]) if inputs else 0, int(reached[-1]) if reached else 0, fault)


def _said(arguments: list[str], reader: Any) -> str:
    """Let libFuzzer run on a reader, in a forked process that ends with it; return what it says."""
    with tempfile.TemporaryFile() as out:
        child = os.fork()
        if not child:
            try:
                import atheris  # type: ignore[import-not-found, unused-ignore]

                from tools.reliability.readers import judged

                os.dup2(out.fileno(), 1)
                os.dup2(out.fileno(), 2)
                reader.read(reader.good[0])  # what it imports is no part of the first input's time
                atheris.Setup(arguments, lambda data: judged(reader, data))
                atheris.Fuzz()
            except BaseException:
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(1)
        os.waitpid(child, 0)
        out.seek(0)
        return out.read().decode("utf-8", "replace")


def _keep(name: str, corpus: Path) -> None:
    """Write the smallest inputs of a reader that reached something new into ``tests/corpus``."""
    shutil.rmtree(CORPUS / name, ignore_errors=True)
    small = sorted((file.stat().st_size, file) for file in corpus.iterdir())
    small = [(size, file) for size, file in small if size <= LARGEST_KEPT]
    for _, file in small[:: -(-len(small) // MOST_KEPT) or 1]:
        _store(name, file)


def _store(name: str, file: Path) -> None:
    data = file.read_bytes()
    (CORPUS / name).mkdir(parents=True, exist_ok=True)
    (CORPUS / name / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def main() -> int:
    """Fuzz the readers one after another; return 1 if one has a fault."""
    parser = argparse.ArgumentParser(description="Fuzz the readers.")
    parser.add_argument("readers", nargs="*", default=list(NAMES))
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--keep", action="store_true", help="write the corpus anew")
    parser.add_argument("--write", action="store_true", help="write the row of docs/reliability.md")
    options = parser.parse_args()
    import atheris

    with atheris.instrument_imports(include=["swcheck", "json"]):
        from tools.reliability.readers import READERS
    each, outcomes = max(1, options.seconds // len(options.readers)), {}
    for name in options.readers:
        outcomes[name] = found = fuzzed(name, READERS[name], each, keep=options.keep)
        sys.stdout.write(
            f"{name}: {found.inputs:,} inputs, {found.reached:,} places reached, {found.fault or 'no fault'}\n"
        )
        sys.stdout.flush()
    faults = {name: found.fault for name, found in outcomes.items() if found.fault}
    if options.write:
        from tools.reliability.page import write_rows

        much = (
            f"{sum(found.inputs for found in outcomes.values()):,} inputs in {each * len(outcomes):,} s: "
            + ", ".join(outcomes)
        )
        words = (
            "; ".join(f"{name}: {fault}" for name, fault in faults.items()) or "nothing but answers and worded refusals"
        )
        write_rows(
            "fuzz",
            [("damaged files and options, guided by coverage, of every reader", much, words)],
            f"--seconds {options.seconds}",
        )
    return int(bool(faults))


if __name__ == "__main__":
    raise SystemExit(main())
