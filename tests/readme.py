"""Writes the output blocks of the README: ``python tests/readme.py``. No output there is typed by hand.

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
    after = render(before)
    if "--check" in sys.argv:
        raise SystemExit(masked(before) != masked(after))
    README.write_text(after, encoding="utf-8")
