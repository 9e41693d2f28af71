"""What the tests of the plugin share: pytest inside pytest, and small checkpoints."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from swcheck.loading import tiny as tiny_room
from tests import checkpoints, damage

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session", autouse=True)
def _warm(tiny):
    """What an inner run imports is imported out here first: pytester forgets it, and some of it cannot load twice."""
    import tabulate  # noqa: F401
    import xdist  # noqa: F401

    import swcheck.suite.test_candidate
    import swcheck.suite.test_model

    swcheck.assert_perplexity_within(tiny)
    swcheck.assert_super_weights_located(tiny)


@pytest.fixture
def inner(pytester, monkeypatch):
    """Run pytest in this process, in an empty folder, with nothing of this run's environment."""
    for name in [*os.environ]:
        if name.startswith("SWCHECK_") or name in {
            "CI",
            "BUILD_NUMBER",
            "PYTEST_ADDOPTS",
            "GITHUB_ACTIONS",
            "GITHUB_STEP_SUMMARY",
        }:
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("SWCHECK_CACHE_DIR", os.devnull)

    def run(*args: object) -> pytest.RunResult:
        return pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:benchmark", *map(str, args))

    return run


@pytest.fixture
def outer(tmp_path):
    """Run pytest in a process of its own, in a folder with nothing of this project."""

    def run(*args: object, folder: Path = tmp_path, options=(), **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SWCHECK_", "PYTEST_", "CI", "GITHUB_"))
        }
        command = [
            sys.executable,
            *options,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:benchmark",
            *map(str, args),
        ]
        return subprocess.run(
            command,
            cwd=folder,
            env={**clean, "COLUMNS": "100", "SWCHECK_CACHE_DIR": os.devnull, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def micro(tmp_path_factory) -> Path:
    """A model of random weights: loads at once, has no super weight."""
    return checkpoints.micro(tmp_path_factory.mktemp("models") / "micro")


@pytest.fixture(scope="session")
def brief(tmp_path_factory) -> str:
    """The option for a short text, where numbers do not matter."""
    file = tmp_path_factory.mktemp("texts") / "brief.txt"
    file.write_text(tiny_room.HELDOUT.read_text(encoding="utf-8")[:4000], encoding="utf-8")
    return f"--swcheck-text={file}"


@pytest.fixture(scope="session")
def zeroed(tmp_path_factory) -> Path:
    """Tiny without its super weight."""
    return checkpoints.damaged(tmp_path_factory.mktemp("models") / "zeroed", damage.zero)


@pytest.fixture(scope="session")
def poisoned(tmp_path_factory) -> Path:
    """Tiny with NaN in a weight."""
    return checkpoints.damaged(tmp_path_factory.mktemp("models") / "poisoned", damage.poison)


@pytest.fixture(scope="session")
def healthy(tmp_path_factory) -> Path:
    """Tiny under another name."""
    return checkpoints.copy_of_tiny(tmp_path_factory.mktemp("models") / "healthy")


@pytest.fixture
def asking(pytester):
    """A project whose only test asks for the settings and evaluates what the test of this run wants to know of them."""

    def write(statement: str) -> None:
        pytester.makepyfile(
            test_asking=f"""
            from pathlib import Path

            def test_settings(swcheck_session):
                settings = swcheck_session.settings
                assert {statement}
            """
        )

    return write
