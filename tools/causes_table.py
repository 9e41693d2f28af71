"""Gates every candidate of ``swcheck.testing.candidates`` of several references, and writes ``docs/matrix.md``.

``python -m tools.causes_table [DIR --text=FILE]`` takes about an hour; DIR is a small real model. What was tried is kept
in ``ROWS``, so that it goes on where it was stopped; ``--page`` writes the page from that alone. Labels are the perplexity
ratio by lm-evaluation-harness, on another text than the gate's: nothing of swcheck.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any, Final

import torch

from swcheck import (
    Loaded,
    RobustnessError,
    SwcheckError,
    Verdict,
    assert_perplexity_within,
    assert_predictions_preserved,
    assert_super_activations_preserved,
    assert_super_weights_preserved,
    load,
)
from swcheck.base.evaluation_text import evaluation_text
from swcheck.base.limits import BY_PATTERN, BY_SCHEME
from swcheck.base.tiers import SMOKE, STANDARD
from swcheck.superweights.subject.as_subject import as_subject
from swcheck.superweights.subject.subject import Subject
from swcheck.testing.candidates import CANDIDATES, candidate
from swcheck.testing.damage.bases import with_larger_stream
from tools.planted_families import FAMILIES, planted_family

PAGE: Final = Path(__file__).parents[1] / "docs" / "matrix.md"
ROWS: Final = PAGE.parents[1] / "build" / "matrix.jsonl"
REPEATS: Final = PAGE.parents[1] / "build" / "repeats.json"
COSTS: Final = PAGE.parents[1] / "build" / "costs.json"
COSTED: Final = (
    ("rope theta", 50.0), ("norm scaled", 20.0), ("head rolled", 7.0), ("layers exchanged", 2.0),
    ("adapter merged again", 10.0), ("super weights scaled", 0.0), ("pruned", 0.8), ("trained", 0.3),
)  # fmt: skip
"""The candidates whose cost is measured."""

COSTS_HEADING: Final = "## What a red candidate costs"
REPEATS_HEADING: Final = "## The same again"

HARMFUL, HARMLESS = 1.5, 1.02
PUBLISHED: Final = {
    ("rounded", 2): BY_SCHEME["2-bit"][0] or 0.0,
    **{("pruned 2:4", strength): BY_PATTERN["2:4"][0] for strength in (1, 2)},
}
"""What published ones of a scheme lose, where that is more than ``HARMFUL``: the gate's own limits of it."""

LABEL_TEXT: Final = 4000
"""This many characters of the labels' text are scored."""

SPECIAL: Final = "tiny, padded, with a large stream"
"""A reference of its own for the kinds that need padding rows, or values beyond float16."""

SPECIAL_KINDS: Final = ("vocabulary cut", "float16 saturated", "copy")
CHECKS: Final = (
    assert_perplexity_within,
    assert_predictions_preserved,
    assert_super_weights_preserved,
    assert_super_activations_preserved,
)
BINS: Final = (0.0, 0.98, 1.02, 1.05, 1.1, 1.2, 1.35, 1.5, 2.0, 5.0, math.inf)


@dataclass
class Row:
    """One candidate: its label, the first check that is red, its cause, and the seconds of processor that the gate took."""

    reference: str
    kind: str
    strength: float
    skipped: str = ""
    label: float = 1.0
    check: str = ""
    cause: str = ""
    cause_kind: str = ""
    seconds: float = 0.0

    @property
    def key(self) -> tuple[str, str, float]:
        """What tells a row from others."""
        return self.reference, self.kind, self.strength

    @property
    def is_right(self) -> bool:
        """Whether the cause is one of the kind's."""
        return self.cause_kind in CANDIDATES[self.kind].causes

    @property
    def is_harmful(self) -> bool:
        """Whether the label is over ``HARMFUL``, and over what published ones of its scheme lose."""
        return self.label > max(HARMFUL, PUBLISHED.get((self.kind, self.strength), 0.0))

    @property
    def is_false(self) -> bool:
        """Whether it is red although it computes the same, or by its perplexity although the label has no loss."""
        same = not CANDIDATES[self.kind].causes
        return bool(self.check) and (
            same or (self.label < HARMLESS and self.check == "perplexity" and not self.is_right)
        )


def _quietly(measure: Callable[..., float]) -> Callable[..., float]:
    """Return the function without the bars and hints that the harness writes."""

    @wraps(measure)
    def inner(*args: Any) -> float:
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        with redirect_stderr(io.StringIO()):
            return measure(*args)

    return inner


@_quietly
@torch.no_grad()
def label_nats(loaded: Loaded, text: str, tokens: int) -> float:
    """Return the nats per token of a text by lm-evaluation-harness; ``tokens`` is their number."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    runner = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=1, max_length=96)
    [found] = runner.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)], disable_tqdm=True)
    return float(-found / tokens)


def special_reference() -> Loaded:
    """Return tiny with a residual stream 256 times as large, and 64 padding rows that nothing predicts."""
    tiny = load("tiny", device="cpu")
    model = with_larger_stream(tiny.model, 256.0)
    model.resize_token_embeddings(1088, mean_resizing=False)
    with torch.no_grad():
        model.lm_head.weight[1024:] = model.lm_head.weight[:1024].mean(0) - model.lm_head.weight[:1024].std(0)
    return Loaded(model.eval(), tiny.tokenizer, SPECIAL, tiny.text)


def references(directory: str, text: str) -> Iterator[tuple[str, Loaded, str]]:
    """Yield name, model, and the text that labels are measured on; the gate measures on another one."""
    for name in ("tiny", "tiny-pair"):
        yield name, load(name, device="cpu"), evaluation_text()
    yield SPECIAL, special_reference(), evaluation_text()
    if directory:
        middle = len(text) // 2
        real = load(directory, device="cpu")
        yield Path(directory).name, replace(real, text=text[:middle]), text[middle:]
    for name in FAMILIES:
        yield name, planted_family(name), evaluation_text()


def wanted(reference: str) -> Iterator[tuple[str, float]]:
    """Yield kind and strength of the candidates of a reference; of tiny-pair and the families the greatest one alone."""
    for kind in CANDIDATES.values():
        if reference != SPECIAL or kind.name in SPECIAL_KINDS:
            for strength in kind.strengths[-1:] if reference in (*FAMILIES, "tiny-pair") else kind.strengths:
                yield kind.name, strength


def tried(row: Row, loaded: Loaded, reference: Subject, text: str, intact: float) -> Row:
    """Return the row with its label and its verdict."""
    try:
        made = candidate(row.kind, loaded, row.strength)
    except (SwcheckError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        return replace(row, skipped=f"{type(error).__name__}: {error}".splitlines()[0])
    tokens = len(loaded.tokenizer(text)["input_ids"])
    lost = label_nats(made, text, tokens) - intact
    start = time.process_time()
    verdict = first_red(made, reference)
    seconds = time.process_time() - start
    label = math.exp(min(50.0, lost)) if math.isfinite(lost) else math.inf
    found = replace(row, label=label, seconds=round(seconds, 2))
    if verdict is None:
        return found
    return replace(found, check=verdict.check, cause=verdict.cause, cause_kind=verdict.cause_kind)


def first_red(made: Loaded, reference: Subject) -> Verdict | None:
    """Return the first red verdict of a candidate whose kind its weights decide; None where all are green."""
    subject = as_subject(made)
    subject.kind, subject.tier = "auto", reference.tier
    for check in CHECKS:
        try:
            check(subject, reference)
        except RobustnessError as error:
            return error.verdict
    return None


def kept_rows() -> list[Row]:
    """Return what earlier runs tried."""
    lines = ROWS.read_text(encoding="utf-8").splitlines() if ROWS.exists() else []
    return [Row(**json.loads(line)) for line in lines]


def run(directory: str, text: str) -> None:
    """Try what was not tried yet, a line for each in ``ROWS``."""
    done = {row.key for row in kept_rows()}
    ROWS.parent.mkdir(exist_ok=True)
    for name, loaded, whole in references(directory, text):
        rows = [Row(name, *one) for one in wanted(name)]
        missing = [row for row in rows if row.key not in done]
        label_text = whole[:LABEL_TEXT]
        subject = as_subject(loaded)
        subject.tier = STANDARD if name == "tiny" else SMOKE
        intact = label_nats(loaded, label_text, len(loaded.tokenizer(label_text)["input_ids"])) if missing else 0.0
        for row in missing:
            found = tried(row, loaded, subject, label_text, intact)
            sys.stdout.write(line_of(found))
            sys.stdout.flush()
            with ROWS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(found)) + "\n")


def line_of(row: Row) -> str:
    """Return a row as it is printed."""
    if row.skipped:
        return f"{row.reference}: {row.kind} {row.strength:g}: {row.skipped}\n"
    mark = "green" if not row.check else ("right" if row.is_right else "WRONG")
    words = f"{row.check}: {row.cause[:80]}" if row.check else ""
    return (
        f"{row.reference}: {row.kind} {row.strength:g} x{row.label:.4g} {mark} {row.seconds:.1f} s {words}".rstrip()
        + "\n"
    )


def page(rows: Sequence[Row]) -> str:
    """Return the page. A part whose measurements are not in ``build`` stays as it is."""
    return "\n".join(
        [*(_verdicts([row for row in rows if not row.skipped]) if rows else _as_it_stands("")), *_costs(), *_repeats()]
    )


def _verdicts(made: Sequence[Row]) -> list[str]:
    """Return what the candidates were found to be."""
    head = HEAD.format(count=len(made), kinds=len({row.kind for row in made}))
    return [head, *_totals(made), "", *_curve(made), ""]


HEAD: Final = """# Verdicts against labels

Written by `python -m tools.causes_table`; no figure here is typed by hand. {count} candidates of {kinds} kinds
(`swcheck.testing.candidates`) were gated; a label is the perplexity ratio by lm-evaluation-harness on another text than
the gate's. `tiny` was gated in the standard tier, the others in the smoke tier. *Harmful* is over x1.5 (of a scheme of
which published ones lose more, over that: 2 bits x1.6, 2:4 sparsity x2.2), *harmless* under x1.02; what lies between is
the grey zone. A *false alarm* is a red candidate that computes the same as its reference, or
one whose perplexity is red though the label is harmless and the fault that was made is not named. Faults that cost
nothing on the label's text (it uses no such row, begins no text with BOS, or is another kind of text) may be red all the
same: they are counted as *red, no loss*, and listed.
"""


def _totals(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| reference | candidates | harmful | missed | false alarms | red, no loss | red | cause right |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    names = list(dict.fromkeys(row.reference for row in rows))
    for name in (*names, "all"):
        mine = [row for row in rows if name in {row.reference, "all"}]
        harmful, red = [row for row in mine if row.is_harmful], [row for row in mine if row.check]
        quiet = sum(row.label < HARMLESS and not row.is_false for row in red)
        counts = [len(mine), len(harmful), sum(not row.check for row in harmful), sum(row.is_false for row in mine)]
        right = sum(row.is_right for row in red)
        cells = [name, *counts, quiet, len(red), f"{right} ({right / max(1, len(red)):.0%})"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines + _exceptions(rows)


def _exceptions(rows: Sequence[Row]) -> list[str]:
    """Return every candidate that was missed, a false alarm, or named wrongly."""
    bad = [
        row for row in rows if (row.is_harmful and not row.check) or row.is_false or (row.check and not row.is_right)
    ]
    lines = [
        "",
        "Every verdict or cause that is not as it should be:" if bad else "Every verdict and cause is as it should be.",
        "",
    ]
    for row in bad:
        said = f'{row.check} red, "{row.cause}"' if row.check else "green"
        lines.append(f"- {row.reference}, {row.kind} {row.strength:g}, label x{row.label:.3g}: {said}")
    kept = [row for row in rows if row.label > HARMFUL and not row.is_harmful and not row.check]
    if kept:
        lines += ["", f"Green over x{HARMFUL}, within what published ones of the scheme lose:", ""]
    for row in kept:
        most = PUBLISHED[row.kind, row.strength]
        lines.append(f"- {row.reference}, {row.kind} {row.strength:g}, label x{row.label:.3g}: held to x{most:g}")
    quiet = [row for row in rows if row.check and row.label < HARMLESS and not row.is_false]
    lines += ["", "Red though the label has no loss, each for the fault that was made:", ""]
    for row in quiet:
        lines.append(
            f"- {row.reference}, {row.kind} {row.strength:g}, label x{row.label:.3g}: {row.check}, `{row.cause_kind}`"
        )
    return lines


def _curve(rows: Sequence[Row]) -> list[str]:
    """Return the table of the share of red candidates by label, and the check that is red first."""
    lines = [
        "## At which loss the gate turns red",
        "",
        "| perplexity by the label | candidates | red | first by perplexity | by predictions | by super weights or activations |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for low, high in zip(BINS, BINS[1:], strict=False):
        mine = [row for row in rows if low <= row.label < high or (high == math.inf and row.label == high)]
        if mine:
            red = [row for row in mine if row.check]
            counts = [sum(row.check == name for row in red) for name in ("perplexity", "predictions")]
            words = (
                f"under x{high:g}" if not low else (f"from x{low:g}" if high == math.inf else f"x{low:g} to x{high:g}")
            )
            cells = [words, len(mine), f"{len(red)} ({len(red) / len(mine):.0%})", *counts, len(red) - sum(counts)]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def _costs() -> list[str]:
    """Return what red and green candidates of tiny cost, as ``measure_costs`` found."""
    if not COSTS.exists():
        return _as_it_stands(COSTS_HEADING)
    found: dict[str, list[Any]] = json.loads(COSTS.read_text(encoding="utf-8"))
    green = found.pop("copy")[0]
    lines = [
        COSTS_HEADING,
        "",
        f"Seconds of processor that four checks of `tiny` take, one thread, over the {green:.2f} s of a green copy.",
        "",
        "| candidate | cause | over green |",
        "| --- | --- | --- |",
    ]
    ranked = sorted(found, key=lambda name: found[name][0])
    return [*lines, *(f"| {name} | `{found[name][1]}` | x{found[name][0] / green:.1f} |" for name in ranked), ""]


def measure_costs() -> None:
    """Gate a few candidates of tiny one after the other, and keep the seconds of processor in ``COSTS``."""
    tiny, found = load("tiny", device="cpu"), {}
    reference = as_subject(tiny)
    torch.set_num_threads(1)
    for kind, strength in (("copy", 0.0), *COSTED):
        made = as_subject(candidate(kind, tiny, strength))
        made.kind, cause, start = "auto", "", time.process_time()
        for check in CHECKS:
            try:
                check(made, reference)
            except RobustnessError as error:
                cause = cause or error.verdict.cause_kind
        found[kind] = [time.process_time() - start, cause]
        if kind == "copy" and not cause:  # the first one has measured the reference
            made = as_subject(candidate(kind, tiny, strength))
            start = time.process_time()
            for check in CHECKS:
                check(made, reference)
            found[kind] = [time.process_time() - start, cause]
    COSTS.write_text(json.dumps(found), encoding="utf-8")


def _repeats() -> list[str]:
    """Return what ``tools.causes_repeats`` found."""
    if not REPEATS.exists():
        return _as_it_stands(REPEATS_HEADING)
    found: dict[str, Any] = json.loads(REPEATS.read_text(encoding="utf-8"))
    return [REPEATS_HEADING, "", found["words"], ""]


def _as_it_stands(heading: str) -> list[str]:
    """Return a section of the page, for one whose measurements are not in ``build``; without a heading all before the costs."""
    text = PAGE.read_text(encoding="utf-8")
    if not heading:
        return [*text.partition(f"{COSTS_HEADING}\n")[0].rstrip("\n").split("\n"), ""]
    section = text.partition(f"{heading}\n")[2].partition("\n## ")[0]
    return [heading, *section.rstrip("\n").split("\n"), ""]


def main(arguments: Sequence[str]) -> None:
    """Run what is missing, and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", nargs="?", default="")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--costs", action="store_true", help="measure costs alone")
    asked = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    if asked.costs:
        measure_costs()
    elif not asked.page:
        run(asked.directory, asked.text.read_text(encoding="utf-8") if asked.text else "")
    PAGE.write_text(page(kept_rows()), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
