"""``swcheck check``, ``swcheck init`` and ``swcheck baseline``: a gate without knowing pytest."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
from string import Template

import pytest

from swcheck.run.command_line import check
from swcheck.run.command_line import main as command_line
from swcheck.run.command_line.baseline import changed_facts
from swcheck.run.command_line.init import FILES, TABLE
from swcheck.run.options import OPTIONS
from swcheck.run.project_table import read_table
from tests import checkpoints


@pytest.fixture(autouse=True)
def empty_folder(monkeypatch, tmp_path):
    """Each test runs in an empty folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def brief(tmp_path):
    """A short text, where numbers do not matter."""
    file = tmp_path / "brief.txt"
    file.write_text("def area(width, height):\n    return width * height\n" * 60)
    return f"--text={file}"


@pytest.mark.slow
def test_check_is_the_suite_with_its_exit_codes(tmp_path, brief):
    """It prints the suite's own output and exits as pytest does: 0 green, 1 red or nothing judged, 4 not begun."""

    def run(*words):
        command = [sys.executable, "-m", "swcheck", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    folder = checkpoints.micro(tmp_path / "micro")
    code, out, _ = run("check", folder, brief, "-k", "test_model and perplexity", "--json=out.json")
    assert code == 0
    assert "swcheck.suite.test_model ." in out
    assert json.loads((tmp_path / "out.json").read_text())["verdicts"][0]["check"] == "perplexity"
    code, out, _ = run("check", folder, brief, "-k", "nonesuch")
    assert code == 1
    assert "no check judged it" in out
    code, _, err = run("check", tmp_path / "nothing")
    assert code == 4
    assert "found: " in err
    assert not (tmp_path / ".pytest_cache").exists()


def test_check_hands_every_option_on(monkeypatch):
    """Each option of the plugin is one of the command, lists more than once, and reaches pytest under its long name."""
    seen = []
    monkeypatch.setattr(os, "execv", lambda _program, words: seen.append(words))
    given = ["--candidate=a", "--candidate=b", "--limit=kl=0.1", "--html=page.html", "--offline", "-v", "-k", "kl"]
    command_line.main(["check", "tiny", *given])
    [words] = seen
    assert words[0] == sys.executable
    for word in (
        "--swcheck-candidate=a",
        "--swcheck-candidate=b",
        "--swcheck-limit=kl=0.1",
        "--swcheck-html=page.html",
    ):
        assert word in words
    assert words[-6:] == ["--swcheck-require", "-k", "kl", "-v", "--pyargs", "swcheck.suite"]
    assert "--swcheck-offline" in words
    assert set(check.LEFT_OUT) <= {option.name for option in check.OPTIONS}


def test_init_writes_a_start_and_overwrites_nothing(run, tmp_path):
    """All files are written once, whatever the models are called; the second time it is refused, and nothing is changed."""
    code, out, _ = run("init", "--model=./m", '--candidate=./a "c"')
    assert code == 0
    assert all(name in out and (tmp_path / name).is_file() for name in FILES)
    table = tomllib.loads((tmp_path / "pyproject.toml").read_text())["tool"]["swcheck"]
    assert table == {"models": ["./m"], "candidates": ['./a "c"']}
    assert "${{ github.workspace }}" in (tmp_path / ".github" / "workflows" / "swcheck.yml").read_text()
    (tmp_path / "tests" / "test_super_weights.py").write_text("mine")
    code, _, err = run("init")
    assert code == 2
    assert "there is tests/test_super_weights.py" in err
    assert (tmp_path / "tests" / "test_super_weights.py").read_text() == "mine"


def test_what_is_commented_out_is_valid_too(tmp_path):
    """With the marks taken away the table has a baseline and a limit that swcheck knows."""
    lines = Template(TABLE).substitute(model='"m"', candidate='"c"').splitlines()
    shown = [line.removeprefix("# ") if re.match(r"# (\[|\w+ = )", line) else line for line in lines]
    (tmp_path / "pyproject.toml").write_text("\n".join(shown))
    values = read_table(tmp_path / "pyproject.toml", {option.name: option.kind for option in OPTIONS})
    assert values == {"model": ["m"], "candidate": ["c"], "baseline": "baselines", "limit": ["perplexity=1.03"]}


def test_init_leaves_a_project_table_alone(run, tmp_path):
    """A pyproject.toml stays as it is, and its new lines are printed, to be pasted; with a table of swcheck it is refused."""
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'mine'\n")
    code, out, _ = run("init")
    assert code == 0
    assert (tmp_path / "pyproject.toml").read_text() == "[project]\nname = 'mine'\n"
    assert "stays as it is; add these lines" in out
    assert "\n[tool.swcheck]\n" in out
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "pyproject.toml").write_text("[tool.swcheck]\n")
    code, _, err = run("init", "other")
    assert code == 2
    assert "has a table [tool.swcheck] already" in " ".join(err.split())
    assert not (tmp_path / "other" / "tests").exists()


def test_the_workflow_runs_the_test_that_init_writes():
    """Its command is the gate of the file beside it, required; ``tests/docs`` runs that file as the tutorial does."""
    assert "pytest tests/test_super_weights.py --swcheck-require " in FILES[".github/workflows/swcheck.yml"]
    assert "tests/test_super_weights.py" in FILES


@pytest.mark.slow
def test_a_baseline_is_written_and_reviewed(run, tmp_path):
    """It is written where it is asked for; measured anew nothing differs, and a changed file differs in words."""
    code, _, err = run("baseline", "tiny", "--tier=smoke", "--diff")
    assert code == 2
    assert "write it first" in err
    code, out, _ = run("baseline", "tiny", "--tier=smoke")
    assert code == 0
    assert "next: review and commit it" in out
    code, out, _ = run("baseline", "tiny", "--tier=smoke", "--diff")
    assert (code, out.rstrip().endswith("measured anew, nothing changes")) == (0, True)
    code, out, _ = run("baseline", "tiny", "--tier=standard", "--diff")
    assert code == 1
    assert "tier smoke -> standard" in out
    assert "perplexity" in out


def test_a_damaged_baseline_is_refused_before_the_model_is_loaded(run, tmp_path):
    """A review reads the older file first, whatever bytes it has."""
    (tmp_path / "baselines").mkdir()
    (tmp_path / "baselines" / "tiny.json").write_bytes(b"\xff\xfe")
    code, _, err = run("baseline", "tiny", "--diff")
    assert code == 2
    assert "no baseline of swcheck, or a damaged one" in err


@pytest.mark.slow
def test_a_baseline_is_measured_as_the_project_says(run, tmp_path, monkeypatch):
    """Text and tier of the project's table are the baseline's, those of the environment before them; else its gate would refuse it."""
    (tmp_path / "mine.txt").write_text("def area(width, height):\n    return width * height\n" * 60)
    (tmp_path / "pyproject.toml").write_text('[tool.swcheck]\ntext = "mine.txt"\ntier = "full"\nmodels = ["other"]\n')
    folder = checkpoints.micro(tmp_path / "micro")
    monkeypatch.setenv("SWCHECK_TIER", "smoke")
    code, out, _ = run("baseline", folder)
    assert code == 0
    assert 'or baseline = "baselines" in [tool.swcheck]' in out
    facts = json.loads((tmp_path / "baselines" / "micro.json").read_text())
    assert facts["tier"] == "smoke"
    assert facts["text"] == hashlib.sha256((tmp_path / "mine.txt").read_bytes()).hexdigest()


def test_changed_facts_are_words():
    """What a digest stands for is named, versions are shown, and super weights that came, went or changed."""

    def facts(text: str, torch: str, weights: list[tuple[int, float]]) -> dict[str, object]:
        places = [{"layer": 1, "row": 2, "column": column, "expert": None, "value": value} for column, value in weights]
        return {"text": text, "torch": torch, "super_weights": places}

    before, after = facts("a", "1", [(3, 1.0), (4, 1.0)]), facts("b", "2", [(4, 2.0), (5, 1.0)])
    assert changed_facts(before, after) == [
        "  another text", "  torch 1 -> 2", "  super weight gone: layer 1 [2, 3]", "  super weight new: layer 1 [2, 5] = +1",
        "  super weight layer 1 [2, 4]: +1 -> +2",
    ]  # fmt: skip
    assert changed_facts(before, before) == []
