"""Identifies what a baseline was measured with, and checks that it is the same now: weights, tokenizer, text, tier."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from swcheck.base.errors import WrongModelError
from swcheck.loading.checkpoint import SINGLE_FILE
from swcheck.loading.files.safetensors_header import read_header
from swcheck.loading.files.shard_index import shards_of
from swcheck.superweights.measurements.inputs import SAMPLE_TEXTS

WHOLE_FILE_BYTES: Final = 2**26
"""A weight file of at most this many bytes is read whole, which takes a tenth of a second."""
BLOCK: Final = 2**14
"""The number of bytes that are read at each sampled place of a larger file."""


def check_identity(facts: dict[str, Any], now: dict[str, Any], origin: str) -> list[str]:
    """Check the ``facts`` of a baseline against those of this run (``now``), and return notes on smaller differences.

    Raises ``WrongModelError`` for other weights, text, tokenizer or tier. A fact that is not known now, because the
    reference is not on this machine, is not compared; then the name of the model has to be the same. ``origin`` names the
    file.
    """
    _check_model(facts, now, origin)
    for name in ("weights", "tokenizer", "text"):  # the tokenizer includes its BOS policy
        before, after = facts.get(name), now.get(name)
        if before is not None and after is not None and before != after:
            one, other = ("these", "other") if name == "weights" else ("this", "another")
            raise WrongModelError(
                f"baseline {origin} for {one} {name}", f"it was measured with {other} {name}", "--swcheck-update"
            )
    if now.get("tier") and now["tier"] != facts.get("tier", now["tier"]):
        raise WrongModelError(
            f"baseline {origin} for the {now['tier']} tier",
            f"it was measured in the {facts['tier']} tier",
            f"--swcheck-tier={facts['tier']}, or --swcheck-update",
        )
    return [
        f"the baseline was measured with {name} {facts[name]}, this run has {now[name]}"
        for name in ("revision", "device", "dtype", "torch", "transformers", "swcheck")
        if facts.get(name) and now.get(name) and facts[name] != now[name]
    ]


def _check_model(facts: dict[str, Any], now: dict[str, Any], origin: str) -> None:
    """Raise ``WrongModelError`` where the weights cannot be compared, unless the name of the model is the same."""
    if now.get("weights") and not facts.get("weights"):
        raise WrongModelError(
            f"baseline {origin} for these weights", "it does not say with which it was measured", "--swcheck-update"
        )
    before, after = facts.get("model"), now.get("model")
    if before and after and before != after and not now.get("weights"):
        found = f"it was measured of {before}, and the weights are not here to compare"
        raise WrongModelError(f"baseline {origin} for {after}", found, "--swcheck-update")


def revision_of(directory: Path) -> str | None:
    """Return the revision of a snapshot in the hub's cache; None for any other folder."""
    return directory.name if directory.parent.name == "snapshots" else None


def tokenizer_identity(tokenizer: Any) -> str | None:
    """Return a digest of the vocabulary and of the ids of two sample texts, BOS included; None without a tokenizer."""
    if tokenizer is None:
        return None
    samples = [tokenizer(text)["input_ids"] for text in SAMPLE_TEXTS]
    whole = json.dumps([sorted(tokenizer.get_vocab().items()), samples, tokenizer.bos_token_id])
    return hashlib.sha256(whole.encode()).hexdigest()


def weights_identity(directory: Path) -> str | None:
    """Return a digest of the safetensors files: of all bytes of a small file, of samples of a larger one.

    None without such files. Raises ``CheckpointError`` for a large file that is no safetensors. A file above ``WHOLE_FILE_BYTES`` bytes is sampled: its header, tensors of at most ``BLOCK`` bytes
    (norms and biases) whole, and up to 16 blocks spread over each other tensor.
    """
    whole = directory / SINGLE_FILE
    named = [whole] if whole.exists() else [directory / name for name in sorted(shards_of(directory))]
    files = [file for file in named if file.is_file()]  # other files have the same weights for other runtimes
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            for place, length in _sampled_places(file):
                stream.seek(place)
                digest.update(stream.read(length))
    return digest.hexdigest() if files else None


def _sampled_places(file: Path) -> Iterator[tuple[int, int]]:
    """Yield the sampled places of a safetensors file, and how many bytes are read at each."""
    size = file.stat().st_size
    if size <= WHOLE_FILE_BYTES:
        yield 0, size
        return
    header = read_header(file)
    yield 0, header.start
    count = min(16, max(2, 8192 // max(1, len(header.tensors))))
    for tensor in header.tensors.values():
        begin, length = header.start + tensor.begin, tensor.end - tensor.begin
        if length <= BLOCK:
            yield begin, length
        else:
            yield from ((begin + step * (length - BLOCK) // (count - 1), BLOCK) for step in range(count))
