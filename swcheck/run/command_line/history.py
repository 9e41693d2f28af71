"""``swcheck history DIR``: the margins of past runs over time, so that a slow slide is seen before it turns red."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from swcheck.base.errors import OptionError, SwcheckError
from swcheck.base.formatting import format_number
from swcheck.base.output_files import check_writable
from swcheck.base.reading.bounded import read_json
from swcheck.base.records import Verdict
from swcheck.run.command_line.common.layout import aligned
from swcheck.run.reports.margins import margin
from swcheck.run.reports.verdict_json import read_verdicts

LARGEST_FILE: Final = 2**26
BARS: Final = "▁▂▃▄▅▆▇█"
MOST_SHOWN: Final = 12
"""The number of the latest runs that the trend of a check shows."""

MOST_NAMES: Final = 10
"""The number of runs that are named below the picture."""

SLIDE: Final = 0.25
"""A check that has lost this share of its room, since the run with the largest margin, is called a slide."""


@dataclass(frozen=True)
class Run:
    """One JSON file of a run: its name, when it was written (seconds since 1970), and its verdicts."""

    name: str
    time: float
    verdicts: tuple[Verdict, ...]


Series = Mapping[tuple[str, str], list[tuple[Run, Verdict]]]
"""The verdicts of each check, by (model and candidate, check), the oldest run first."""


def add(commands: Any) -> None:
    """Add the subcommand to argparse's ``commands``."""
    parser = commands.add_parser("history", help="margins of past runs over time, from their JSON files")
    parser.add_argument("folder", type=Path, help="where the files of --swcheck-json of past runs lie, one a run")
    parser.add_argument("--out", type=Path, metavar="FILE", help="draw the margins as well: a .png or .svg")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> str:
    """Return a row for each check with its margins over the runs, and draw them if a file is given.

    Raises ``OptionError`` for a folder without runs. Files that are no runs of swcheck are named, and left out.
    """
    if options.out is not None:
        from swcheck.study.common.plots import check_available

        check_available(f"a picture {options.out.name}")
        check_writable(options.out.absolute())
    runs, refused = read_runs(options.folder)
    if not runs:
        more = f", {len(refused)} other files" if refused else ""
        raise OptionError(
            f"runs in {options.folder}", f"no file of --swcheck-json{more}", "--swcheck-json=DIR/DATE.json"
        )
    found = series(runs)
    lines = [f"{options.folder}: {len(runs)} run{'s' * (len(runs) > 1)}, {_day(runs[0])} to {_day(runs[-1])}"]
    lines += aligned([("check", "of", "measured", "limit", "margins, oldest first", "now"), *map(_row, found.items())])
    lines += [f"  left out, no run of swcheck: {name}" for name in refused]
    if options.out is not None:
        from swcheck.study.common.plots import write_picture

        title = "What is left of each check's best margin (logarithmic); shaded: red"
        height = 1.4 + 1.9 * len({who for who, _ in found})
        write_picture(options.out, title, lambda figure: draw(figure, found), size=(9.0, height))
        lines.append(f"written: {options.out}")
    return "\n".join(lines)


def read_runs(folder: Path) -> tuple[list[Run], list[str]]:
    """Return the runs of a folder, the oldest first, and the names of JSON files that are none."""
    runs, refused = [], []
    for file in sorted(folder.glob("*.json")):
        try:
            asked = f"history {file}"
            verdicts = tuple(verdict for _, verdict in read_verdicts(read_json(file, LARGEST_FILE, asked), asked))
        except (SwcheckError, OSError):
            refused.append(file.name)
        else:
            runs.append(Run(file.stem, file.stat().st_mtime, verdicts))
    return sorted(runs, key=lambda one: (one.time, one.name)), refused


def series(runs: Sequence[Run]) -> Series:
    """Return the verdicts of each check that has a margin, or has lost it, over the runs."""
    found: dict[tuple[str, str], list[tuple[Run, Verdict]]] = {}
    for one in runs:
        for verdict in one.verdicts:
            if verdict.limit is not None and verdict.measured is not None:
                found.setdefault((verdict.who, verdict.check), []).append((one, verdict))
    return {key: values for key, values in found.items() if any(margin(verdict) is not None for _, verdict in values)}


def _row(entry: tuple[tuple[str, str], list[tuple[Run, Verdict]]]) -> tuple[str, ...]:
    (who, check), values = entry
    last = values[-1][1]
    margins = [0.0 if (found := margin(verdict)) is None else found for _, verdict in values]
    measured = format_number(last.measured, last.unit)
    return (
        check,
        who,
        measured,
        str(last.limit),
        _trend(margins[-MOST_SHOWN:]),
        f"{_number(margins[-1])}{_slide(margins)}",
    )


def _number(value: float) -> str:
    return format_number(value, "x") if value else "-"


def _trend(margins: Sequence[float]) -> str:
    """Return a bar for each margin, from the limit to the largest one, logarithmic; a red one is an exclamation mark."""
    most = math.log(max(1.0, *margins)) * 1.0001 or 1.0
    return "".join("!" if value < 1 else BARS[int(len(BARS) * math.log(value) / most)] for value in margins)


def _slide(margins: Sequence[float]) -> str:
    if margins[-1] < 1:
        return ", red"
    lost = 1 - room(margins[-1], max(margins))
    return f", {lost:.0%} of its room lost" if lost > SLIDE else ""


def room(value: float, best: float) -> float:
    """Return how far a margin is from its limit: 1 at the ``best`` one, 0 at the limit, below that red, at least -1.

    The margins of perplexity are just above 1, those of a collapse in the thousands: on this scale each slide is seen.
    """
    if not value > 0:
        return -1.0
    if value >= best:
        return 1.0 if value >= 1 else -1.0
    if best <= 1:
        return -1.0
    if not math.isfinite(best):
        return 0.0 if value >= 1 else -1.0
    return max(-1.0, math.log(value) / math.log(best))


def _day(one: Run) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(one.time))


def draw(figure: Any, found: Series) -> None:
    """Draw the ``room`` of each check over the runs, one panel for each model or candidate, with what is red shaded."""
    from swcheck.study.common.plots import MARKERS

    names = list(
        dict.fromkeys(one.name for values in found.values() for one, _ in sorted(values, key=lambda v: v[0].time))
    )
    checks = list(dict.fromkeys(check for _, check in found))
    panels = list(dict.fromkeys(who for who, _ in found))
    every = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, who in zip(every, panels, strict=True):
        for check in (check for other, check in found if other == who):
            points = [(names.index(one.name), margin(verdict)) for one, verdict in found[who, check]]
            look = {"color": f"C{checks.index(check) % 8}", "marker": MARKERS[checks.index(check) % len(MARKERS)]}
            known = [(place, value) for place, value in points if value is not None]
            best = max((value for _, value in known), default=1.0)
            shown = [(place, room(value, best)) for place, value in known]
            axes.plot([place for place, _ in shown], [value for _, value in shown], label=check, **look)
        axes.axhspan(-1.1, 0.0, color="#D55E00", alpha=0.12, linewidth=0)
        axes.set_ylim(-1.1, 1.1)
        axes.set_yticks([0, 0.5, 1], ["limit", "half", "best"])
        axes.set_title(who, fontsize=10, loc="left")
        axes.set_ylabel("room to the limit")
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    step = max(1, -(-len(names) // MOST_NAMES))
    every[-1].set_xticks(range(0, len(names), step), names[::step], rotation=30, ha="right")
