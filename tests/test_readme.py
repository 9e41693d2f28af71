"""The README keeps its word: its example runs, its options exist, its output is what the commands print."""

from __future__ import annotations

import re

import pytest

from swcheck import __all__ as names
from swcheck.options import OPTIONS
from tests import readme

TEXT = readme.README.read_text(encoding="utf-8")


def test_its_example_runs():
    """The block of Python is a program that passes."""
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_option_is_in_it(option):
    """No option is missing in the table."""
    assert f"{option.flag}=" in TEXT or f"`{option.flag}`" in TEXT or f"`--{option.name}=" in TEXT


@pytest.mark.parametrize("name", [name for name in names if name.startswith("assert_")])
def test_every_assertion_is_in_it(name):
    """No assertion is missing in the table."""
    assert f"`{name}(" in TEXT


def test_its_output_is_real():
    """The commands shown print what is shown, but for numbers that differ in the last digit from machine to machine."""
    assert readme.masked(readme.render(TEXT)) == readme.masked(TEXT)
