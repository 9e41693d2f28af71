"""The metadata of a build link to the repository that it is built from."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.project_links import links_to, web_address

ROOT = Path(__file__).parents[2]
PAPER = {"Paper": "https://arxiv.org/abs/2411.07191"}
NAMES = ("SWCHECK_REPOSITORY", "GITHUB_SERVER_URL", "GITHUB_REPOSITORY", "CI_PROJECT_URL")


def links(folder, **environment):
    """The links in the metadata of a build of ``folder``, by hatchling itself."""
    known = {name: value for name, value in os.environ.items() if name not in NAMES}
    command = [sys.executable, "-m", "hatchling", "metadata", "urls"]
    done = subprocess.run(command, cwd=folder, env={**known, **environment}, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.fixture
def clone(tmp_path):
    """What a build needs of the project, without a repository."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "project_links.py", tmp_path / "tools")
    return tmp_path


@pytest.mark.parametrize(
    "environment",
    [
        {"SWCHECK_REPOSITORY": "https://example.org/team/swcheck"},
        {"GITHUB_SERVER_URL": "https://example.org", "GITHUB_REPOSITORY": "team/swcheck"},
        {"CI_PROJECT_URL": "https://example.org/team/swcheck"},
    ],
)
def test_a_build_in_ci_links_to_the_repository_that_ci_runs_for(clone, environment):
    """Repository, documentation and issues, beside the paper."""
    assert links(clone, **environment) == links_to("https://example.org/team/swcheck") | PAPER


def test_a_build_in_a_clone_links_to_its_origin(clone):
    """Named by ssh, the link is that of the web; where the origin is a path, only the paper is linked."""
    subprocess.run(["git", "init", "-q"], cwd=clone, check=True)
    assert links(clone) == PAPER
    subprocess.run(["git", "remote", "add", "origin", "git@example.org:team/swcheck.git"], cwd=clone, check=True)
    assert links(clone)["Repository"] == "https://example.org/team/swcheck"
    subprocess.run(["git", "remote", "set-url", "origin", str(clone)], cwd=clone, check=True)
    assert links(clone) == PAPER


def test_without_a_repository_the_paper_is_linked(clone):
    """Such as in a folder that was unpacked, inside somebody's clone or not."""
    assert links(clone) == PAPER


@pytest.mark.parametrize(
    ("remote", "address"),
    [
        ("https://example.org/team/swcheck.git\n", "https://example.org/team/swcheck"),
        ("https://name:secret@example.org/team/swcheck", "https://example.org/team/swcheck"),
        ("ssh://git@example.org/team/swcheck.git", "https://example.org/team/swcheck"),
        ("git@example.org:team/sub/swcheck.git", "https://example.org/team/sub/swcheck"),
        ("/srv/git/swcheck.git", ""),
        ("file:///srv/git/swcheck", ""),
        ("../swcheck", ""),
        ("", ""),
    ],
)
def test_an_address_never_has_a_password(remote, address):
    """What is no address of the web is no link."""
    assert web_address(remote) == address
