"""Reads the table ``[tool.swcheck]`` of a project's ``pyproject.toml``: the values of options, by their names.

The keys are the names of the options, ``models``, ``candidates`` and ``limits`` among them; limits are a table by name,
those of one model in a table of its own. A key or a value that no option takes is refused, with the nearest that is
known.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from swcheck.base.errors import OptionError, brief_message
from swcheck.base.limits import DEFAULTS
from swcheck.base.reading.bounded import read_bytes
from swcheck.base.reading.schema import LARGEST

HEAD: Final = "[tool.swcheck"
LARGEST_FILE: Final = 2**22
PLURALS: Final = {"models": "model", "candidates": "candidate", "limits": "limit"}
"""Keys for several values, and the options that they are."""


def read_table(file: Path, kinds: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of the table in a ``pyproject.toml``, by option; empty without a table.

    ``kinds`` has the kind of each option (``value``, ``list``, ``table``, ``flag``). A value is a text, a list of texts, or
    a bool, as the ini-file would give it. Raises ``OptionError`` for a key or a value that no option takes.
    """
    data = read_bytes(file, LARGEST_FILE, f"settings {file}")
    if HEAD.encode() not in data:
        return {}
    try:
        table = tomllib.loads(data.decode("utf-8")).get("tool", {}).get("swcheck", {})
        _check_numbers(table)
    except (ValueError, AttributeError, RecursionError) as error:
        raise OptionError(f"the table [tool.swcheck] in {file}", brief_message(error), "repair the file") from error
    if not isinstance(table, dict):
        raise OptionError(f"[tool.swcheck] in {file}", "no table", '[tool.swcheck]\nmodels = ["llama-7b"]')
    values: dict[str, Any] = {}
    for key, value in table.items():
        name = PLURALS.get(key, key.replace("-", "_"))
        if name not in kinds:
            raise _unknown(f"{key} in [tool.swcheck] of {file}", key, [*PLURALS, *kinds])
        if name in values:
            raise OptionError(f"{key} in [tool.swcheck] of {file}", f"{name} is given twice", "keep one of the two")
        values[name] = _value(f"{key} in [tool.swcheck] of {file}", kinds[name], value)
    return values


def _check_numbers(value: Any) -> None:
    """Raise ``ValueError`` for a whole number of more than 64 bits, which TOML does not have: Python may refuse to show it."""
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ValueError("a whole number of more than 64 bits")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_numbers(part)


def _unknown(asked: str, key: str, known: Sequence[str]) -> OptionError:
    close = get_close_matches(key, known, n=1)
    return OptionError(asked, "no such option", f"{close[0]}?" if close else f"known: {', '.join(sorted(known))}")


def _value(asked: str, kind: str, value: Any) -> Any:
    if kind == "flag":
        if not isinstance(value, bool):
            raise OptionError(asked, repr(value), "true or false")
        return value
    if kind == "table":
        return list(_limits(asked, value)) if isinstance(value, dict) else _texts(asked, value)
    if kind == "list":
        return _texts(asked, value)
    if not isinstance(value, str):
        raise OptionError(asked, repr(value), "a text in quotes")
    return value


def _texts(asked: str, value: Any) -> list[str]:
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise OptionError(asked, repr(value), 'a text in quotes, or a list of them: ["one", "two"]')
    return found


def _limits(asked: str, table: Mapping[str, Any], model: str = "") -> Iterator[str]:
    """Yield the limits of a table as the texts that the option takes; a table inside has those of one model."""
    for key, value in table.items():
        if isinstance(value, dict) and not model:
            yield from _limits(asked, value, key)
            continue
        if key not in DEFAULTS:
            raise _unknown(f"limit {key!r}, {asked}", key, list(DEFAULTS))
        start = f"{model}:{key}=" if model else f"{key}="
        if isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)):
            yield f"{start}{value[0]}..{value[1]}"
        elif _is_number(value) or isinstance(value, str):
            yield f"{start}{value}"
        else:
            raise OptionError(f"limit {key!r}, {asked}", repr(value), f"{key} = 1.03, or {key} = [0.8, 1.5]")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
