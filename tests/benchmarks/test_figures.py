"""Figures with their floor, printed, never judged: ``pytest -m benchmark -s tests/benchmarks``.

Everything that is compared runs interleaved in one process or one loop, best of several, as a ratio: machines are noisy.
"""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from tools.ratios import MEASURES

pytestmark = [pytest.mark.benchmark, pytest.mark.slow]


def say(text):
    sys.stderr.write(f"\n{text}\n")


@pytest.mark.parametrize("measure", MEASURES)
def test_what_is_over_the_floor(measure):
    """The rows of the second table of ``docs/performance.md``, with their goals."""
    for row in measure():
        say(f"{row.name}: {row.measured}, over {row.floor}; goal {row.goal}")


def python(code, cwd):
    start = time.perf_counter()
    subprocess.run([sys.executable, *code], cwd=cwd, check=False, capture_output=True)
    return time.perf_counter() - start


def test_unused(tmp_path):
    """An unrelated run with swcheck installed over the same with -p no:swcheck: at most 1.05."""
    (tmp_path / "test_it.py").write_text("".join(f"def test_{i}(): pass\n" for i in range(300)))
    run = ["-m", "pytest", "-q", "-p", "no:cacheprovider"]
    pairs = [(python(run, tmp_path), python([*run, "-p", "no:swcheck"], tmp_path)) for _ in range(12)]
    with_it, without = (min(side) for side in zip(*pairs, strict=True))
    say(f"an unrelated run: {with_it / without:.3f} x the same without swcheck ({without:.2f} s, best of 12)")
