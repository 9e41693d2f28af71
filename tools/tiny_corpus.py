"""The text that ``tiny`` is trained on: the source of the Python standard library.

Every machine that can train the model has it. Left out are ``pydoc_data`` (prose, the package's evaluation text), test
folders (not every distribution installs them), ``encodings`` (tables of numbers) and ``_sysconfigdata`` (differs from
machine to machine). Whole files are held out by a hash of their name, so that the same files stay unseen in every
Python version.
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
"""Folders that are neither trained on nor held out."""
HELDOUT_SHARE: Final = 1 / 24


@dataclass(frozen=True)
class Corpus:
    """The training and the held-out text, each with the names of its files."""

    train: str
    heldout: str
    train_files: tuple[str, ...]
    heldout_files: tuple[str, ...]


def is_heldout(name: str) -> bool:
    """Return whether the file of this name (POSIX, relative to the library) is kept from training and tokenizer."""
    fraction = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32
    return fraction < HELDOUT_SHARE


def read(root: Path | None = None) -> Corpus:
    """Read the standard library under ``root``, by default this interpreter's own."""
    root = Path(sysconfig.get_path("stdlib")) if root is None else root
    files: dict[bool, dict[str, str]] = {True: {}, False: {}}
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if LEFT_OUT.intersection(relative.parts) or relative.name.startswith("_sysconfigdata"):
            continue
        name = relative.as_posix()
        files[is_heldout(name)][name] = path.read_text(encoding="utf-8", errors="replace")
    return Corpus(
        train="\n".join(files[False].values()),
        heldout="\n".join(files[True].values()),
        train_files=tuple(files[False]),
        heldout_files=tuple(files[True]),
    )


def digest(text: str) -> str:
    """Return the SHA-256 of a text, by which the card and a baseline name it."""
    return hashlib.sha256(text.encode()).hexdigest()
