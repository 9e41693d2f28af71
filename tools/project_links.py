"""Adds the address of the repository to the metadata of a build; hatchling calls it (``tool.hatch.metadata.hooks``).

It is the one that ``SWCHECK_REPOSITORY`` names, else the one that a workflow of GitHub or GitLab runs for, else the
``origin`` of the clone. Where that is no address of the web, such as a path, the metadata have no such link.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class ProjectLinks(MetadataHookInterface):
    """The links of ``pyproject.toml``, with those to the repository in front."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        """Set ``urls``, which ``pyproject.toml`` declares as dynamic."""
        metadata["urls"] = {**links_to(repository(os.environ, Path(self.root))), **self.config["links"]}


def links_to(address: str) -> dict[str, str]:
    """Return the links to a repository; none for an empty address."""
    pages = {"Repository": "", "Documentation": "/tree/main/docs", "Issues": "/issues"}
    return {name: f"{address}{page}" for name, page in pages.items()} if address else {}


def repository(environment: Mapping[str, str], root: Path) -> str:
    """Return the https address of the repository of a clone ``root``, empty where it has none."""
    server, name = environment.get("GITHUB_SERVER_URL", ""), environment.get("GITHUB_REPOSITORY", "")
    named = (
        environment.get("SWCHECK_REPOSITORY") or environment.get("CI_PROJECT_URL") or (server and f"{server}/{name}")
    )
    return web_address(named or _origin(root))


def web_address(remote: str) -> str:
    """Return the https address of a git remote, without a name, a password and ``.git``; empty for any other remote."""
    found = re.fullmatch(
        r"(?:https?://(?:[^@/\s]*@)?|ssh://git@|git@)([\w.-]+\.\w+)[:/]([\w./~-]+?)(?:\.git)?/?", remote.strip()
    )
    return f"https://{found[1]}/{found[2]}" if found else ""


def _origin(root: Path) -> str:
    if not (root / ".git").exists():  # in a folder inside another project's clone git would name that
        return ""
    try:
        done = subprocess.run(
            ["git", "remote", "get-url", "origin"],  # noqa: S607 - the git of the one who builds
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:  # no git
        return ""
    return done.stdout if done.returncode == 0 else ""
