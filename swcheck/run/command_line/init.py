"""``swcheck init``: write the start of a gate into a project, each line explained. Existing files stay as they are."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any, Final

from swcheck.base.errors import OptionError
from swcheck.base.output_files import check_writable, write_atomically
from swcheck.run.project_table import HEAD

PROJECT: Final = "pyproject.toml"
TABLE: Final = """\
# What swcheck reads in this project; `pytest --help` lists all options. The command line wins over the environment
# (SWCHECK_MODEL, ...), the environment over this file.
[tool.swcheck]
# The model as published: a directory, a hub id, or a name that `swcheck index` lists.
models = [$model]
# What is about to be released: a directory, a hub id, or ENGINE:SCHEME (rtn:bits=4 quantizes on the fly).
candidates = [$candidate]
# With a baseline the gate loads the candidate alone. `swcheck baseline MODEL` writes it; review it, commit it, and
# uncomment the next line:
# baseline = "baselines"

# Limits of your own instead of the defaults:
# [tool.swcheck.limits]
# perplexity = 1.03
"""

TEST: Final = '''\
"""The release gate. `pytest` runs it; `pytest --pyargs swcheck.suite` runs every check that swcheck ships."""

from swcheck import assert_perplexity_within, assert_super_activations_preserved, assert_super_weights_preserved


def test_super_weights(swcheck_candidate, swcheck_reference):
    assert_super_weights_preserved(swcheck_candidate, swcheck_reference)


def test_super_activations(swcheck_candidate, swcheck_reference):
    # texts that your users send belong here
    prompts = ["Hello, how are you?", "def main():"]
    assert_super_activations_preserved(swcheck_candidate, swcheck_reference, prompts=prompts)


def test_perplexity(swcheck_candidate, swcheck_reference):
    assert_perplexity_within(swcheck_candidate, swcheck_reference)
'''

WORKFLOW: Final = """\
# Runs the gate on each change. The table, the causes and what to try are in the summary of the job.
name: swcheck
on: [push, pull_request]
jobs:
  gate:
    runs-on: ubuntu-latest
    env:
      HF_HOME: ${{ github.workspace }}/.hub  # where models are downloaded to, and found again
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with: {python-version: "3.12"}
      - uses: actions/cache@v4  # so that a model is downloaded once
        id: hub
        with:
          path: .hub
          key: hub-${{ hashFiles('pyproject.toml') }}
      - run: pip install swcheck  # pin it, as your other dependencies
      # --swcheck-require: a gate that judges no candidate must not be green
      - run: pytest tests/test_super_weights.py --swcheck-require --swcheck-html=swcheck.html --junitxml=swcheck.xml
        env:
          HF_HUB_OFFLINE: ${{ steps.hub.outputs.cache-hit == 'true' && '1' || '0' }}  # with the cache, no network
      - uses: actions/upload-artifact@v4
        if: always()
        with:
          name: swcheck
          path: |
            swcheck.html
            swcheck.xml
"""

FILES: Final = {
    PROJECT: TABLE,
    "tests/test_super_weights.py": TEST,
    ".github/workflows/swcheck.yml": WORKFLOW,
}
"""The files that are written, by their path in the project."""


def add(commands: Any) -> None:
    """Add the subcommand to argparse's ``commands``."""
    parser = commands.add_parser(
        "init", help="write a commented start: settings, a test, a workflow for GitHub Actions"
    )
    parser.add_argument("folder", nargs="?", default=".", help="the project; the working directory if left out")
    parser.add_argument("--model", default="tiny", help="the model as published; tiny, which comes along, if left out")
    parser.add_argument("--candidate", default="rtn:bits=8", help="what is about to be released")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> str:
    """Write all files, and return what to do next. Raises ``OptionError`` before it would overwrite a file.

    A ``pyproject.toml`` that is there stays as it is: the table for it is returned, to be pasted.
    """
    folder = Path(options.folder)
    quoted = {"model": json.dumps(options.model), "candidate": json.dumps(options.candidate)}
    files = {**FILES, PROJECT: Template(TABLE).substitute(quoted)}
    paste = files.pop(PROJECT) if (folder / PROJECT).exists() else ""
    _check_free(folder, list(files))
    for name, text in files.items():
        write_atomically(folder / name, text)
    lines = ["written:", *(f"  {folder / name}" for name in files)]
    if paste:
        lines += [f"{folder / PROJECT} stays as it is; add these lines to it:", "", paste]
    return "\n".join([*lines, f"next: pytest; then `swcheck baseline {options.model}`, and commit all of it"])


def _check_free(folder: Path, names: Sequence[str]) -> None:
    asked, attempt = f"swcheck init {folder}", "another folder, to copy from"
    existing = [name for name in names if (folder / name).exists()]
    if existing:
        raise OptionError(asked, f"there is {', '.join(existing)}", attempt)
    project = folder / PROJECT
    if project.is_file() and HEAD in project.read_text("utf-8", "replace"):
        raise OptionError(asked, f"{PROJECT} has a table {HEAD}] already", attempt)
    for name in names:
        check_writable((folder / name).absolute())
