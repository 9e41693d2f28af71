"""Keeps what was measured of a reference, so that the next run on this machine loads its candidate alone.

A file is called after everything that its numbers depend on: the files of the model, text, tier, seed, device, dtype, and
the versions of the libraries and of this package. It has the form of a baseline, with the numbers as they are instead of
rounded ones, and nobody reviews it. Unlike with a baseline, the reference is loaded when a number is missing. The folder
is bounded and may be deleted at any time; where it cannot be written there is no cache.

The workers of xdist share a folder for the time of a run, where the first one measures and the others wait.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from swcheck.base.errors import SwcheckError
from swcheck.base.output_files import write_atomically
from swcheck.loading import engines
from swcheck.run.baselines import baseline_facts
from swcheck.run.settings import Settings, tier_of

if TYPE_CHECKING:
    from swcheck.superweights.subject.memory import Memory
    from swcheck.superweights.subject.subject import Subject

FOLDER_VARIABLE: Final = "SWCHECK_CACHE_DIR"
SHARED_VARIABLE: Final = "SWCHECK_SHARED_BY_WORKERS"
"""The variable with the folder that the workers of one run share; the controller of xdist sets it."""

MOST_FILES, MOST_BYTES = 64, 2**28
LARGEST_ENTRY: Final = 2**25
"""The most files and bytes that are kept, and the most bytes of one file."""


def cache_folder() -> Path:
    """Return the folder of the cache: ``SWCHECK_CACHE_DIR``, else ``swcheck`` in the user's cache directory."""
    given = os.environ.get(FOLDER_VARIABLE)
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "swcheck"


def entries() -> list[Path]:
    """Return the files of the cache, the one that was used last first."""
    with suppress(OSError):
        found = [(file.stat().st_mtime, file) for file in cache_folder().glob("*.json")]
        return [file for _, file in sorted(found, reverse=True)]
    return []


def is_kept(settings: Settings, spec: str) -> bool:
    """Return whether an earlier run has measured this reference; the file may still turn out to be damaged."""
    if not settings.keeps_measurements or settings.uses_baselines or not entries():
        return False
    cache = ReferenceCache(settings, spec)
    return bool(cache.key) and (cache_folder() / cache.name).is_file()


@contextmanager
def shared_by_workers() -> Iterator[None]:
    """Give the processes that are started within the block a folder that they share; it is removed at the end."""
    folder = tempfile.mkdtemp(prefix="swcheck-")
    os.environ[SHARED_VARIABLE] = folder
    try:
        yield
    finally:
        os.environ.pop(SHARED_VARIABLE, None)
        shutil.rmtree(folder, ignore_errors=True)


class ReferenceCache:
    """The cache for one reference in one run. Without ``key`` it has and keeps nothing."""

    def __init__(self, settings: Settings, spec: str) -> None:
        self.settings, self.spec = settings, spec
        shared = os.environ.get(SHARED_VARIABLE, "") if "PYTEST_XDIST_WORKER" in os.environ else ""
        self.shared = Path(shared) if shared else None
        self.folders = [self.shared] if self.shared is not None else []
        folder = cache_folder()
        self.folders += [] if not settings.keeps_measurements or (folder.exists() and not folder.is_dir()) else [folder]
        self.facts = {} if settings.update or not self.folders else _identity(settings, spec)
        self.key = (
            hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()[:16] if self.facts else ""
        )
        self._known = 0

    @property
    def name(self) -> str:
        """The name of the file of this reference."""
        words = "".join(char if char.isalnum() or char in "-_." else "-" for char in self.settings.name_of(self.spec))
        return f"{words.strip('-.')[:80]}-{self.key}.json"

    @contextmanager
    def measured_once(self) -> Iterator[None]:
        """Let one worker after the other into the block: the first one measures, the others find what it has kept."""
        if self.shared is None or not self.key:
            yield
            return
        from filelock import FileLock

        with FileLock(self.shared / f"{self.key}.lock"):
            yield

    def read(self) -> tuple[Memory, dict[str, Any]] | None:
        """Return what is kept, and the facts beside it; None if there is nothing that can be used."""
        from swcheck.base.reading.bounded import read_bytes
        from swcheck.gate.baseline.file import read_baseline

        for file in [folder / self.name for folder in self.folders] if self.key else []:
            try:
                subject, facts = read_baseline(read_bytes(file, LARGEST_ENTRY, f"cache {file}"), str(file))
            except (SwcheckError, OSError):  # not there, cut off, or written by another version
                continue
            with suppress(OSError):
                file.touch()  # the oldest are removed first
            if subject.memory is not None:
                self._known = len(subject.memory.values)
                return subject.memory, facts
        return None

    def write(self, subject: Subject) -> None:
        """Keep what was measured of ``subject``, if there is more than before. Nothing is kept where that fails."""
        from swcheck.gate.baseline.file import exact_text

        if not self.key or subject.memory is None or subject.scheme is not None:
            return
        if len(subject.memory.values) <= self._known:
            return
        with suppress(SwcheckError, OSError):
            text = exact_text(subject, {**self.facts, "unused_tensors": list(subject.unused_tensors)}, LARGEST_ENTRY)
            self._known = len(subject.memory.values)
            for folder in self.folders:
                with suppress(OSError):
                    folder.mkdir(parents=True, exist_ok=True)
                    write_atomically(folder / self.name, text)
            _remove_oldest()


def _remove_oldest() -> None:
    total = 0
    for number, file in enumerate(entries()):
        total += file.stat().st_size
        if number >= MOST_FILES or total > MOST_BYTES:
            file.unlink(missing_ok=True)


def _identity(settings: Settings, spec: str) -> dict[str, Any]:
    """Return everything that the numbers of a reference depend on; empty where its files are not known."""
    with suppress(SwcheckError, OSError, ValueError):
        directory = engines.directory_of(spec)
        if directory is None:
            return {}
        facts = baseline_facts(settings, spec)
        if not facts["weights"]:
            return {}
        return {
            **facts,
            "tier": tier_of(settings, spec).name,
            "seed": settings.seed,
            "device_map": settings.device_map,
            "trust_remote_code": settings.trust_remote_code,
            "files": _stamps(directory, lambda file: file.is_file()),
            "code": _stamps(Path(__file__).parents[1], lambda file: file.suffix in {".py", ".csv", ".txt"}),
        }
    return {}


def _stamps(folder: Path, wanted: Callable[[Path], bool]) -> str:
    """Return a digest of names, sizes and times of the files below a folder: large weights are not read whole."""
    digest = hashlib.sha256(str(folder.resolve()).encode())
    for file in sorted(folder.rglob("*")):
        if wanted(file):
            status = file.stat()
            digest.update(f"{file.relative_to(folder)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
