"""README and ``docs/`` keep their word: examples run, options and limits exist, outputs are what the commands print."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from swcheck import __all__ as names
from swcheck.base.limits import DEFAULTS
from swcheck.run.limit_overrides import parse_overrides
from swcheck.run.options import OPTIONS
from swcheck.run.project_table import read_table
from tools import outputs

README, *DOCS = outputs.PAGES
TEXTS = {page.relative_to(outputs.ROOT).as_posix(): page.read_text(encoding="utf-8") for page in outputs.PAGES}
PYTHON = [(name, code) for name, text in TEXTS.items() for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
TOML = [(name, code) for name, text in TEXTS.items() for code in re.findall(r"```toml\n(.*?)```", text, re.DOTALL)]
MOST_LINES = 150
OUTPUTS = [name for name, text in TEXTS.items() if outputs.BLOCK.search(text) or "<!-- limits -->" in text]


def numbered(examples: list[tuple[str, str]]) -> list[str]:
    """A readable id for each example: its page, and its number."""
    return [f"{name} {number}" for number, (name, _) in enumerate(examples)]


@pytest.mark.slow
@pytest.mark.parametrize("code", [code for _, code in PYTHON if "def test_" not in code])
def test_scripts_run(code):
    """Every block of Python that is no test is a program that passes."""
    exec(compile(code, "example", "exec"), {})


@pytest.mark.slow
@pytest.mark.parametrize("code", [code for _, code in PYTHON if "def test_" in code])
def test_tests_run(code, pytester, monkeypatch):
    """Every block that is a test passes for tiny against itself."""
    monkeypatch.setenv("COLUMNS", "100")
    pytester.makepyfile(test_example=code)
    result = pytester.runpytest_inprocess("--model=tiny", "--candidate=rtn:bits=8,block=128", "test_example.py")
    result.assert_outcomes(passed=code.count("def test_"))


@pytest.mark.parametrize("code", [code for _, code in TOML], ids=numbered(TOML))
def test_configurations_are_valid(code, tmp_path):
    """Every block of TOML sets options that exist, and limits that exist."""
    tables = tomllib.loads(code)["tool"]
    (tmp_path / "pyproject.toml").write_text(code, encoding="utf-8")
    values = read_table(tmp_path / "pyproject.toml", {option.name: option.kind for option in OPTIONS})
    assert bool(values) == ("swcheck" in tables)
    assert len(parse_overrides(values.get("limit", ()))) == len(values.get("limit", ()))
    options = tables.get("pytest", {}).get("ini_options", {})
    assert set(options) <= {option.dest for option in OPTIONS}
    limits = {entry.rpartition(":")[2].partition("=")[0] for entry in options.get("swcheck_limit", ())}
    assert limits <= set(DEFAULTS)


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_option_is_documented(option):
    """No option is missing in the table of options."""
    text = TEXTS["docs/options.md"]
    assert f"{option.flag}=" in text or f"`{option.flag}`" in text or f"`--{option.name}=" in text


@pytest.mark.parametrize("name", [name for name in names if name.startswith("assert_")])
def test_every_assertion_is_documented(name):
    """No assertion is missing in the README's table."""
    assert f"`{name}(" in TEXTS["README.md"]


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name):
    """Every link to a file of the repository names one that exists."""
    folder = (outputs.ROOT / name).parent
    links = re.findall(r"\]\((?!https?://)([^)#]+)", TEXTS[name])
    assert [link for link in links if not (folder / link).exists()] == []


def test_every_page_is_linked_from_the_readme():
    """A page that the README does not name is not found."""
    assert [page.name for page in DOCS if f"docs/{page.name}" not in TEXTS["README.md"]] == []


def test_the_readme_is_a_front_page():
    """The README is at most 150 lines long."""
    assert TEXTS["README.md"].count("\n") <= MOST_LINES


@pytest.mark.slow
@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_are_real(name):
    """The commands shown print what is shown, but for numbers that differ in the last digit between machines."""
    assert outputs.masked(outputs.rendered(TEXTS[name])) == outputs.masked(TEXTS[name])


def test_the_generators_are_the_documented_ones():
    """The commands that CONTRIBUTING names for figures and outputs exist."""
    text = (outputs.ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    modules = set(re.findall(r"-m (tools(?:\.\w+)+)", text)) | {"tools.train_tiny"}
    assert [
        module for module in modules if not Path(outputs.ROOT, *module.split(".")).with_suffix(".py").exists()
    ] == []
