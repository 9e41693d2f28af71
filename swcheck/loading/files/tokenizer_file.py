"""Read ``tokenizer.json``: what it does to a text must not multiply it. The tokenizers package checks all else.

A file of a kilobyte can replace each letter by a thousand others, three times in turn; the package then takes memory
until the process is ended.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from swcheck.base.errors import CheckpointError
from swcheck.base.reading import schema
from swcheck.base.reading.bounded import read_json

TOKENIZER: Final = "tokenizer.json"
LARGEST_TOKENIZER: Final = 2**28
"""The largest file that is read, in bytes; the largest that are published have 33 MB (Gemma)."""

MOST_GROWTH: Final = 64
"""The most by which texts may grow. Published files replace a character by one, or by its three bytes in UTF-8."""

PROBE: Final = "The quick brown fox.\n"
"""What every tokenizer encodes when it is loaded: some fail only then, at a character or a token that they have not."""

PARTS: Final = ("normalizer", "post_processor", "decoder")
PREFIXED: Final = ("continuing_subword_prefix", "merges")
_STEPS: Final = ("normalizers", "processors", "decoders")
"""The fields of a sequence that hold its steps."""


def check_tokenizer(directory: Path) -> None:
    """Raise ``CheckpointError`` for a ``tokenizer.json`` that the package must not see.

    It is one under which a text grows too much, whose merges lack the prefix that they are to have, or no JSON object.

    A directory without one is left alone.
    """
    file = directory / TOKENIZER
    if not file.exists():
        return
    value = read_json(file, LARGEST_TOKENIZER, str(file))
    if not isinstance(value, dict):
        raise CheckpointError(f"a tokenizer in {file}", "no JSON object", "fetch the file again")
    for name in PARTS:
        factor = _growth(value.get(name))
        if factor > MOST_GROWTH:
            found = f"its {name} makes texts {factor:,.4g} times as long, at most {MOST_GROWTH} are taken"
            raise CheckpointError(f"a tokenizer in {file}", found, "fetch the file again")
    merge = _merge_without_prefix(value.get("model"))
    if merge is not None:
        found = f"the merge {merge!r} continues a word without its continuing_subword_prefix"
        raise CheckpointError(f"a tokenizer in {file}", found, "fetch the file again")


def check_encoding(tokenizer: Any) -> None:
    """Raise ``MismatchError``, or what the tokenizer raises, unless it makes a list of token ids of ``PROBE``."""
    schema.items(schema.whole())(tokenizer(PROBE)["input_ids"], "its token ids")


def _growth(step: Any) -> float:
    """Return by what factor a step may multiply the length of a text; 1 for what is no such step."""
    if not isinstance(step, dict):
        return 1.0
    inner = next((step[name] for name in _STEPS if isinstance(step.get(name), list)), None)
    if inner is not None:
        return math.prod(map(_growth, inner))
    lengths = [_length(step.get("content")) / _shortest(step.get("pattern")), _length(step.get("prepend"))]
    return max(1.0, *lengths, _tokens(step))


def _merge_without_prefix(model: Any) -> str | None:
    """Return the second part of the first merge that lacks the prefix of parts inside a word; None where all have it.

    The package cuts off as many bytes of it unseen, and ends the process where there are less.
    """
    prefix, merges = (model.get(name) if isinstance(model, dict) else None for name in PREFIXED)
    if not isinstance(prefix, str) or not isinstance(merges, list):
        return None
    for merge in merges if prefix else ():
        parts = merge.split(" ") if isinstance(merge, str) else merge
        last = parts[-1] if isinstance(parts, list) and parts else None
        if isinstance(last, str) and not last.startswith(prefix):
            return last
    return None


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str) else 0


def _shortest(pattern: Any) -> int:
    """Return how many characters a pattern matches at least: those of a text, one of a regular expression."""
    return max(1, _length(pattern.get("String")) if isinstance(pattern, dict) else 1)


def _tokens(step: Mapping[str, Any]) -> float:
    """Return how many tokens a template puts around a text."""
    pieces, special = step.get("single"), step.get("special_tokens")
    tables = special.values() if isinstance(special, dict) else ()
    ids = [len(one["ids"]) for one in tables if isinstance(one, dict) and isinstance(one.get("ids"), list)]
    return float(len(pieces) * max(1, *ids, 1)) if isinstance(pieces, list) else 1.0
