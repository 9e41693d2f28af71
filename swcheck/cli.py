"""``swcheck locate``, ``swcheck study``, ``swcheck accuracy`` and ``swcheck index``, for people who are not in a test.

With ``--json`` nothing but JSON goes to stdout, whatever other libraries have to say.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swcheck import index, study
from swcheck.errors import OptionError, SwcheckError
from swcheck.files import write_atomically
from swcheck.lines import folded
from swcheck.report import dumps, number
from swcheck.text import read_text

if TYPE_CHECKING:
    from swcheck.location import Located
    from swcheck.records import Loaded
    from swcheck.study.paper import Published
    from swcheck.zeroshot import Score


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 done, whatever was found, 2 wrong use or a model that cannot be used."""
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], str] = options.run
    try:
        with redirect_stdout(sys.stderr):
            answer = run(options)
    except SwcheckError as error:
        sys.stderr.write(f"swcheck: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    return _written(answer)


def _written(answer: str) -> int:
    try:
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="swcheck", description="Super weights of language models.")
    parser.add_argument("--version", action="version", version=f"swcheck {version('swcheck')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_locate(commands)
    _add_study(commands)
    _add_accuracy(commands)
    _add_index(commands)
    return parser


def _add_locate(commands: Any) -> None:
    parser = commands.add_parser("locate", help="find the super weights of a model, without data")
    parser.add_argument("model", help="tiny, a known name, a hub id or a directory")
    parser.add_argument("--prompt", help="another prompt to look at")
    parser.add_argument("--verify", action="store_true", help="zero what is found and measure the perplexity")
    parser.add_argument("--no-index", action="store_true", help="start from nothing, not from published coordinates")
    _add_loading(parser)
    parser.add_argument("--json", action="store_true", help="write JSON, and nothing else, to stdout")
    parser.set_defaults(run=_locate)


def _add_loading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="an accelerator if there is one")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16; the checkpoint's own by default")
    parser.add_argument("--offline", action="store_true", help="never download")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the Python that the checkpoint brings")


def _add_accuracy(commands: Any) -> None:
    parser = commands.add_parser("accuracy", help="zero-shot accuracy through lm-evaluation-harness, an extra")
    parser.add_argument("model", help="tiny, a known name, a hub id or a directory")
    _add_tasks(parser)
    parser.add_argument("--include-path", type=Path, metavar="DIR", help="a folder with more tasks, in YAML")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N items of each task")
    parser.add_argument("--batch", type=int, metavar="N", help="items in one pass, 16 by default")
    parser.add_argument("--zeroed", action="store_true", help="ask again with the super weights zeroed")
    parser.add_argument("--write-tasks", type=Path, metavar="DIR", help="write the offline tasks for lm_eval, no more")
    _add_loading(parser)
    parser.add_argument("--json", action="store_true", help="write JSON, and nothing else, to stdout")
    parser.set_defaults(run=_accuracy)


def _add_tasks(parser: argparse.ArgumentParser) -> None:
    words = (
        "zero-shot tasks of lm-evaluation-harness with commas between, `paper` for its seven; offline ones by default"
    )
    parser.add_argument("--tasks", type=_names, metavar="NAMES", help=words)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _add_study(commands: Any) -> None:
    words = f"one or more of {', '.join(study.NAMES)}; all of them if left out"
    parser = commands.add_parser("study", help="measure the claims of the super weight paper on a model")
    parser.add_argument("model", help="tiny, a known name, a hub id or a directory")
    parser.add_argument("names", nargs="*", metavar="STUDY", help=words)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write records, CSV and pictures; a stopped run goes on"
    )
    parser.add_argument("--text", type=Path, metavar="FILE", help="the text that perplexity is measured on")
    _add_tasks(parser)
    parser.add_argument(
        "--limit", type=int, metavar="N", help="only the first N items of each zero-shot task; 200 of the offline ones"
    )
    parser.add_argument(
        "--compare-paper", nargs="?", const="", metavar="NAME",
        help="show what is published of this model beside it; =NAME says which one a directory holds",
    )  # fmt: skip
    parser.add_argument("--corpus", choices=("wikitext-2", "c4"), help="what --text is, so that perplexities compare")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn, %(default)s by default")
    _add_loading(parser)
    parser.add_argument("--json", action="store_true", help="write JSON, and nothing else, to stdout")
    parser.set_defaults(run=_study)


def _add_index(commands: Any) -> None:
    parser = commands.add_parser("index", help="show the published coordinates")
    parser.add_argument("model", nargs="?", help="one model; all of them if left out")
    parser.add_argument("--json", action="store_true", help="write JSON, and nothing else, to stdout")
    parser.set_defaults(run=_index)


def _loaded(options: argparse.Namespace) -> Loaded:
    from swcheck.engines import load

    return load(
        options.model,
        device=options.device,
        dtype=options.dtype,
        offline=options.offline,
        trust_remote_code=options.trust_remote_code,
    )


def _study(options: argparse.Namespace) -> str:
    names = list(dict.fromkeys(options.names)) or list(study.NAMES)
    unknown = [name for name in names if name not in study.NAMES]
    if unknown:
        raise OptionError(f"a study called {unknown[0]!r}", f"there are {', '.join(study.NAMES)}")
    text = None if options.text is None else read_text(options.text)

    from swcheck.study import paper, runner
    from swcheck.study.record import as_json
    from swcheck.study.setup import setup_of, zero_shot
    from swcheck.zeroshot import ITEMS, OFFLINE, named

    numbers = () if options.compare_paper is None else _published(options.compare_paper or options.model, names)

    def told(line: str) -> None:
        sys.stderr.write(f"swcheck: {line}\n")

    tasks = named(options.tasks)
    limit = ITEMS if options.limit is None and set(tasks) <= set(OFFLINE) else options.limit
    scorer, unscored = zero_shot(tasks, limit)
    setup = setup_of(_loaded(options), seed=options.seed, text=text, scorer=scorer, unscored=unscored)
    if scorer is not None:  # else a record of other tasks, or of fewer items, would be taken for this one
        setup.facts.update(tasks=list(tasks), limit=limit)
    taken = list(runner.run(setup, names, options.out, told))
    cells = paper.compare([record for _, record in taken], numbers, corpus=options.corpus)
    if options.out is not None:
        write_atomically(options.out / "README.md", runner.as_page(taken, options.out, cells))
        told(f"written: {options.out / 'README.md'}")
    if options.json:
        return "[" + ",\n".join(as_json(record) for _, record in taken) + "]"
    lines = [line for chapter, record in taken for line in runner.as_text(chapter, record)]
    return "\n".join([*lines, *runner.comparison(cells)])


def _published(model: str, names: Sequence[str]) -> tuple[Published, ...]:
    """What is published of a model in the studies that are taken; refused before anything is loaded where nothing is."""
    from swcheck.study import paper

    found = tuple(one for one in paper.published(model) if one.study in names)
    if not found:
        known = ", ".join(dict.fromkeys(one.model for one in paper.everything()))
        asked = f"published numbers of {model} in {', '.join(names)}"
        raise OptionError(asked, f"there are none; there are some of {known}", "leave --compare-paper out")
    return found


def _locate(options: argparse.Namespace) -> str:
    from swcheck.location import locate
    from swcheck.subject import known, subject_of

    loaded = _loaded(options)
    subject = subject_of(loaded)
    found = locate(
        loaded.model,
        token_ids=subject.prompt_ids(options.prompt),
        seeds=() if options.no_index else known(loaded.name),
        verify=subject.windows() if options.verify else None,
    )
    if options.json:
        return dumps(located_as_json(loaded.name, found))
    return "\n".join(fitted(located_as_text(loaded.name, found), _terminal()))


def located_as_json(name: str, found: Located) -> dict[str, Any]:
    """What ``swcheck locate MODEL --json`` prints."""
    effect = found.effect
    return {
        "model": name,
        "super_weights": [weight.as_json() for weight in found.super_weights],
        "written": list(found.written),
        "super_activations": [
            {"layer": a.layer, "channel": a.channel, "position": a.position, "value": a.value, "ratio": a.ratio}
            for a in found.activations
        ],
        "reason": found.reason,
        "rounds": len(found.rounds),
        "verified": effect
        and {
            "perplexity": effect.intact.perplexity,
            "zeroed": effect.together.perplexity,
            "alone": [likelihood.perplexity for likelihood in effect.alone],
        },
    }


def located_as_text(name: str, found: Located) -> list[str]:
    """What ``swcheck locate MODEL`` prints: the answer, then what each round saw."""
    lines = [f"{name}: {found.reason}"]
    for weight, written in zip(found.super_weights, found.written, strict=True):
        lines.append(f"  {weight}, writes {number(written)}")
    for count, look in enumerate(found.rounds, 1):
        lines += ["", f"round {count}: largest magnitude per layer (value @ token, channel)"]
        rows = [
            (str(peaks.layer), *(f"{p.value:+.4g} @ {p.position}, {p.channel}" for p in (peaks.input, peaks.output, peaks.residual)))
            for peaks in look.layers
        ]  # fmt: skip
        lines += _aligned([("layer", "down_proj input", "down_proj output", "residual stream"), *rows])
        lines += [f"  {remark}" for remark in look.remarks]
        lines.append(f"  found: {'; '.join(map(str, look.found)) or 'nothing more'}")
    if found.effect is not None:
        ratio = found.effect.together.perplexity / found.effect.intact.perplexity
        zeroed = f"all zeroed together {number(ratio, 'x')}" if found.super_weights else "nothing to zero"
        lines += ["", f"perplexity {number(found.effect.intact.perplexity)}, {zeroed}"]
    return lines


def _accuracy(options: argparse.Namespace) -> str:
    from swcheck import engines, zeroshot

    if options.write_tasks is not None:
        zeroshot.write_tasks(options.write_tasks)
        names = ",".join(zeroshot.OFFLINE)
        return f"lm_eval --model hf --model_args pretrained=DIR --tasks {names} --include_path {options.write_tasks}"
    engines.check(options.model, trust_remote_code=options.trust_remote_code, offline=options.offline)
    zeroshot.check_installed()
    loaded = _loaded(options)
    ask = partial(
        zeroshot.accuracy,
        loaded.model,
        loaded.tokenizer,
        zeroshot.named(options.tasks),
        limit=options.limit,
        batch=zeroshot.BATCH if options.batch is None else options.batch,
        include=options.include_path,
    )
    scores, without = ask(), None
    if options.zeroed:
        from swcheck.intervene import zeroed
        from swcheck.subject import subject_of

        with zeroed(loaded.model, subject_of(loaded).located().super_weights):
            without = ask()
    if options.json:
        return dumps(
            {
                "model": loaded.name,
                "scores": [score.as_json() for score in scores],
                "zeroed": without and [score.as_json() for score in without],
            }
        )
    return "\n".join(accuracy_as_text(loaded.name, scores, without))


def accuracy_as_text(name: str, scores: Sequence[Score], without: Sequence[Score] | None) -> list[str]:
    """What ``swcheck accuracy MODEL`` prints: a row per number, the average of each task's headline under them."""
    from swcheck.zeroshot import average, headlines

    heads = ("task", "metric", "value", "error", "items", *(() if without is None else ("zeroed",)))
    rows = [
        (s.task, s.metric, f"{s.value:.4f}", "-" if s.stderr is None else f"{s.stderr:.4f}", str(s.items))
        + (() if without is None else (f"{without[place].value:.4f}",))
        for place, s in enumerate(scores)
    ]
    lines = [f"{name}: zero-shot, by lm-evaluation-harness", *_aligned([heads, *rows])]
    if len(chosen := headlines(scores)) > 1:
        fallen = "" if without is None else f", zeroed {average(without):.4f}"
        lines.append(f"  average of {len(chosen)} tasks: {average(scores):.4f}{fallen}")
    return lines


def _index(options: argparse.Namespace) -> str:
    chosen = list(index.entries()) if options.model is None else [index.entry(options.model)]
    if options.json:
        return dumps([index.as_json(entry) for entry in chosen])
    lines = [line for entry in chosen for line in index.as_text(entry, full=options.model is not None)]
    return "\n".join(fitted(lines, _terminal()))


def fitted(lines: Sequence[str], width: int | None) -> list[str]:
    """The lines, those that are wider than a terminal folded under where they begin; None is no terminal."""
    return [
        part
        for line in lines
        for part in (folded(line, width, len(line) - len(line.lstrip()) + 2) if width and len(line) > width else [line])
    ]


def _terminal() -> int | None:
    """How wide the terminal is that an answer goes to, None where a file or another program reads it."""
    out = sys.__stdout__
    return shutil.get_terminal_size().columns if out is not None and out.isatty() else None


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


if __name__ == "__main__":
    raise SystemExit(main())
