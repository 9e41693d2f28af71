"""``swcheck accuracy MODEL``: zero-shot accuracy through lm-evaluation-harness."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swcheck.base.json_text import json_text
from swcheck.run.command_line.common.arguments import add_json, add_loading, add_tasks, load_model
from swcheck.run.command_line.common.layout import aligned

if TYPE_CHECKING:
    from swcheck.study.zeroshot.harness import Score


def add(commands: Any) -> None:
    """Add the subcommand to argparse's ``commands``."""
    parser = commands.add_parser("accuracy", help="zero-shot accuracy through lm-evaluation-harness, an extra")
    parser.add_argument("model", help="tiny, a known name, a hub id or a directory")
    add_tasks(parser)
    parser.add_argument("--include-path", type=Path, metavar="DIR", help="a folder with more tasks, in YAML")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N items of each task")
    parser.add_argument("--batch", type=int, metavar="N", help="items in one pass, 16 by default")
    parser.add_argument("--zeroed", action="store_true", help="ask again with the super weights zeroed")
    parser.add_argument("--write-tasks", type=Path, metavar="DIR", help="write the offline tasks for lm_eval, no more")
    add_loading(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> str:
    """Measure the accuracy, and return the scores as text or JSON.

    With ``--write-tasks``, write the offline tasks and return the command that runs them with lm_eval. Raises a
    ``SwcheckError`` for a model that cannot be loaded, or without lm-evaluation-harness.
    """
    from swcheck.loading import engines
    from swcheck.study.zeroshot import harness

    if options.write_tasks is not None:
        harness.write_tasks(options.write_tasks)
        names = ",".join(harness.OFFLINE_TASKS)
        return f"lm_eval --model hf --model_args pretrained=DIR --tasks {names} --include_path {options.write_tasks}"
    engines.check(options.model, trust_remote_code=options.trust_remote_code, offline=options.offline)
    harness.check_installed()
    loaded = load_model(options)
    measure = partial(
        harness.accuracy,
        loaded.model,
        loaded.tokenizer,
        harness.expand_task_sets(options.tasks),
        limit=options.limit,
        batch=harness.BATCH if options.batch is None else options.batch,
        include=options.include_path,
    )
    scores, zeroed_scores = measure(), None
    if options.zeroed:
        from swcheck.lens.intervene import zeroed
        from swcheck.superweights.measurements.located import located
        from swcheck.superweights.subject.as_subject import as_subject

        with zeroed(loaded.model, located(as_subject(loaded)).super_weights):
            zeroed_scores = measure()
    if options.json:
        return json_text(
            {
                "model": loaded.name,
                "scores": [score.as_json() for score in scores],
                "zeroed": zeroed_scores and [score.as_json() for score in zeroed_scores],
            }
        )
    return "\n".join(accuracy_as_text(loaded.name, scores, zeroed_scores))


def accuracy_as_text(name: str, scores: Sequence[Score], zeroed_scores: Sequence[Score] | None) -> list[str]:
    """Return the lines that ``swcheck accuracy MODEL`` prints: a row for each number, and the average of the tasks."""
    from swcheck.study.zeroshot.harness import average, headlines

    heads = ("task", "metric", "value", "error", "items", *(() if zeroed_scores is None else ("zeroed",)))
    rows = [
        (s.task, s.metric, f"{s.value:.4f}", "-" if s.stderr is None else f"{s.stderr:.4f}", str(s.items))
        + (() if zeroed_scores is None else (f"{zeroed_scores[place].value:.4f}",))
        for place, s in enumerate(scores)
    ]
    lines = [f"{name}: zero-shot, by lm-evaluation-harness", *aligned([heads, *rows])]
    if len(chosen := headlines(scores)) > 1:
        zeroed = "" if zeroed_scores is None else f", zeroed {average(zeroed_scores):.4f}"
        lines.append(f"  average of {len(chosen)} tasks: {average(scores):.4f}{zeroed}")
    return lines
