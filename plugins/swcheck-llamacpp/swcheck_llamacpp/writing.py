"""Writes the reference as a GGUF file that llama.cpp can run: with a tokenizer, in any type that ggml can encode."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
import swcheck_gguf

from swcheck import EngineError
from swcheck_llamacpp.library import library

FLOATS: Final = {"f32": gguf.GGMLQuantizationType.F32, "f16": gguf.GGMLQuantizationType.F16}
BYTE: Final = gguf.TokenType.BYTE


def write(model: Any, tokenizer: Any, file: Path, scheme: str, kept: tuple[str, ...] = ()) -> None:
    """Write a Llama-like ``model`` with its tokenizer; matrices as ``scheme``, those ``kept`` and embeddings as f16.

    With ``f32`` everything is float32. Raises ``EngineError`` for a width that no block divides, and for a tokenizer
    that is no byte-level BPE.
    """
    kind = gguf.GGMLQuantizationType[scheme.upper()]
    swcheck_gguf.write(
        model,
        file,
        scheme,
        kept,
        plain=FLOATS["f32"] if scheme == "f32" else FLOATS["f16"],
        encode=lambda array, wanted: encode(array, wanted) if wanted == kind else swcheck_gguf.encode(array, wanted),
        extra=lambda writer: add_tokenizer(writer, tokenizer, f"llamacpp:{scheme}"),
    )


def encode(array: np.ndarray, kind: Any) -> np.ndarray:
    """Return a matrix ``(H, F)`` in a type of ggml, uint8 ``(H, bytes of a row)``, by ggml's own function."""
    if kind in FLOATS.values():
        return swcheck_gguf.encode(array, kind)
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    rows, columns = array.shape
    if columns % block:
        raise ValueError(f"shape {array.shape} to {kind.name}: rows of {columns} are not whole blocks of {block}")
    c, source = library().c, np.ascontiguousarray(array, np.float32)
    packed = np.zeros((rows, c.ggml_row_size(int(kind), columns)), np.uint8)
    importance = np.ones(columns, np.float32)
    addresses = (one.ctypes.data_as(ctypes.c_void_p) for one in (source, packed, importance))
    first, second, third = addresses
    written = c.ggml_quantize_chunk(int(kind), first, second, 0, rows, columns, third)
    if written != packed.nbytes:
        raise ValueError(f"{kind.name}: {written} bytes for {packed.nbytes}")
    return packed


def add_tokenizer(writer: Any, tokenizer: Any, title: str) -> None:
    """Write a BPE as llama.cpp reads it: tokens in order, merges or scores, special tokens, whether BOS is added.

    A byte-level BPE keeps its merges. One of words that begin with a mark, with bytes to fall back on, as Llama 2 has it,
    is written as the vocabulary of scores that it was made from. Raises ``EngineError`` for any other.
    """
    import json

    said = json.loads(tokenizer.backend_tokenizer.to_str())
    model = said["model"]
    by_bytes = "ByteLevel" in json.dumps(said.get("pre_tokenizer"))
    by_marks = model.get("byte_fallback") and "Prepend" in json.dumps(said.get("normalizer"))
    if model.get("type") != "BPE" or not (by_bytes or by_marks):
        raise EngineError(title, f"a tokenizer of type {model.get('type')}", "convert it with llama.cpp: llamacpp:FILE")
    special = {one["id"] for one in said["added_tokens"] if one["special"]}
    known = {number: token for token, number in {**model["vocab"], **tokenizer.get_added_vocab()}.items()}
    tokens = [known[number] for number in range(len(known))]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in model["merges"]]
    writer.add_tokenizer_model("gpt2" if by_bytes else "llama")
    writer.add_tokenizer_pre("gpt-2" if by_bytes else "default")
    writer.add_token_list(tokens)
    if by_bytes:
        writer.add_token_merges([" ".join(pair) for pair in merges])
    else:
        ranks = {"".join(pair): rank for rank, pair in reversed(list(enumerate(merges)))}
        writer.add_token_scores([-float(ranks.get(token, len(merges))) for token in tokens])
        writer.add_add_space_prefix(True)
    kinds = [_kind_of(token, number in special, tokenizer) for number, token in enumerate(tokens)]
    writer.add_token_types([gguf.TokenType.NORMAL if by_bytes and kind == BYTE else kind for kind in kinds])
    begins = tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
    for number, add in (
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.eos_token_id, writer.add_eos_token_id),
        (tokenizer.unk_token_id, writer.add_unk_token_id),
    ):
        if number is not None:
            add(number)
    writer.add_add_bos_token(begins)


def _kind_of(token: str, special: bool, tokenizer: Any) -> Any:
    """Return llama.cpp's type of a token."""
    kinds = gguf.TokenType
    if special:
        return kinds.UNKNOWN if token == tokenizer.unk_token else kinds.CONTROL
    return BYTE if re.fullmatch(r"<0x[0-9A-F]{2}>", token) else kinds.NORMAL
