"""The hashed set that CI installs the built wheel with: whole, hashed, and of the versions that are tested."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from tools import locked

ROOT = Path(__file__).parents[2]
LINE = re.compile(r"([\w.-]+)==(\S+) --hash=sha256:[0-9a-f]{64}")


def test_every_dependency_is_locked_and_allowed():
    """Each dependency of the package is in the file, in a version that it asks for; every line has a hash."""
    lines = locked.LOCKED.read_text(encoding="utf-8").splitlines()[1:]
    versions = dict(LINE.fullmatch(line).groups() for line in lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for wanted in map(Requirement, project["dependencies"]):
        assert wanted.name in locked.BY_VERSION or wanted.specifier.contains(versions[wanted.name]), wanted


def test_the_locked_versions_are_those_that_are_tested():
    """What constraints.txt fixes has the same version here."""
    lines = locked.LOCKED.read_text(encoding="utf-8").splitlines()[1:]
    versions = dict(LINE.fullmatch(line).groups() for line in lines)
    fixed = [
        line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line
    ]
    common = {name.lower().replace("_", "-"): version for name, version in fixed}
    assert {name: common[name] for name in versions.keys() & common.keys()} == {
        name: versions[name] for name in versions.keys() & common.keys()
    }


def test_a_line_is_made_of_a_report():
    """Name, version and hash as pip reports them; swcheck itself and torch are left out."""
    wheel = {"archive_info": {"hashes": {"sha256": "0" * 64}}}
    report = [
        {"metadata": {"name": "swcheck", "version": "1"}, "download_info": {}},
        {"metadata": {"name": "torch", "version": "2.13.0+cpu"}, "download_info": wheel},
        {"metadata": {"name": "Hf_Xet", "version": "1.2"}, "download_info": wheel},
    ]
    assert locked.locked_lines(report) == [f"hf-xet==1.2 --hash=sha256:{'0' * 64}"]
