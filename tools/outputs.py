"""Writes the outputs and tables of the README and ``docs/``: ``python -m tools.outputs``. None is typed by hand.

- A block fenced as ``console`` begins with its command after a ``$``. The command runs in an empty directory that holds
  a damaged copy of ``tiny``, called ``zeroed``.
- A table between ``<!-- NAME -->`` and ``<!-- /NAME -->`` is made by the function of that name in ``TABLES``.
- ``--studies DIR`` writes the table of studies from the records that ``swcheck study tiny --out DIR`` left there.
- ``--check`` compares instead of writing, with numbers masked, because their last digits differ between machines.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
PAGES: Final = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK: Final = re.compile(r"```console\n\$ (?P<command>[^\n]*)\n(?P<output>.*?)```", re.DOTALL)
LEFT_OUT: Final = re.compile(
    r"^(platform|plugins|benchmark|rootdir|cachedir|configfile):? .*\n|^rootdir: .*\n", re.MULTILINE
)
"""Lines of pytest's header that differ from machine to machine."""


def save_damaged_copy(folder: Path) -> None:
    """Save a copy of tiny whose super weight is zeroed."""
    from swcheck import SuperWeight, load, zeroed

    tiny = load("tiny", device="cpu")
    with zeroed(tiny.model, [SuperWeight(1, 97, 301)]):
        tiny.model.save_pretrained(folder / "zeroed")
    tiny.tokenizer.save_pretrained(folder / "zeroed")


def output_of(command: str, folder: Path) -> str:
    """Return what the command prints, without the lines that differ from machine to machine."""
    name, *arguments = command.split()
    module = {"pytest": ["-m", "pytest", "-p", "no:cacheprovider"], "swcheck": ["-m", "swcheck"]}[name]
    environment = {"COLUMNS": "100", "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HOME": str(folder)}
    environment["PYTHONPATH"] = str(ROOT)  # the pages show what this copy prints, not an installed one
    result = subprocess.run(  # noqa: S603 - the commands of our own pages
        [sys.executable, *module, *arguments], cwd=folder, capture_output=True, text=True, check=False, env=environment
    )
    return LEFT_OUT.sub("", result.stdout)


def masked(text: str) -> str:
    """Return the text with numbers and time estimates masked, and runs of blanks, dashes or equals signs as a blank."""
    text = re.sub(r"~\d+ (s|min|h)\b", "~0 s", text)  # an estimate may have another unit on another machine
    text = re.sub(r"s \(\d+:\d\d:\d\d\)", "s", text)  # pytest adds it from one minute on
    return re.sub(r"[ =-]+", " ", re.sub(r"[+-]?\d[\d,]*(\.\d+)?(e[+-]?\d+)?", "0", text)).strip()


def rendered(text: str) -> str:
    """Return a page with every output and table made anew."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if BLOCK.search(text):
            save_damaged_copy(folder)
        text = BLOCK.sub(
            lambda block: f"```console\n$ {block['command']}\n{output_of(block['command'], folder).strip()}\n```", text
        )
    for table, make in TABLES.items():
        text = replaced(text, table, make)
    return text


def replaced(text: str, name: str, make: Callable[[], str]) -> str:
    """Return the page with the table ``name``, if it has one, replaced by what ``make`` returns."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    return pattern.sub(lambda found: f"{found[1]}{make()}\n{found[2]}", text)


def limits() -> str:
    """Return the default limits with their reasons, then the limits by scheme."""
    from swcheck.base.limits import BY_PATTERN, BY_SCHEME, DEFAULTS, DISTILLED, MOST_GUESSED

    words = {
        "contribution": "what a super weight writes, candidate over reference, signed",
        "activation": "a super activation at the reference's place, candidate over reference",
        "perplexity": "candidate over reference",
        "kl": "mean KL divergence, nats",
        "top1": "share of positions with the same likeliest token",
        "collapse": "perplexity with the super weights zeroed, over intact",
        "dependence": "the candidate's collapse in capped nats, over the reference's",
        "null": "perplexity with as many matched weights zeroed, over intact",
        "others": "perplexity with the largest other weights zeroed, over intact",
    }
    lines = ["| limit | of | default | because |", "| --- | --- | --- | --- |"]
    lines += [f"| `{name}` | {words[name]} | {limit} | {limit.source} |" for name, limit in DEFAULTS.items()]
    lines += ["", "Perplexity, KL and top-1 agreement follow what was done to the candidate, as far as its config, its engine",
              "or its weights tell. They are derived from published measurements of real quantizations (the tables of",
              "llama.cpp and torchao, 2024 and 2025).", "",
              "| candidate | perplexity | KL, nats | top-1 |", "| --- | --- | --- | --- |"]  # fmt: skip
    for kind, (perplexity, kl, top1) in BY_SCHEME.items():
        cells = [
            "reported" if perplexity is None else f"<= x{perplexity:g}",
            "reported" if kl is None else f"<= {kl:g}",
            "reported" if top1 is None else f">= {top1:.0%}",
        ]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    told = {
        "another kind that nobody declared": MOST_GUESSED,
        **{f"pruned {name}": most for name, (most, _) in BY_PATTERN.items()},
        "distilled, as declared": DISTILLED.high or 0.0,
    }
    lines += [f"| {name} | <= x{most:g} | reported | reported |" for name, most in told.items()]
    return "\n".join(lines)


def studies(folder: Path) -> str:
    """Return the table of studies from their records in ``folder``: what each says of tiny."""
    from swcheck.study.catalogue import NAMES, chapter_of
    from swcheck.study.common.record import from_json

    rows = ["| `swcheck study MODEL` | of the paper | on `tiny` |", "| --- | --- | --- |"]
    for name in NAMES:
        study_chapter, study = chapter_of(name), from_json((folder / f"{name}.json").read_text(encoding="utf-8"), name)
        verdicts = [
            f"{verdict.outcome.value}: {verdict.cause or verdict.summary}" for verdict in study_chapter.judge(study)
        ]
        rows.append(
            f"| `{name}` | {study_chapter.title.lower()}: {study_chapter.source} | {'<br>'.join(verdicts) or 'reported, no claim'} |"
        )
    return "\n".join(rows)


TABLES: Final[dict[str, Callable[[], str]]] = {"limits": limits}


def main(arguments: list[str]) -> int:
    """Write or compare every page; return 1 if ``--check`` finds a difference."""
    if "--studies" in arguments:
        folder, page = Path(arguments[arguments.index("--studies") + 1]), ROOT / "docs" / "paper.md"
        text = replaced(page.read_text(encoding="utf-8"), "studies", lambda: studies(folder))
        page.write_text(text, encoding="utf-8")
        return 0
    different = 0
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = rendered(before)
        different |= masked(before) != masked(after)
        if "--check" not in arguments:
            page.write_text(after, encoding="utf-8")
    return int(different and "--check" in arguments)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
