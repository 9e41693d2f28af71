"""A reference's measurements, to and from one small JSON file, so that a gate need not load the reference.

The file holds what a candidate is compared with: coordinates with values and contributions, activations, the nats of
every token in float16 (so that differences stay paired), the likeliest tokens of a fixed sample, a portrait of the
embedding, and the identity of weights, tokenizer and text. What explains a red verdict layer by layer and map by map is
folded to a few numbers each; whole matrices are left out, and read from the reference's own files where those are on
this machine. Arrays are compressed; nothing in the file is code.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch

from swcheck import causal, dependence, judge, predictions, solo
from swcheck.checkpoint import SINGLE, shards_of
from swcheck.drift import Predictions
from swcheck.errors import CheckpointError, OptionError, WrongModelError, first_words
from swcheck.kind import Sketch
from swcheck.kinship import Portrait
from swcheck.limits import DEFAULTS, DRAWS
from swcheck.location import Located
from swcheck.pair import Pair
from swcheck.probes import Echoes
from swcheck.reading import Reading, Stream
from swcheck.records import Prompt, SuperActivation, SuperWeight
from swcheck.subject import SAMPLES, Subject

SCHEMA: Final = 2
LARGEST: Final = 1_000_000
"""A baseline is committed and reviewed: at most 1 MB."""

KEPT_ROWS: Final = 32
KEPT_VALUES: Final = 3 * 2**15
"""So many values of embedding rows are kept, and as many of the rows that hold super weights."""
FEWEST_ROWS: Final = 8
WHOLE: Final = 2**26
"""A file of weights of at most so many bytes is read whole to know it again; that takes a tenth of a second."""
BLOCK: Final = 2**14
LEFT_OUT: Final = frozenset(
    {
        "inputs",
        "residuals",
        "against",
        "matrix",
        "breakdown",
        "embedded",
        "map errors",
        "cache",
        "finding",
        "kin",
        "remedy",
    }
)
HALVES: Final = frozenset({"intact", "causal", "matched", "largest", "row"})
RECORDS: Final = {
    kind.__name__: kind
    for kind in (SuperWeight, SuperActivation, Prompt, Reading, Located, Predictions, Portrait, Sketch, Echoes, Stream)
}


def complete(subject: Subject, prompts: Sequence[str | Prompt] = ()) -> None:
    """Measure all that a candidate is compared with, by holding the reference against itself.

    On ``prompts``, beside the default one, the activations are read.
    """
    everything = {name: DEFAULTS[name] for name in ("contribution", "activation", "perplexity", "dependence")}
    judge.compare_weights(Pair("super weights", subject, subject), everything["contribution"])
    for asked in (None, prompts) if prompts else (None,):
        judge.compare_activations(Pair("super activations", subject, subject), asked, everything["activation"])
    predictions.compare_perplexity(Pair("perplexity", subject, subject), everything["perplexity"], None)
    if subject.tier.causal:
        dependence.compare_dependence(Pair("dependence", subject, subject), everything["dependence"])
    causal.intact(subject)  # what a proof of the cause starts from, whether or not there is a super weight
    weights = subject.located().super_weights
    for weight in weights:
        subject.row(weight)
    for weight, sink in zip(weights, subject.sinks(weights, subject.prompt_ids()) if weights else (), strict=True):
        subject.columns(weight, subject.prompt_ids(), sink)
    for place in subject.places(weights):
        subject.profile(place, subject.prompt_ids())
    subject.stream(subject.prompt_ids())
    subject.echoes()
    subject.sample_ids()
    subject.sketch()
    _ = (subject.vocabulary, subject.parameters, subject.has_bos)


def complete_alone(subject: Subject) -> None:
    """Measure what the reference's own checks ask for as well: its fitness, its collapse, its nulls."""
    weights = subject.located().super_weights
    solo.healthy(subject, None)
    if not subject.tier.causal:
        return
    dependence.collapse(subject, weights, DEFAULTS["collapse"])
    dependence.matched_null(subject, weights, DEFAULTS["null"], DRAWS)
    dependence.largest_null(subject, weights, DEFAULTS["others"])


def dumps(subject: Subject, facts: dict[str, Any]) -> str:
    """The file's text. ``facts`` are identities and conditions, kept as they are."""
    kept = {key: value for key, value in (subject.memo or {}).items() if _kept(key, value)}
    memo = {key: kept[key] for key in sorted(kept, key=repr)}  # whatever was measured first: a diff shows a change
    room = KEPT_VALUES
    for key in [key for key in memo if key[0] == "row" and memo[key] is not None]:
        room -= len(memo[key])
        memo[key] = memo[key] if room >= 0 else None  # as a packed one: the cause is told less exactly
    body = {
        "schema": SCHEMA,
        "model": subject.name,
        **facts,
        "super_weights": [weight.as_json() for weight in subject.located().super_weights],
        "measurements": [[_pack(key), _pack(_shrunk(key, value))] for key, value in memo.items()],
    }
    text = json.dumps(body, indent=1, allow_nan=False) + "\n"
    if len(text) > LARGEST:
        raise OptionError(
            f"a baseline of {subject.name} of at most {LARGEST:,} bytes", f"{len(text):,}", "measure on fewer windows"
        )
    return text


def loads(text: str, origin: str) -> tuple[Subject, dict[str, Any]]:
    """The reference as it was measured, without weights, and the file's facts.

    Raises ``CheckpointError`` for a file that is no baseline, or one of another schema.
    """
    memo: dict[Any, Any] = {}
    try:
        body = json.loads(text)
        if not isinstance(body, dict) or "schema" not in body:
            raise ValueError("it names no schema")
        schema = body["schema"]
        if schema == SCHEMA:
            memo = {_unpack(key): _unpack(value) for key, value in body.pop("measurements")}
            name = str(body["model"])
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, zlib.error) as error:
        raise CheckpointError(
            f"baseline {origin}",
            f"no baseline of swcheck, or a damaged one ({first_words(error)})",
            "write it anew: --swcheck-update",
        ) from error
    if schema != SCHEMA:
        raise CheckpointError(
            f"baseline {origin}",
            f"another version of swcheck wrote it (schema {schema}, this is {SCHEMA})",
            "write it anew: --swcheck-update",
        )
    return Subject(name, None, memo=memo), body


def check_identity(facts: dict[str, Any], now: dict[str, Any], origin: str) -> list[str]:
    """Refuse a baseline of other weights, text or tokenizer; return notes on what else has changed.

    Raises ``WrongModelError``. What is not known now (the reference is not on this machine) is not held against it.
    """
    for name in ("weights", "tokenizer", "text"):  # the tokenizer with its BOS policy
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


def revision_of(directory: Path) -> str | None:
    """The revision of a snapshot in the hub's cache, None for any other folder."""
    return directory.name if directory.parent.name == "snapshots" else None


def tokenizer_identity(tokenizer: Any) -> str | None:
    """A digest of the vocabulary, and of what is made of two sample texts, BOS included; None without a tokenizer."""
    if tokenizer is None:
        return None
    samples = [tokenizer(text)["input_ids"] for text in SAMPLES]
    whole = json.dumps([sorted(tokenizer.get_vocab().items()), samples, tokenizer.bos_token_id])
    return hashlib.sha256(whole.encode()).hexdigest()


def weights_identity(directory: Path) -> str | None:
    """A digest of the safetensors files: of all their bytes, or of samples of every tensor where a file is larger.

    None without such files. Of a file above ``WHOLE`` bytes these are the header, tensors of at most ``BLOCK`` bytes (norms
    and biases) whole, and up to 16 blocks spread over each other one.
    """
    whole = directory / SINGLE
    named = [whole] if whole.exists() else [directory / name for name in sorted(shards_of(directory))]
    files = [file for file in named if file.exists()]  # others beside them are the same weights for other runtimes
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            for place, length in list(_sampled(stream, file.stat().st_size)):
                stream.seek(place)
                digest.update(stream.read(length))
    return digest.hexdigest() if files else None


def _sampled(stream: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """The places of a safetensors file that stand for it, and how many bytes are read there."""
    if size <= WHOLE:
        yield 0, size
        return
    start = 8 + int.from_bytes(stream.read(8), "little")
    yield 0, start
    header = json.loads(stream.read(start - 8))
    spans = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
    count = min(16, max(2, 8192 // max(1, len(spans))))
    for begin, end in spans:
        if end - begin <= BLOCK:
            yield start + begin, end - begin
        else:
            yield from ((start + begin + step * (end - begin - BLOCK) // (count - 1), BLOCK) for step in range(count))


def _kept(key: Any, value: Any) -> bool:
    """Whether a number is for the file: it is not left out, and small enough."""
    return (key[0] if isinstance(key, tuple) else key) not in LEFT_OUT and not (
        isinstance(value, Echoes) and not value.fits
    )


def _shrunk(key: Any, value: Any) -> Any:
    """Nats in float16, a portrait of fewer rows: what a file of this size can hold."""
    name = key[0] if isinstance(key, tuple) else key
    if isinstance(value, Portrait) and value.rows is not None:
        count = max(FEWEST_ROWS, min(KEPT_ROWS, KEPT_VALUES // value.rows.shape[1]))
        step = -(-len(value.rows) // count)
        return replace(value, indices=value.indices[::step], rows=value.rows[::step].half())
    if isinstance(value, Located):
        return replace(value, rounds=(), effect=None)
    if name in HALVES:
        return _halved(value)
    return value


def _halved(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.half()
    if isinstance(value, Predictions):
        return replace(value, logs=value.logs.half())
    return tuple(_halved(part) for part in value) if isinstance(value, tuple) else value


def _pack(value: Any) -> Any:
    """Plain JSON for the few kinds of value a memo holds, each marked with its kind."""
    if isinstance(value, torch.Tensor):
        small = value.to(torch.int32) if value.dtype == torch.int64 else value
        planes = small.contiguous().flatten().view(torch.uint8).reshape(-1, small.element_size()).T  # like beside like
        raw = zlib.compress(planes.contiguous().numpy().tobytes(), 9)
        return {"tensor": str(small.dtype).removeprefix("torch."), "shape": list(value.shape), "data": base64.b85encode(raw).decode()}  # fmt: skip
    if is_dataclass(value) and type(value).__name__ in RECORDS:
        return {
            "record": type(value).__name__,
            "fields": {f.name: _pack(getattr(value, f.name)) for f in fields(value)},
        }
    if isinstance(value, (tuple, list)):
        return {"tuple": [_pack(part) for part in value]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"a {type(value).__name__} has no place in a baseline")


def _unpack(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        dtype = getattr(torch, value["tensor"])
        raw = bytearray(zlib.decompress(base64.b85decode(value["data"])))
        planes = torch.frombuffer(raw, dtype=torch.uint8).reshape(dtype.itemsize, -1) if raw else torch.zeros(0)
        tensor = planes.T.contiguous().flatten().view(dtype).reshape(value["shape"])
        return tensor.long() if dtype == torch.int32 else (tensor.float() if dtype == torch.float16 else tensor)
    if "record" in value:
        kind: Any = RECORDS[value["record"]]
        return kind(**{name: _unpack(part) for name, part in value["fields"].items()})
    if "float" in value:
        return float(value["float"])
    return tuple(_unpack(part) for part in value["tuple"])
