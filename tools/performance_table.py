"""Measures what large models cost and writes ``docs/performance.md``: ``python -m tools.performance_table DIR``.

DIR is a folder with 14 GB free; the checkpoint is written there, unless it is there already, and removed afterwards with
``--remove``.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from swcheck import SuperWeight
from swcheck.base.formatting import format_size
from swcheck.base.output_files import write_atomically
from swcheck.loading.files.safetensors_header import tensor_bytes
from tools.large_checkpoint import Shape, plant_on_disk, write_checkpoint

PAGE: Final = Path(__file__).parents[1] / "docs" / "performance.md"
PUBLISHED: Final = SuperWeight(2, 3968, 7003, -1.9268)
"""That of Llama 7B; the checkpoint has its name, so that the index knows it."""

MEASURED: Final = """
import json, re, sys, time
start = time.perf_counter()
{code}
from swcheck.loading.streaming import pager
seconds, status = time.perf_counter() - start, open("/proc/self/status").read()
read = sum(one.bytes_read for one in pager._PAGERS.values())
peak = int(re.search(r"VmHWM:\\s*(\\d+)", status)[1]) * 1024
sys.stderr.write("measured " + json.dumps([seconds, time.process_time(), peak, read]))
"""
LOCATE: Final = """
from swcheck.run.command_line.main import main
kept = []
from swcheck.loading import engines
load = engines.load
engines.load = lambda *args, **kwargs: kept.append(load(*args, **kwargs)) or kept[-1]
assert main({words!r}) == 0
"""


@dataclass(frozen=True)
class Cost:
    """What one command took: seconds on the clock and of the processor, peak of resident memory and bytes of weights read."""

    name: str
    goal: str
    seconds: float
    processor: float
    peak: int
    read: int


def measured(name: str, goal: str, code: str) -> Cost:
    """Run ``code`` in a process of its own."""
    command = [sys.executable, "-c", MEASURED.replace("{code}", code)]
    done = subprocess.run(  # noqa: S603 - this Python
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    found = re.search(r"measured (\[.*\])", done.stderr)
    if found is None:
        raise RuntimeError(done.stderr)
    return Cost(name, goal, *json.loads(found[1]))


def reading_seconds(folder: Path) -> float:
    """Read all files once; return how long it took."""
    start = time.perf_counter()
    for file in folder.glob("*.safetensors"):
        with file.open("rb", buffering=0) as stream:
            while stream.read(2**24):
                pass
    return time.perf_counter() - start


def page(folder: Path, costs: list[Cost], floor: float) -> str:
    """Return the page."""
    size = tensor_bytes(folder)
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    rows = [
        f"| {one.name} | {one.seconds:.0f} s ({one.processor:.0f} s of processor) | {one.peak / 2**30:.2f} GiB "
        f"| {one.read / 1e9:.1f} GB ({one.read / size:.0%}) | {one.goal} |"
        for one in costs
    ]
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "safetensors"))
    return "\n".join(
        [
            "# What large models cost",
            "",
            "Written by `python -m tools.performance_table DIR`; nothing here is typed by hand.",
            "",
            f"A checkpoint of the shape of Llama 7B in bfloat16 ({format_size(size)}), random but for its published super weight,",
            f"streamed on the CPU with one thread. {model}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}.",
            f"Load average {os.getloadavg()[0]:.1f}: other work on the machine lengthens the time on the clock.",
            f"One read of all files just before took {floor:.0f} s.",
            "",
            "| what | time | peak of resident memory | weights read | goal |",
            "| --- | --- | --- | --- | --- |",
            *rows,
            "",
            "A search reads the file twice: once intact, once with what was found zeroed. Bytes are those of the pages of weights",
            "that were in memory when they were given back; some may come from the cache of the operating system.",
            "",
        ]
    )


def main() -> None:
    """Measure, and write the page."""
    folder = Path(sys.argv[1]) / "llama-7b"
    if not folder.exists():
        write_checkpoint(folder, Shape())
        plant_on_disk(folder, PUBLISHED)
    floor = reading_seconds(folder)
    costs = [
        measured(
            "`swcheck locate DIR --published=llama-7b`: three layers",
            "at most 15 % of the bytes",
            LOCATE.format(words=["locate", str(folder), "--published=llama-7b", "--stream"]),
        ),
        measured(
            "`swcheck locate DIR`: all super weights",
            "at most 2 GiB; 1.5 x one read",
            LOCATE.format(words=["locate", str(folder), "--stream"]),
        ),
    ]
    write_atomically(PAGE, page(folder, costs, floor))
    if "--remove" in sys.argv:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
