"""Parse what is asked of a quantizing engine: ``SCHEME,OPTION=VALUE,skip=NAME+NAME``.

For engines, built in or not. ``read_request`` parses and validates the spec and imports nothing, so that an engine can
call it in ``check`` as well as in ``load``:

    request = read_request("my-engine", spec, SCHEMES, options=("group",), packages=[("my_package", "my-package>=1")])
    loaded = request.load_reference(reference, self, device=device, dtype=dtype)
    skipped = request.modules_to_skip(loaded.model)
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
    """A parsed ``spec``: what the user typed behind ``engine:``.

    ``options`` are the values by option name. ``names`` are the modules of ``skip=``, which stay unquantized.
    """

    engine: str
    spec: str
    scheme: str
    options: Mapping[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The request as the user typed it, for tables and errors: ``engine:spec``."""
        return f"{self.engine}:{self.spec}"

    def group_size(self, default: int, *, multiple: int = 1) -> int:
        """Return the value of ``group=``, or ``default`` if it is not given.

        Raises ``OptionError`` unless it is a positive multiple of ``multiple``.
        """
        given = self.options.get("group", str(default))
        if not given.isdecimal() or int(given) < 1 or int(given) % multiple:
            required = f"a multiple of {multiple}" if multiple > 1 else "a number of inputs"
            raise OptionError(self.title, f"group={given}", f"{required}: {self.engine}:{self.scheme},group={default}")
        return int(given)

    def load_reference(self, reference: str | None, engine: Any, *, device: str | None, dtype: str | None) -> Loaded:
        """Load a new copy of the reference, with the permissions of ``engine``.

        The permissions are its attributes ``trust_remote_code`` and ``offline``. Raises ``OptionError`` if
        ``reference`` is None, and what ``swcheck.load`` raises.
        """
        if reference is None:
            raise OptionError(self.title, "no reference to make it of", "name one with --model")
        permissions = {name: bool(getattr(engine, name, False)) for name in ("trust_remote_code", "offline")}
        return engines.load(reference, device=device, dtype=dtype, **permissions)  # type: ignore[arg-type]

    def modules_to_skip(self, model: Any) -> tuple[str, ...]:
        """Return the qualified names of the linear maps of ``model`` that stay unquantized.

        Raises ``EngineError`` for a name that matches no linear map.
        """
        return skip_option.modules_to_skip(self.title, model, self.names)


def read_request(
    engine: str,
    spec: str,
    schemes: Collection[str],
    *,
    options: Collection[str] = (),
    packages: Collection[tuple[str, str]] = (),
) -> EngineRequest:
    """Parse ``spec`` for ``engine``, which knows these ``schemes`` and ``options``.

    ``packages`` are the packages that it needs, as (module, requirement). Raises ``EngineError`` for an unknown scheme,
    naming the known ones, and for a missing package, with an install command. Raises ``OptionError`` for an unknown or
    repeated option.
    """
    without_skip, names = skip_option.read_skip(f"{engine}:{spec}", spec)
    scheme, *given = without_skip.split(",")
    if scheme not in schemes:
        close = get_close_matches(scheme, schemes, n=1, cutoff=0.0) or list(schemes)
        raise EngineError(f"scheme {scheme!r} of {engine}", f"known: {', '.join(schemes)}", f"{engine}:{close[0]}")
    request = EngineRequest(
        engine, spec, scheme, dict(_parse_option(engine, spec, option, options) for option in given), names
    )
    if len(request.options) < len(given):
        raise OptionError(request.title, "an option is given twice", "once is enough")
    check_packages(request.title, packages)
    return request


def _parse_option(engine: str, spec: str, option: str, known: Collection[str]) -> tuple[str, str]:
    name, equals, value = option.partition("=")
    if not equals or name not in known:
        known_options = ", ".join(f"{key}=..." for key in (*known, skip_option.SKIP_OPTION.rstrip("=")))
        raise OptionError(f"{option!r} in {engine}:{spec}", f"options here: {known_options}", "leave it out")
    return name, value


def check_packages(title: str, packages: Collection[tuple[str, str]]) -> None:
    """Raise ``EngineError``, with an install command, unless all ``packages`` (module, requirement) are installed."""
    missing = [(module, requirement) for module, requirement in packages if not is_installed(module)]
    if missing:
        command = f"pip install {shlex.join(requirement for _, requirement in missing)}"
        raise EngineError(title, f"not installed: {', '.join(module for module, _ in missing)}", command)
