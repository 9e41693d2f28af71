"""``swcheck check``, ``swcheck init`` and ``swcheck baseline``: a gate without knowing pytest."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from swcheck.run.command_line import check
from swcheck.run.command_line import main as command_line
from swcheck.run.command_line.baseline import changed_facts
from swcheck.run.command_line.init import FILES
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
def test_check_is_the_suite_with_its_exit_codes(run, tmp_path, brief):
    """It prints the suite's own output and exits as pytest does: 0 green, 1 red or nothing judged, 4 not begun."""
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
    monkeypatch.setattr(subprocess, "call", lambda words: seen.append(words) or 3)
    given = ["--candidate=a", "--candidate=b", "--limit=kl=0.1", "--html=page.html", "--offline", "-k", "kl"]
    assert command_line.main(["check", "tiny", *given]) == 3
    [words] = seen
    assert words[0] == sys.executable
    for word in (
        "--swcheck-candidate=a",
        "--swcheck-candidate=b",
        "--swcheck-limit=kl=0.1",
        "--swcheck-html=page.html",
    ):
        assert word in words
    assert words[-5:] == ["--swcheck-require", "-k", "kl", "--pyargs", "swcheck.suite"]
    assert "--swcheck-offline" in words
    assert set(check.LEFT_OUT) <= {option.name for option in check.OPTIONS}


def test_init_writes_a_start_and_overwrites_nothing(run, tmp_path):
    """All files are written once; the second time it is refused, and nothing is changed."""
    code, out, _ = run("init", "--model=./m", "--candidate=./c")
    assert code == 0
    assert all(name in out and (tmp_path / name).is_file() for name in FILES)
    assert "swcheck_candidate = ./c" in (tmp_path / "pytest.ini").read_text()
    assert "${{ github.workspace }}" in (tmp_path / ".github" / "workflows" / "swcheck.yml").read_text()
    (tmp_path / "pytest.ini").write_text("mine")
    code, _, err = run("init")
    assert code == 2
    assert "there is pytest.ini" in err
    assert (tmp_path / "pytest.ini").read_text() == "mine"


@pytest.mark.parametrize(("name", "text"), [("pyproject.toml", "[tool.pytest.ini_options]"), ("tox.ini", "[pytest]")])
def test_init_hides_no_settings(run, tmp_path, name, text):
    """Where a project has settings for pytest already, a pytest.ini beside them would win: it is refused."""
    (tmp_path / name).write_text(text)
    code, _, err = run("init")
    assert code == 2
    assert f"{name} has settings for pytest" in err
    assert not (tmp_path / "tests").exists()


@pytest.mark.slow
def test_what_init_writes_is_a_green_gate(run, tmp_path):
    """The start runs as it is: three green tests, a workflow whose command passes, and no warning."""
    run("init")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-W",
        "error",
        "tests/test_super_weights.py",
        "--swcheck-require",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout
    assert " ".join(command[6:]).removeprefix("error ") in FILES[".github/workflows/swcheck.yml"]


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
