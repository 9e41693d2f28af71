"""Writes the output blocks of the README: ``python tests/readme.py``. No output there is typed by hand.

``--studies DIR`` writes the table of studies from the records that ``swcheck study tiny --out DIR`` left there.

A block is fenced as ``console`` and begins with its command after a ``$``. The commands run in an empty directory that
holds the damaged copies they name. ``--check`` compares instead, numbers masked, since they differ in the last digit.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
BLOCK = re.compile(r"```console\n\$ (?P<command>[^\n]*)\n(?P<output>.*?)```", re.DOTALL)
STUDIES = re.compile(r"(<!-- studies -->\n).*?(<!-- /studies -->)", re.DOTALL)
LEFT_OUT = re.compile(r"^(platform|plugins|benchmark|rootdir|cachedir|configfile):? .*\n|^rootdir: .*\n", re.MULTILINE)


def damaged(folder: Path) -> None:
    """A copy of tiny whose super weight is zeroed."""
    from swcheck import SuperWeight, load, zeroed

    tiny = load("tiny", device="cpu")
    with zeroed(tiny.model, [SuperWeight(1, 97, 301)]):
        tiny.model.save_pretrained(folder / "zeroed")
    tiny.tokenizer.save_pretrained(folder / "zeroed")


def output_of(command: str, folder: Path) -> str:
    """What the command prints, without what differs from machine to machine."""
    name, *rest = command.split()
    module = {"pytest": ["-m", "pytest", "-p", "no:cacheprovider"], "swcheck": ["-m", "swcheck.cli"]}[name]
    environment = {"COLUMNS": "100", "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HOME": str(folder)}
    environment["PYTHONPATH"] = str(ROOT)  # what is shown is what this copy prints
    done = subprocess.run(
        [sys.executable, *module, *rest], cwd=folder, capture_output=True, text=True, check=False, env=environment
    )
    return LEFT_OUT.sub("", done.stdout)


def masked(text: str) -> str:
    """The text with its numbers and its estimates masked, and runs of blanks, dashes and equals signs as one."""
    text = re.sub(r"~\d+ (s|min|h)\b", "~0 s", text)  # an estimate may take another unit on another machine
    return re.sub(r"[ =-]+", " ", re.sub(r"[+-]?\d[\d,]*(\.\d+)?(e[+-]?\d+)?", "0", text)).strip()


def studies(text: str, folder: Path) -> str:
    """The README with its table of studies made from their records: what each says of tiny."""
    from swcheck.study import NAMES
    from swcheck.study.chapter import chapter
    from swcheck.study.record import from_json

    rows = ["| `swcheck study MODEL` | of the paper | on `tiny` |", "| --- | --- | --- |"]
    for name in NAMES:
        one, study = chapter(name), from_json((folder / f"{name}.json").read_text(encoding="utf-8"), name)
        said = [f"{verdict.outcome.value}: {verdict.cause or verdict.summary}" for verdict in one.judge(study)]
        rows.append(f"| `{name}` | {one.title.lower()}: {one.source} | {'<br>'.join(said) or 'reported, no claim'} |")
    return STUDIES.sub(lambda found: f"{found[1]}{chr(10).join(rows)}{chr(10)}{found[2]}", text)


def render(text: str) -> str:
    """The README with every output block made anew."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        damaged(folder)
        return BLOCK.sub(
            lambda match: f"```console\n$ {match['command']}\n{output_of(match['command'], folder).strip()}\n```", text
        )


if __name__ == "__main__":
    before = README.read_text(encoding="utf-8")
    if "--studies" in sys.argv:
        README.write_text(studies(before, Path(sys.argv[sys.argv.index("--studies") + 1])), encoding="utf-8")
        raise SystemExit
    after = render(before)
    if "--check" in sys.argv:
        raise SystemExit(masked(before) != masked(after))
    README.write_text(after, encoding="utf-8")
