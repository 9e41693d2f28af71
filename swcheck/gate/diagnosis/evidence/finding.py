"""The result of a diagnosis: a cause in words with the rows of its proof, or the rows that rule a cause out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

Detail: TypeAlias = "tuple[tuple[str, str], ...]"
"""Rows of a name and a text, as in ``Verdict.detail``."""


@dataclass(frozen=True)
class Finding:
    """A cause in words, the rows under it, and the qualified names of the matrices that should stay unquantized.

    ``advice`` is what to try if there are no matrices. ``blame`` is ``candidate``, or ``reference`` if that is sick.
    ``kind`` is the name of the cause in JSON: ``docs/causes.md`` lists them.
    """

    cause: str
    detail: Detail
    matrices: tuple[str, ...] = ()
    advice: str = ""
    blame: str = "candidate"
    kind: str = ""


def ruled_out(words: str) -> Detail:
    """Return the row that says what is not the cause."""
    return (("ruled out", words),)


def not_known(words: str) -> Detail:
    """Return the row that says what could not be tried."""
    return (("not known", words),)
