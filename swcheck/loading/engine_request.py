"""What is asked of a quantizing engine, ``SCHEME,OPTION=VALUE,skip=NAME+NAME``, read before anything is loaded.

For engines, built in or not: one call reads and refuses, and serves ``check`` and ``load`` alike. Nothing is imported.

    asked = read_request("my-engine", spec, SCHEMES, options=("group",), packages=[("my_package", "my-package>=1")])
    base = asked.load_reference(reference, self, device=device, dtype=dtype)
    kept = asked.modules_to_skip(base.model)
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from swcheck.base.errors import EngineError, OptionError
from swcheck.base.records import Loaded
from swcheck.loading import engines, skip_option
from swcheck.loading.scheme_from_config import is_installed


@dataclass(frozen=True)
class EngineRequest:
    """``spec`` as it was typed, in its parts; ``names`` are the modules that stay unquantized."""

    engine: str
    spec: str
    scheme: str
    options: Mapping[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What it is called in tables and errors."""
        return f"{self.engine}:{self.spec}"

    def group_size(self, default: int, *, multiple: int = 1) -> int:
        """The number behind ``group=``. Raises ``OptionError`` for what is no positive multiple of ``multiple``."""
        given = self.options.get("group", str(default))
        if not given.isdecimal() or int(given) < 1 or int(given) % multiple:
            of = f"a multiple of {multiple}" if multiple > 1 else "a number of inputs"
            raise OptionError(self.title, f"group={given}", f"{of}: {self.engine}:{self.scheme},group={default}")
        return int(given)

    def load_reference(self, reference: str | None, engine: Any, *, device: str | None, dtype: str | None) -> Loaded:
        """A fresh model of the reference, with the leave that ``engine`` has; raises ``OptionError`` where there is none."""
        if reference is None:
            raise OptionError(self.title, "no reference to make it of", "name one with --model")
        leave = {name: bool(getattr(engine, name, False)) for name in ("trust_remote_code", "offline")}
        return engines.load(reference, device=device, dtype=dtype, **leave)  # type: ignore[arg-type]

    def modules_to_skip(self, model: Any) -> tuple[str, ...]:
        """The linear maps of ``model`` to leave unquantized; raises ``EngineError`` for a name that is none."""
        return skip_option.modules_to_skip(self.title, model, self.names)


def read_request(
    engine: str,
    spec: str,
    schemes: Collection[str],
    *,
    options: Collection[str] = (),
    packages: Collection[tuple[str, str]] = (),
) -> EngineRequest:
    """What ``spec`` asks of ``engine``, which knows these ``schemes`` and ``options``.

    ``packages`` are what it needs, as (module, requirement). Raises ``EngineError`` for another scheme, with those that
    are known, and with the install line for a package that is not here; ``OptionError`` for another option.
    """
    words, names = skip_option.read_skip(f"{engine}:{spec}", spec)
    scheme, *parts = words.split(",")
    if scheme not in schemes:
        close = get_close_matches(scheme, schemes, n=1, cutoff=0.0) or list(schemes)
        raise EngineError(f"scheme {scheme!r} of {engine}", f"known: {', '.join(schemes)}", f"{engine}:{close[0]}")
    asked = EngineRequest(engine, spec, scheme, dict(_option(engine, spec, part, options) for part in parts), names)
    if len(asked.options) < len(parts):
        raise OptionError(asked.title, "an option is given twice", "once is enough")
    check_packages(asked.title, packages)
    return asked


def _option(engine: str, spec: str, part: str, known: Collection[str]) -> tuple[str, str]:
    name, equals, value = part.partition("=")
    if not equals or name not in known:
        words = ", ".join(f"{one}=..." for one in (*known, skip_option.OPTION.rstrip("=")))
        raise OptionError(f"{part!r} in {engine}:{spec}", f"options here: {words}", "leave it out")
    return name, value


def check_packages(title: str, packages: Collection[tuple[str, str]]) -> None:
    """Raise ``EngineError`` with the install line for each of ``packages``, (module, requirement), that is not here."""
    missing = [(module, requirement) for module, requirement in packages if not is_installed(module)]
    if missing:
        line = f"pip install {shlex.join(requirement for _, requirement in missing)}"
        raise EngineError(title, f"not installed: {', '.join(module for module, _ in missing)}", line)
