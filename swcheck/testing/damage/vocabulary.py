"""Candidates with another vocabulary than their reference's: padded, cut down, with tokens added, without BOS."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch

from swcheck.base.errors import OptionError
from swcheck.base.records import Loaded


def padded(reference: Loaded, strength: float) -> Loaded:
    """Return a copy with ``strength`` rows of zeros behind its embedding and its head."""
    model = _resized(reference.model, _rows(reference) + int(strength))
    with torch.no_grad():
        for table in (model.get_input_embeddings(), model.get_output_embeddings()):
            table.weight[-int(strength) :] = 0
    return replace(reference, model=model)


def cut_down(reference: Loaded, _strength: float) -> Loaded:
    """Return a copy without the rows that no id of the tokenizer has."""
    count = 1 + max(reference.tokenizer.get_vocab().values())
    if count >= _rows(reference):
        raise OptionError("an embedding with more rows than the tokenizer has ids", "as many", "another candidate")
    return replace(reference, model=_resized(reference.model, count))


def with_an_added_token(reference: Loaded, strength: float) -> Loaded:
    """Return a copy with so many tokens added to its tokenizer that ``strength`` have no row in the embedding."""
    tokenizer = copy.deepcopy(reference.tokenizer)
    known = 1 + max(tokenizer.get_vocab().values())
    tokenizer.add_tokens([f"<added {number}>" for number in range(int(strength) + _rows(reference) - known)])
    return replace(reference, model=copy.deepcopy(reference.model), tokenizer=tokenizer)


def without_bos(reference: Loaded, _strength: float) -> Loaded:
    """Return a copy whose tokenizer puts nothing before a text."""
    tokenizer = copy.deepcopy(reference.tokenizer)
    if tokenizer("x")["input_ids"] == tokenizer("x", add_special_tokens=False)["input_ids"]:
        raise OptionError("a tokenizer that adds BOS", "it adds nothing", "another candidate")
    tokenizer.backend_tokenizer.post_processor = None
    return replace(reference, model=copy.deepcopy(reference.model), tokenizer=tokenizer)


def _rows(reference: Loaded) -> int:
    model: Any = reference.model
    return int(model.get_input_embeddings().num_embeddings)


def _resized(model: Any, count: int) -> Any:
    copied = copy.deepcopy(model)
    copied.resize_token_embeddings(count, mean_resizing=False)
    return copied.eval()
