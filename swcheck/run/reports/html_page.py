"""Formats verdicts as one page of HTML that needs no other file: for a release manager, the verdict first."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from math import log
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from swcheck.run.reports.margins import Reported, margin
from swcheck.run.reports.peer_numbers import layer_rows, peer_rows
from swcheck.run.reports.pictures import Picture, pictures
from swcheck.run.reports.sections import COLUMNS, Row, Section, attempt_parts, headline, sections
from swcheck.run.reports.summary import not_covered

TEMPLATE: Final = "page.html.jinja"
PACKAGES: Final = ("swcheck", "torch", "transformers", "pytest")
WIDEST_MARGIN: Final = 100.0
"""The margin whose bar is as wide as its cell; bars are logarithmic."""


def html_page(reported: Sequence[Reported], *, command: str = "", warning: str = "") -> str:
    """Return the page as text. Everything that a model, a prompt or a path says is escaped.

    ``command`` is the command line of the run, ``warning`` a sentence about what it did not judge.
    """
    found = sections(reported)
    color, sentence = headline(found)
    return _template().render(
        sections=found, color=color, sentence=sentence, warning=warning, columns=COLUMNS, command=command,
        machine=machine(), not_covered=not_covered(reported),
    )  # fmt: skip


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.globals |= {"bar": margin_bar, "attempt_parts": attempt_parts, "pictures": section_pictures}
    environment.globals |= {"peer_numbers": section_peer_rows, "layers": section_layers}
    return environment.get_template(TEMPLATE)


def section_pictures(section: Section) -> list[Picture]:
    """Return the pictures of a section, from what its verdicts hold."""
    return pictures([row.verdict for row in section.rows])


def section_peer_rows(section: Section) -> list[tuple[str, str]]:
    """Return the numbers that other tools print, as rows of name and text."""
    return peer_rows([row.verdict for row in section.rows])


def section_layers(section: Section) -> list[tuple[int, float, float]] | str:
    """Return the ranking of the layers of a section's candidate, or why it is not known; empty where nobody asked."""
    return layer_rows([row.verdict for row in section.rows])


def margin_bar(row: Row) -> tuple[str, float]:
    """Return on which side of its limit a value is, ``in`` or ``out``, and how far, in percent of the widest bar."""
    factor = margin(row.verdict)
    if factor is None or factor <= 0:
        return "none", 0.0
    return ("in" if factor >= 1 else "out"), round(min(1.0, abs(log(factor)) / log(WIDEST_MARGIN)) * 100, 1)


def machine() -> list[tuple[str, str]]:
    """Return what the run was measured with: the versions of Python and of packages, and the machine."""
    found = [("python", platform.python_version()), ("machine", f"{platform.system()} {platform.machine()}")]
    for name in PACKAGES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            continue
    return found
