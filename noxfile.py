"""The matrix of versions: ``nox`` runs it whole, ``nox -s "tests-3.11(versions='oldest')" -- -n 0 tests/plugin`` a part.

The oldest versions are those that ``pyproject.toml`` asks for. A Python that is not installed is skipped. The plain torch
of PyPI brings gigabytes of CUDA on Linux: ``NOX_TORCH='torch==2.13.0'`` takes another one, as the wheel for the CPU that
pip finds by ``PIP_FIND_LINKS`` or ``PIP_EXTRA_INDEX_URL``. A session takes a minute to install, and the tests their time.
"""

from __future__ import annotations

import os

import nox

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
TORCH = os.environ.get("NOX_TORCH", "")
OLDEST = (
    "pytest==8.4.*", "hypothesis==6.100.*", TORCH or "torch==2.6.*", "transformers==5.0.*", "numpy==1.26.*",
    "tabulate==0.9.*", "jinja2==3.1.0", "filelock==3.12.0",
)  # fmt: skip
NEWEST = ("--upgrade", "--upgrade-strategy=eager", *filter(None, [TORCH]))
PLUGINS = (
    "pytest-randomly", "pytest-html", "pytest-benchmark", "pytest-timeout", "pytest-rerunfailures", "pytest-cov",
    "pytest-sugar", "pytest-instafail", "pytest-json-report",
)  # fmt: skip
nox.options.error_on_missing_interpreters = False
nox.options.default_venv_backend = "venv"


@nox.session(python=PYTHONS)
@nox.parametrize("versions", ["oldest", "newest"])
def tests(session: nox.Session, versions: str) -> None:
    """The fast part of the tests, with the oldest versions that are supported, or the newest that are released."""
    session.install("-e", ".[test]", *(OLDEST if versions == "oldest" else NEWEST))
    session.run("pytest", "-n", "2", "-m", "not slow and not benchmark", *session.posargs)


@nox.session(python=PYTHONS[0])
@nox.parametrize("plugin", PLUGINS)
def beside(session: nox.Session, plugin: str) -> None:
    """A gate of tiny beside another plugin of pytest, with warnings as errors."""
    session.install("-c", "constraints.txt", ".[test]", plugin)
    session.chdir(session.create_tmp())
    strict = ("--strict-markers", "--strict-config", "-W", "error")
    for workers in ((), ("-n", "2")):
        session.run("pytest", "--model=tiny", "--candidate=rtn:bits=8", *strict, *workers)
