"""Write JSON that every parser reads, also where numbers are not finite."""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final

NOT_FINITE: Final = ("NaN", "Infinity", "-Infinity")
"""The words for numbers that JSON has not; ``float`` reads each."""


def finite_json(value: Any) -> Any:
    """Return ``value`` with every number that is not finite replaced by "NaN", "Infinity" or "-Infinity"."""
    if isinstance(value, dict):
        return {key: finite_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def json_text(value: Any) -> str:
    """Return ``value`` as JSON text, indented by two spaces. Numbers that are not finite become strings.

    Characters that cannot be printed are escaped, since the text may be shown in a terminal.
    """
    text = json.dumps(finite_json(value), indent=2, allow_nan=False, ensure_ascii=False)
    return re.sub(r"[^\n\x20-\x7e]", lambda found: _json_escape(found[0]), text)


def _json_escape(character: str) -> str:
    if character.isprintable():
        return character
    return f"\\u{ord(character):04x}" if ord(character) < 2**16 else json.dumps(character)[1:-1]
