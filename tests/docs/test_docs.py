"""README and ``docs/`` keep their word: examples run, options and limits exist, outputs are what the commands print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from swcheck import __all__ as names
from swcheck.base.limits import DEFAULTS
from swcheck.loading.tiny import HELDOUT
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
def test_scripts_run(code, monkeypatch, tmp_path):
    """Every block of Python that is no test is a program that passes."""
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "example", "exec"), {})


@pytest.mark.slow
@pytest.mark.parametrize("code", [code for _, code in PYTHON if "def test_" in code])
def test_tests_run(code, pytester, monkeypatch):
    """Every block that is a test passes for tiny against itself."""
    monkeypatch.setenv("COLUMNS", "100")
    pytester.makepyfile(test_example=code)
    result = pytester.runpytest_inprocess("--model=tiny", "--candidate=rtn:bits=8,block=128", "test_example.py")
    result.assert_outcomes(passed=code.count("def test_"))


@pytest.mark.slow
def test_the_tutorial_is_what_a_new_user_types(tmp_path):
    """Its lines, but for the installation, work one after the other in an empty folder: green, a baseline, red, a page.

    In the smoke tier and on a short text, which takes less time; what the prose says to edit is edited.
    """
    start, baseline, committed, broken = re.findall(r"```sh\n(.*?)```", TEXTS["docs/tutorial.md"], re.DOTALL)
    unmark = "python -c \"import pathlib; p = pathlib.Path('pyproject.toml'); p.write_text(p.read_text().replace('# baseline =', 'baseline ='))\"\n"
    lines = [line for line in start.splitlines(keepends=True) if not line.startswith("pip install")]
    script = ["set -e\n", *lines, baseline, unmark, committed, "set +e\n", broken, "echo exit $?\n"]
    text = tmp_path.parent / f"{tmp_path.name}.txt"
    text.write_text(HELDOUT.read_text(encoding="utf-8")[:8_000], encoding="utf-8")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    names = {f"GIT_{who}_{what}": "a@b.c" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(
        ["bash", "-c", "".join(script)], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, **names, "PATH": path, "SWCHECK_TIER": "smoke", "SWCHECK_TEXT": str(text), "COLUMNS": "80"},
    )  # fmt: skip
    said = done.stdout
    assert said.count(" 3 passed in ") == 2, said + done.stderr
    assert "measured anew, nothing changes" in said
    assert "loading the baseline of tiny and rtn:bits=8" in said
    assert "exit 1\n" in said
    assert "super weight at layer 1 [97, 301] clipped or rounded down (x0.24)" in said
    page = (tmp_path / "red.html").read_text(encoding="utf-8")
    assert "do not release" in page
    assert "Super activation through the layers" in page


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
