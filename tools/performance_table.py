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

import torch

from swcheck import SuperWeight
from swcheck.base.formatting import format_size
from swcheck.base.output_files import write_atomically
from swcheck.loading import tiny
from swcheck.loading.files.safetensors_header import tensor_bytes
from swcheck.loading.streaming.pager import is_slow
from tools.large_checkpoint import Shape, plant_on_disk, write_checkpoint

PAGE: Final = Path(__file__).parents[1] / "docs" / "performance.md"
PUBLISHED: Final = SuperWeight(2, 3968, 7003, -1.9268)
"""That of Llama 7B; the checkpoint has its name, so that the index knows it."""

MEASURED: Final = """
import json, re, sys, time
from swcheck.loading.streaming.mapped_pages import MappedPages
give_back, read = MappedPages.give_back, {}

def counted(pages, span):
    size = give_back(pages, span)
    read[id(pages)] = read.get(id(pages), 0) + size
    return size

MappedPages.give_back = counted
kept = []
init = MappedPages.__post_init__
MappedPages.__post_init__ = lambda pages: kept.append(pages) or init(pages)
start = time.perf_counter()
{code}
seconds, status = time.perf_counter() - start, open("/proc/self/status").read()
peak = int(re.search(r"VmHWM:\\s*(\\d+)", status)[1]) * 1024
sys.stderr.write("measured " + json.dumps([seconds, time.process_time(), peak, [read.get(id(one), 0) for one in kept]]))
"""
"""Runs a piece of code and prints what it took; the bytes that were read are those of each model, in the order of loading."""
LOCATE: Final = """
from swcheck.run.command_line.main import main
assert main({words!r}) == 0
"""
GATE: Final = """
import pytest
assert pytest.main({words!r}) == 0
"""
CHARACTERS: Final = 1300
"""The gate scores so much of tiny's text, some 300 tokens: products take most of its time, and reading none of them more."""


@dataclass(frozen=True)
class Cost:
    """What one command took: seconds on the clock and of the processor, peak of resident memory and bytes of weights read."""

    name: str
    goal: str
    seconds: float
    processor: float
    peak: int
    read: list[int]


def measured(name: str, goal: str, code: str) -> Cost:
    """Run ``code`` in a process of its own."""
    command = [sys.executable, "-c", MEASURED.replace("{code}", code)]
    done = subprocess.run(  # noqa: S603 - this Python
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=sys.argv[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
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


def machine() -> str:
    """Return a sentence about this machine and the versions that count."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if "model name" in line), platform.machine())
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "safetensors"))
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}."


def page(folder: Path, costs: list[Cost], floor: float) -> str:
    """Return the first part of the page."""
    size = tensor_bytes(folder)
    products = "float32, without instructions for bfloat16" if is_slow(torch.bfloat16) else "bfloat16"
    rows = [
        f"| {one.name} | {one.seconds:.0f} s ({one.processor:.0f} s of processor) | {one.peak / 2**30:.2f} GiB "
        f"| {', '.join(f'{read / 1e9:.1f} GB ({read / size:.0%})' for read in one.read)} | {one.goal} |"
        for one in costs
    ]
    return "\n".join(
        [
            "# What large models cost",
            "",
            "Written by `python -m tools.performance_table DIR`; nothing here is typed by hand.",
            "",
            f"A checkpoint of the shape of Llama 7B in bfloat16 ({format_size(size)}), random but for its published super weight,",
            f"streamed on the CPU with one thread. {machine()}",
            f"Load average {os.getloadavg()[0]:.1f}: other work on the machine lengthens the time on the clock.",
            f"One read of all files just before took {floor:.0f} s.",
            "",
            "| what | time | peak of resident memory | weights read | goal |",
            "| --- | --- | --- | --- | --- |",
            *rows,
            "",
            "A search reads the file once: the pass with what was found zeroed runs beside the intact one. Its time beyond that of a",
            f"read is imports and the products of the prompt's tokens, which this processor computes in {products}.",
            "Bytes are those of the pages of weights that were in memory when they were given back; some may come from the cache of",
            "the operating system.",
            "The gate reads each file once for the prompt and once for the text. Beside the prompt the super weights of the reference are",
            "located and zeroed, and NaN is looked for in the candidate; beside the text run what the noise is measured by, the linear maps",
            "and, in tiers with causal checks, the reference with its super weights zeroed. What is more than two readings are the first",
            "layers, for the prompts that were drawn, and the head, once more for each number.",
            "",
        ]
    )


def main() -> None:
    """Measure, and write the page."""
    folder = Path(sys.argv[1]).resolve() / "llama-7b"
    if not folder.exists():
        write_checkpoint(folder, Shape())
        plant_on_disk(folder, PUBLISHED)
    floor = reading_seconds(folder)
    candidate = folder.with_name("candidate")
    candidate.mkdir(exist_ok=True)
    for file in folder.iterdir():
        if not (candidate / file.name).exists():
            (candidate / file.name).hardlink_to(file)
    text = folder.with_name("text.txt")
    text.write_text(tiny.HELDOUT.read_text(encoding="utf-8")[:CHARACTERS], encoding="utf-8")
    gate = [
        f"--model={folder}",
        f"--candidate={candidate}",
        "--swcheck-tier=smoke",
        "--swcheck-stream",
        f"--swcheck-text={text}",
    ]
    suite = ["-p", "no:cacheprovider", f"--rootdir={folder.parent}", "--pyargs", "swcheck.suite.test_candidate"]
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
        measured(
            "`pytest --model=DIR --candidate=COPY --swcheck-tier=smoke`: reference, candidate",
            "at most 3 GiB; 2 reads of each",
            GATE.format(words=[*gate, *suite]),
        ),
    ]
    _, heading, rest = PAGE.read_text(encoding="utf-8").partition("\n## ")  # the part of ``tools.ratios`` stays
    write_atomically(PAGE, page(folder, costs, floor) + heading + rest)
    shutil.rmtree(candidate)
    if "--remove" in sys.argv:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
