"""``swcheck study MODEL``: measure the claims of the super weight paper on a model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swcheck.base.errors import OptionError
from swcheck.base.output_files import check_writable, write_atomically
from swcheck.base.reading.text_file import read_text
from swcheck.base.terminal.visible import tell
from swcheck.run.command_line.common.arguments import add_json, add_loading, add_tasks, load_model
from swcheck.study.catalogue import NAMES

if TYPE_CHECKING:
    from swcheck.study.common.setup import Setup
    from swcheck.study.paper import Published


def add(commands: Any) -> None:
    """Add the subcommand to argparse's ``commands``."""
    words = f"one or more of {', '.join(NAMES)}; all of them if left out"
    parser = commands.add_parser("study", help="measure the claims of the super weight paper on a model")
    parser.add_argument("model", help="tiny, a known name, a hub id or a directory")
    parser.add_argument("names", nargs="*", metavar="STUDY", help=words)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write records, CSV and pictures; a stopped run goes on"
    )
    parser.add_argument("--text", type=Path, metavar="FILE", help="the text that perplexity is measured on")
    add_tasks(parser)
    parser.add_argument(
        "--limit", type=int, metavar="N", help="only the first N items of each zero-shot task; 200 of the offline ones"
    )
    parser.add_argument(
        "--compare-paper", nargs="?", const="", metavar="NAME",
        help="show what is published of this model beside it; =NAME says which one a directory holds",
    )  # fmt: skip
    parser.add_argument("--corpus", choices=("wikitext-2", "c4"), help="what --text is, so that perplexities compare")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn, %(default)s by default")
    add_loading(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> str:
    """Run the studies, write their files into ``--out``, and return their tables as text or their records as JSON.

    Raises ``OptionError`` for a study that does not exist, or published numbers that do not exist.
    """
    names = list(dict.fromkeys(options.names)) or list(NAMES)
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise OptionError(f"a study called {unknown[0]!r}", f"there are {', '.join(NAMES)}")
    text = None if options.text is None else read_text(options.text)
    if options.out is not None:
        check_writable(options.out / "README.md")

    from swcheck.study import paper, runner
    from swcheck.study.common.record import as_json

    published = () if options.compare_paper is None else _published(options.compare_paper or options.model, names)
    taken = list(runner.run(_setup(options, text), names, options.out, _log))
    cells = paper.compare([record for _, record in taken], published, corpus=options.corpus)
    if options.out is not None:
        write_atomically(options.out / "README.md", runner.as_page(taken, options.out, cells))
        _log(f"written: {options.out / 'README.md'}")
    if options.json:
        return "[" + ",\n".join(as_json(record) for _, record in taken) + "]"
    lines = [line for chapter, record in taken for line in runner.as_text(chapter, record)]
    return "\n".join([*lines, *runner.comparison_lines(cells)])


def _log(line: str) -> None:
    tell(line)


def _setup(options: argparse.Namespace, text: str | None) -> Setup:
    """Load the model, and return the setup that its studies share."""
    from swcheck.study.common.setup import setup_of, zero_shot_scorer
    from swcheck.study.zeroshot.harness import OFFLINE_ITEMS, OFFLINE_TASKS, expand_task_sets

    tasks = expand_task_sets(options.tasks)
    limit = OFFLINE_ITEMS if options.limit is None and set(tasks) <= set(OFFLINE_TASKS) else options.limit
    scorer, why_unscored = zero_shot_scorer(tasks, limit)
    setup = setup_of(load_model(options), seed=options.seed, text=text, scorer=scorer, why_unscored=why_unscored)
    if scorer is not None:  # a stored record with other tasks or another limit must not be reused
        setup.facts.update(tasks=list(tasks), limit=limit)
    return setup


def _published(model: str, names: Sequence[str]) -> tuple[Published, ...]:
    """Return the published numbers of a model in these studies. Raises ``OptionError`` if there are none."""
    from swcheck.study import paper

    found = tuple(one for one in paper.published(model) if one.study in names)
    if not found:
        known = ", ".join(dict.fromkeys(one.model for one in paper.all_published()))
        asked = f"published numbers of {model} in {', '.join(names)}"
        raise OptionError(asked, f"there are none; there are some of {known}", "leave --compare-paper out")
    return found
