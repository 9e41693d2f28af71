"""The text ``tiny`` is trained on: the Python standard library's own source.

Every machine that can train the model has it. ``pydoc_data`` (prose) is kept out, it is the package's evaluation
text; test folders are kept out, not every distribution installs them; ``encodings`` are tables of numbers, and
``_sysconfigdata`` differs from machine to machine. A file is held out, whole, by a hash of its name, so that the same
files stay unseen in every Python version.
"""

from __future__ import annotations

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LEFT_OUT: Final = frozenset(
    {"site-packages", "dist-packages", "pydoc_data", "encodings", "test", "tests", "idle_test", "__pycache__"}
)
HELDOUT_SHARE: Final = 1 / 24


@dataclass(frozen=True)
class Corpus:
    """Two texts, each with the names of the files it is made of."""

    train: str
    heldout: str
    train_files: tuple[str, ...]
    heldout_files: tuple[str, ...]


def is_heldout(name: str) -> bool:
    """Whether the file of this name (POSIX, relative to the library) is kept from training and tokenizer."""
    draw = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32
    return draw < HELDOUT_SHARE


def read(root: Path | None = None) -> Corpus:
    """Read the standard library under ``root`` (this interpreter's own by default)."""
    root = Path(sysconfig.get_path("stdlib")) if root is None else root
    parts: dict[bool, dict[str, str]] = {True: {}, False: {}}
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if LEFT_OUT.intersection(relative.parts) or relative.name.startswith("_sysconfigdata"):
            continue
        name = relative.as_posix()
        parts[is_heldout(name)][name] = path.read_text(encoding="utf-8", errors="replace")
    return Corpus(
        train="\n".join(parts[False].values()),
        heldout="\n".join(parts[True].values()),
        train_files=tuple(parts[False]),
        heldout_files=tuple(parts[True]),
    )


def digest(text: str) -> str:
    """The SHA-256 of a text, by which the card and a baseline name it."""
    return hashlib.sha256(text.encode()).hexdigest()
