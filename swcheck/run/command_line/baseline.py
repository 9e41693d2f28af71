"""``swcheck baseline MODEL``: write a reference's baseline, or say in words what would change in it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from swcheck.base.errors import OptionError, RobustnessError
from swcheck.base.formatting import format_number
from swcheck.base.output_files import write_atomically
from swcheck.base.reading.bounded import read_bytes
from swcheck.base.tiers import STANDARD, tier_named
from swcheck.run.command_line.common.arguments import add_loading
from swcheck.run.command_line.common.layout import aligned, terminal_width, wrap_lines
from swcheck.run.options import values_beside_pytest

if TYPE_CHECKING:
    from swcheck.base.records import Verdict
    from swcheck.superweights.subject.subject import Subject

FOLDER: Final = "baselines"
MEASURED_WITH: Final = ("text", "tier", "device", "dtype", "offline", "trust_remote_code")
"""The options that a baseline is measured with: the project's own, so that its gate can use the baseline."""

DIGESTS: Final = {
    "weights": "other weights",
    "tokenizer": "another tokenizer",
    "text": "another text",
    "revision": "another revision",
}
"""The facts of a baseline that are digests, and what it means that one differs."""

FACTS: Final = ("tier", "device", "dtype", "torch", "transformers", "swcheck", "schema")
"""The facts of a baseline that are readable."""


def add(commands: Any) -> None:
    """Add the subcommand to argparse's ``commands``."""
    parser = commands.add_parser("baseline", help="write a reference's measurements into a small file, or review them")
    parser.add_argument("model", help="tiny, a known name, a hub id or a directory")
    parser.add_argument("--dir", default=FOLDER, help=f"the folder of baselines; {FOLDER} if left out")
    parser.add_argument("--diff", action="store_true", help="write nothing; say what would change, exit with 1 if so")
    parser.add_argument("--text", help="UTF-8 text that perplexity is measured on; a built-in one if left out")
    parser.add_argument("--tier", help="how much is measured: smoke, standard or full")
    add_loading(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> str:
    """Measure the reference, and write its baseline or return the differences from the one that is there.

    Raises ``OptionError`` for a review without an older file, and what loading and measuring raise.
    """
    from swcheck.gate.baseline.document import MOST_READ
    from swcheck.gate.baseline.file import read_baseline
    from swcheck.run.session import Session
    from swcheck.run.settings import baseline_path, read_settings

    given = {name: value for name in MEASURED_WITH if (value := getattr(options, name))}
    given |= {"model": [options.model], "baseline": options.dir, "update": True}
    beside, places = values_beside_pytest(Path.cwd())
    values = {name: value for name, value in beside.items() if name in MEASURED_WITH} | given
    settings = read_settings(values, {name: "command line" if name in given else places[name] for name in values})
    path = baseline_path(settings, options.model)
    if options.diff and not path.is_file():
        raise OptionError(
            f"swcheck baseline {options.model} --diff", f"no file {path}", "write it first, without --diff"
        )
    before = read_baseline(read_bytes(path, MOST_READ, f"baseline {path}"), str(path)) if options.diff else None
    session = Session(settings)
    session.reference(options.model)
    session.free()
    text = session.baselines[path]
    if before is None:
        write_atomically(path, text)
        return f'written: {path} ({len(text) / 1000:,.0f} KB)\nnext: review and commit it, then --swcheck-baseline={options.dir}, or baseline = "{options.dir}" in [tool.swcheck]'
    after = read_baseline(text, str(path))
    causal = all(tier_named(str(facts.get("tier", STANDARD.name))).causal for _, facts in (before, after))
    lines = [*changed_facts(before[1], after[1]), *changed_numbers(before[0], after[0], causal=causal)]
    options.code = int(bool(lines))
    head = f"{path}: {'what would change' if lines else 'measured anew, nothing changes'}"
    return "\n".join(wrap_lines([head, *lines], terminal_width()))


def changed_facts(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return a line for each fact that differs between two baselines: what was measured, with what, and coordinates."""
    lines = [f"  {words}" for name, words in DIGESTS.items() if before.get(name) != after.get(name)]
    lines += [
        f"  {name} {before.get(name)} -> {after.get(name)}" for name in FACTS if before.get(name) != after.get(name)
    ]
    old, new = ({_place(one): one["value"] for one in facts.get("super_weights", ())} for facts in (before, after))
    lines += [f"  super weight gone: {place}" for place in old if place not in new]
    lines += [f"  super weight new: {place} = {value:+.4g}" for place, value in new.items() if place not in old]
    changed = [place for place in old if place in new and old[place] != new[place]]
    return lines + [f"  super weight {place}: {old[place]:+.4g} -> {new[place]:+.4g}" for place in changed]


def _place(fields: Mapping[str, Any]) -> str:
    from swcheck.base.records import SuperWeight

    return SuperWeight(fields["layer"], fields["row"], fields["column"], expert=fields.get("expert")).place


def changed_numbers(before: Subject, after: Subject, *, causal: bool) -> list[str]:
    """Return a line for each check of the model alone whose number, as it is shown, differs; nothing is loaded.

    ``causal`` says whether both baselines have the checks that zero weights, which the tier ``smoke`` leaves out.
    """
    from swcheck.gate import assertions

    checks: list[Callable[[Subject], Verdict]] = [assertions.assert_perplexity_within]
    with_zeroed: list[Callable[[Subject], Verdict]] = [
        assertions.assert_collapses_when_zeroed,
        assertions.assert_survives_pruning,
    ]
    rows = []
    for check in [*checks, *with_zeroed * causal]:
        old, new = _verdict(check, before), _verdict(check, after)
        shown = [format_number(one.measured, one.unit) for one in (old, new)]
        if shown[0] != shown[1] or old.outcome != new.outcome:
            rows.append((old.check, f"{shown[0]} -> {shown[1]}", f"{old.outcome.value} -> {new.outcome.value}"))
    return aligned(rows) if rows else []


def _verdict(check: Callable[[Subject], Verdict], subject: Subject) -> Verdict:
    try:
        return check(subject)
    except RobustnessError as error:
        return error.verdict
