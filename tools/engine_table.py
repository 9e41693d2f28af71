"""Writes the table of candidates in ``docs/engines.md``: ``python -m tools.engine_table``.

Run it in each environment that has engines. Every row is a real gate of ``tiny`` against what a real engine makes of
it; nothing is typed by hand. Not all engines fit in one environment: a row whose engine is not installed stays as it
is; with names of engines on the command line, so do the rows of all others. ``--print`` prints the table and does not
write the page.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

from swcheck import (
    RobustnessError,
    Verdict,
    assert_collapses_when_zeroed,
    assert_perplexity_within,
    assert_predictions_preserved,
    assert_super_activations_preserved,
    assert_super_weights_preserved,
    installed_engines,
    load,
)
from swcheck.superweights.subject.as_subject import as_subject

PAGE = Path(__file__).parents[1] / "docs" / "engines.md"
BLOCK = re.compile(r"(<!-- candidates -->\n)(.*?)(<!-- /candidates -->)", re.DOTALL)
CANDIDATES = (
    "rtn:bits=8,block=128",
    "rtn:bits=4,block=128",
    "rtn:bits=4,block=128,clip=3",
    "rtn:bits=4,block=128,clip=3,keep",
    "rtn:bits=2,block=128",
    "bitsandbytes:int8",
    "bitsandbytes:nf4",
    "bitsandbytes:fp4",
    "torchao:int8-weight-only",
    "torchao:fp8-weight-only",
    "torchao:int4-weight-only",
    "torchao:int2-weight-only",
    "quanto:int8",
    "quanto:fp8",
    "hqq:8bit",
    "hqq:4bit",
    "hqq:2bit",
    "gguf:q8_0",
    "gguf:q4_0",
    "compressed-tensors:W4A16",
    "compressed-tensors:W8A8",
    "compressed-tensors:FP8_DYNAMIC",
    "gptq:4bit",
    "gptq:2bit",
    "autoround:W4A16",
    "autoround:W2A16",
    "llamacpp:f32",
    "llamacpp:q8_0",
    "llamacpp:q4_0",
    "llamacpp:q6_k",
    "llamacpp:q5_k",
    "llamacpp:q4_k",
    "llamacpp:q3_k",
    "llamacpp:q2_k",
    "llamacpp:mxfp4",
    "llamacpp:nvfp4",
    "onnx:f32",
    "onnx:int8",
    "onnx:int4",
    "openvino:f32",
    "openvino:int8",
    "openvino:int4",
)
CHECKS: tuple[Callable[..., Verdict], ...] = (
    assert_super_weights_preserved,
    assert_super_activations_preserved,
    assert_perplexity_within,
    assert_predictions_preserved,
    assert_collapses_when_zeroed,
)


def gate(spec: str, reference: object) -> str:
    """Return one row: super weight, activation, perplexity, KL, dependence, seconds, verdict."""
    start = time.perf_counter()
    candidate = as_subject(load(spec, reference="tiny", device="cpu"))
    verdicts = []
    for check in CHECKS:
        try:
            verdicts.append(check(candidate, reference))
        except RobustnessError as error:
            verdicts.append(error.verdict)
    seconds = time.perf_counter() - start
    red = [verdict for verdict in verdicts if verdict.red]
    verdict_text = (
        red[0].cause if red else ("green" if all(v.outcome == "passed" for v in verdicts) else "green, near a limit")
    )
    weight, activation, perplexity, kl, dependence = (v.measured for v in verdicts)
    cells = (
        f"x{weight:.3f}",
        f"x{activation:.3f}",
        f"x{perplexity:.3f}",
        f"{kl:.4f}",
        f"{dependence:.2f}",
        f"{seconds:.1f}",
    )
    return f"| `{spec}` | {' | '.join(cells)} | {verdict_text} |"


def table(present_table: str, names: Collection[str] = ()) -> str:
    """Return the table in Markdown; rows that cannot be measured here are taken from ``present_table``.

    With ``names`` the rows of these engines alone are measured.
    """
    reference = as_subject(load("tiny", device="cpu"))
    header = "| candidate of `tiny` | super weight | activation | perplexity | KL, nats | dependence | s | verdict |"
    present_rows = {line.split("`")[1]: line for line in present_table.splitlines() if line.startswith("| `")}
    rows = []
    for spec in CANDIDATES:
        engine = spec.partition(":")[0]
        is_installed = engine in installed_engines() and (not names or engine in names)
        if not is_installed and spec not in present_rows:
            sys.stderr.write(f"left out, its engine is not here: {spec}\n")
            continue
        rows.append(gate(spec, reference) if is_installed else present_rows[spec])
        sys.stderr.write(f"{'' if is_installed else 'as it was: '}{rows[-1]}\n")
    return "\n".join([header, "|" + " --- |" * 8, *rows]) + "\n"


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    found = BLOCK.search(text)
    made = table(found[2] if found else "", [word for word in sys.argv[1:] if not word.startswith("-")])
    if "--print" in sys.argv:
        sys.stdout.write(made)
    else:
        PAGE.write_text(BLOCK.sub(lambda match: match[1] + made + match[3], text), encoding="utf-8")
