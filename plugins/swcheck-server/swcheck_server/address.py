"""Where a server is, and how it is asked."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from swcheck import EngineError, OptionError


@dataclass(frozen=True)
class Address:
    """Where a server is, and how it is asked: ``model`` empty for its only one, ``top`` likeliest tokens, seconds.

    ``room`` is the number of tokens that prompt and answer may have together; None where the server does not tell.
    """

    spec: str
    url: str
    model: str = ""
    top: int = 20
    seconds: float = 120
    room: int | None = None

    @property
    def title(self) -> str:
        """The request as it was typed."""
        return f"server:{self.spec}"


def read_address(spec: str) -> Address:
    """Parse what stands behind ``server:``. Raises ``EngineError`` for what is no address, ``OptionError`` for options."""
    url, *given = spec.split(",")
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise EngineError(f"server:{spec}", f"no address: {url!r}", "server:http://127.0.0.1:8000")
    options: dict[str, str] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or name not in {"model", "top", "seconds"} or name in options:
            raise OptionError(
                f"{one!r} in server:{spec}", "options here: model=, top=, seconds=, once each", "leave it out"
            )
        options[name] = value
    for name in ("top", "seconds"):
        if name in options and not (options[name].isdecimal() and 0 < int(options[name]) <= 100_000):
            raise OptionError(f"{name}={options[name]} in server:{spec}", "no positive number", f"{name}=20")
    base = url.rstrip("/").removesuffix("/v1")
    return Address(
        spec, base, options.get("model", ""), int(options.get("top", "20")), float(options.get("seconds", "120"))
    )
