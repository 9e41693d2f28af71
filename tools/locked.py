"""Writes ``.ci/locked.txt``: ``python -m tools.locked``, on a machine like the one that CI runs on.

Every package that an installed swcheck needs, the packages of packages too, in one version, with the SHA-256 of its wheel
for Linux on x86-64 and this Python. CI installs the built wheel beside these and torch. Versions are those of
``constraints.txt``; of what is not there, the newest. torch has a wheel for each accelerator, and is fixed by version.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
LOCKED: Final = ROOT / ".ci" / "locked.txt"
BY_VERSION: Final = ("swcheck", "torch")
"""What the file leaves out."""
HEAD: Final = "# Written by python -m tools.locked. Install: pip install --require-hashes --no-deps -r .ci/locked.txt\n"


def resolved() -> list[dict[str, Any]]:
    """Return what pip would install for swcheck in an empty environment, as its report has it."""
    command = "-m pip install --dry-run --ignore-installed --quiet --report - -c constraints.txt .".split()
    done = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603 - pip
    found: list[dict[str, Any]] = json.loads(done.stdout)["install"]
    return found


def locked_lines(installs: list[dict[str, Any]]) -> list[str]:
    """Return a line for each package but ``BY_VERSION``: name, version, hash. Raises ``KeyError`` for one without a hash."""
    lines = []
    for one in installs:
        name, version = one["metadata"]["name"].lower().replace("_", "-"), one["metadata"]["version"]
        if name not in BY_VERSION:
            lines.append(f"{name}=={version} --hash=sha256:{one['download_info']['archive_info']['hashes']['sha256']}")
    return sorted(lines)


def main() -> int:
    """Write the file; print how many packages are in it."""
    lines = locked_lines(resolved())
    LOCKED.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")
    sys.stdout.write(f"{len(lines)} packages in {LOCKED.relative_to(ROOT)}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
