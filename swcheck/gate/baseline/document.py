"""The outer form of a baseline file: JSON with a schema number, a digest of itself, facts, and packed measurements.

The digest tells whether a file is what was written: one that was edited by hand, merged or damaged is refused whole. It
is no signature, since who edits a file can compute it anew. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from swcheck.base.errors import CheckpointError
from swcheck.base.reading import schema
from swcheck.base.reading.bounded import parsed_json, read_bytes

SCHEMA: Final = 4
READABLE: Final = {2, 3, 4}
"""Schema 2 has no experts in its coordinates; schemas 2 and 3 have no digest."""

LARGEST_FILE: Final = 1_000_000
"""The largest size of the file in bytes, since it is committed and reviewed."""
MOST_READ: Final = 4 * LARGEST_FILE
"""The most bytes that are read: a formatter may have indented the file otherwise."""

_WORDS: Final = schema.nullable(schema.text(1000))
_FACTS: Final = ("weights", "revision", "tokenizer", "text", "device", "dtype", "torch", "transformers", "swcheck")
_PLACE: Final = schema.record(
    {**dict.fromkeys(("layer", "row", "column"), schema.whole()), "value": schema.real()},
    {"expert": schema.nullable(schema.one_of(schema.whole(), schema.text(20), words="an expert"))},
)
_BODY: Final = schema.record(
    {"model": schema.text(1000), "measurements": schema.items(schema.items(schema.anything, fewest=2, most=2))},
    {
        **dict.fromkeys(_FACTS, _WORDS),
        "tier": schema.text(20),
        "super_weights": schema.items(_PLACE),
    },
)


def sealed(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a file with its digest, in place of an older one."""
    content = {name: value for name, value in body.items() if name not in {"schema", "digest"}}
    head = {"schema": SCHEMA} | ({"schema": body["schema"]} if "schema" in body else {})
    return {**head, "digest": _digest({**head, **content}), **content}


def _digest(body: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the content without its digest, whatever its layout and the order of its keys."""
    content = {name: value for name, value in body.items() if name != "digest"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_document(text: str | bytes, origin: str) -> dict[str, Any]:
    """Return the checked content of a baseline file; the measurements in it are still packed. ``origin`` names the file.

    Raises ``CheckpointError`` for a file that is no baseline, is not what was written, or has another schema.
    """
    try:
        body = parsed_json(text, "it")
    except CheckpointError as error:
        raise damaged(origin, error.found) from error
    if not isinstance(body, dict) or "schema" not in body:
        raise damaged(origin, "it names no schema")
    if type(body["schema"]) is not int or body["schema"] not in READABLE:
        found = f"another version of swcheck wrote it (schema {body['schema']!r:.40}, this is {SCHEMA})"
        raise CheckpointError(f"baseline {origin}", found, "write it anew: --swcheck-update")
    try:
        _BODY(body, "")
    except schema.MismatchError as error:
        raise damaged(origin, str(error)) from error
    if body["schema"] >= 4 and body.get("digest") != _digest(body):
        raise damaged(origin, "its content is not what its digest was made of: it was edited, or merged")
    return body


def read_document_file(file: Path) -> dict[str, Any]:
    """Return ``read_document`` of a file. Raises ``CheckpointError`` as well if it is no regular file, or too large."""
    return read_document(read_bytes(file, MOST_READ, f"baseline {file}"), str(file))


def damaged(origin: str, found: str) -> CheckpointError:
    """Return the error for a file that cannot be used; ``found`` says what is wrong in it."""
    words = f"no baseline of swcheck, or a damaged one ({found})"
    return CheckpointError(f"baseline {origin}", words, "write it anew: --swcheck-update")
