"""What lives for one run: settings, models, and the verdicts about them. No pytest in it.

A model is loaded when it is first needed and kept until another reference takes its place. Every number of a run is
computed once: the subjects of a session remember.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from swcheck.errors import OptionError, TextError
from swcheck.limits import DEFAULTS
from swcheck.records import Limit, Verdict
from swcheck.subject import Subject


@dataclass(frozen=True)
class Settings:
    """What a run was asked for, with where each value came from ("command line", "environment", "ini", "default")."""

    models: tuple[str, ...] = ()
    candidate: str | None = None
    device: str | None = None
    dtype: str | None = None
    text: Path | None = None
    limits: Mapping[str, Limit] = field(default_factory=lambda: DEFAULTS)
    json: Path | None = None
    trust_remote_code: bool = False
    origins: Mapping[str, str] = field(default_factory=dict)


class Session:
    """The models and verdicts of one run."""

    def __init__(self, settings: Settings, tell: Callable[[str], None]) -> None:
        self.settings, self._tell = settings, tell
        self.verdicts: list[Verdict] = []
        self._reference: Subject | None = None
        self._candidate: Subject | None = None

    def reference(self, spec: str) -> Subject:
        """The reference of this name, loaded now if it is not the one at hand."""
        if self._reference is None or self._reference.name != spec:
            self._reference = None
            self._reference = self._subject(spec, spec)
        return self._reference

    def candidate(self) -> Subject:
        """The candidate of this run. Raises ``OptionError`` where none was given."""
        if self._candidate is None:
            if self.settings.candidate is None:
                raise OptionError("a candidate", "none was given", "--candidate=DIRECTORY")
            self._candidate = self._subject(self.settings.candidate, None)
        return self._candidate

    def _subject(self, spec: str, name: str | None) -> Subject:
        from swcheck.engines import load

        start = time.perf_counter()
        chosen = self.settings
        loaded = load(spec, device=chosen.device, dtype=chosen.dtype, trust_remote_code=chosen.trust_remote_code)
        self._tell(f"swcheck: loaded {spec} in {time.perf_counter() - start:.1f} s")
        text = loaded.text if chosen.text is None else read_text(chosen.text)
        return Subject(
            name or loaded.name, loaded.model, loaded.tokenizer, text=text, memo={}, heard=self.verdicts.append
        )


def read_text(path: Path) -> str:
    """The text to measure on. Raises ``TextError`` where the file is missing, empty or not UTF-8."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise TextError(f"text {path}", error.strerror or str(error), "give an existing UTF-8 file") from error
    except UnicodeDecodeError as error:
        raise TextError(f"text {path} in UTF-8", str(error), "convert the file to UTF-8") from error
    if not text.strip():
        raise TextError(f"text {path}", "an empty file", "give a text of some thousand words")
    return text
