"""Write JSON that every parser reads, also where numbers are not finite."""

from __future__ import annotations

import json
import math
from typing import Any


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
    """Return ``value`` as JSON text, indented by two spaces. Numbers that are not finite become strings."""
    return json.dumps(finite_json(value), indent=2, allow_nan=False, ensure_ascii=False)
