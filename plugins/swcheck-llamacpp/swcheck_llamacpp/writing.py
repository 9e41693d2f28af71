"""Writes the reference as a GGUF file that llama.cpp can run: with a tokenizer, in any type that ggml can encode."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
import swcheck_gguf

from swcheck import EngineError
from swcheck_llamacpp.library import library

FLOATS: Final = {"f32": gguf.GGMLQuantizationType.F32, "f16": gguf.GGMLQuantizationType.F16}


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
    """Write a byte-level BPE as llama.cpp reads it: tokens in order, merges, special tokens, whether BOS is added."""
    import json

    said = json.loads(tokenizer.backend_tokenizer.to_str())
    model = said["model"]
    if model.get("type") != "BPE" or "ByteLevel" not in json.dumps(said.get("pre_tokenizer")):
        raise EngineError(title, f"a tokenizer of type {model.get('type')}", "convert it with llama.cpp: llamacpp:FILE")
    special = {one["id"]: one["content"] for one in said["added_tokens"] if one["special"]}
    known = {number: token for token, number in {**model["vocab"], **tokenizer.get_added_vocab()}.items()}
    tokens = [known[number] for number in range(len(known))]
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([kinds.CONTROL if number in special else kinds.NORMAL for number in range(len(tokens))])
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]])
    begins = tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
    for number, add in (
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.eos_token_id, writer.add_eos_token_id),
    ):
        if number is not None:
            add(number)
    writer.add_add_bos_token(begins)
