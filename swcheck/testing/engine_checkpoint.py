"""Checks that a candidate can be saved, and that it is the same when it is loaded again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import torch

from swcheck.base.errors import SwcheckError
from swcheck.base.isolation import captured_output
from swcheck.base.limits import scheme_class
from swcheck.base.records import Loaded
from swcheck.loading import engines
from swcheck.testing.engine_case import EngineCase, look_inside

if TYPE_CHECKING:
    from torch import nn


LOGIT_TOLERANCE: Final = {2: 0.05, 4: 0.01}
"""The relative error allowed to a saved candidate's logits, by the bytes of its floats.

A kernel that is chosen anew adds in another order, and quantized inputs make that a difference of 1.5 %. A corrupt
checkpoint is far beyond: the one that bitsandbytes repacked is 91 % off.
"""


def state_fingerprint(model: nn.Module) -> dict[str, str]:
    """Return a digest of every tensor that a checkpoint of ``model`` would hold, the parts of packed ones included."""
    return {name: _digest(value) for name, value in model.state_dict().items()}


def check_saved(case: EngineCase, loaded: Loaded, initial_state: Mapping[str, str], logits: torch.Tensor) -> str:
    """Check that a checkpoint saved now equals one of a candidate that was never inspected, and can be loaded again.

    ``initial_state`` is the fingerprint before any pass, ``logits`` the candidate's. Returns how they compared.
    """
    model: Any = loaded.model
    with TemporaryDirectory() as folder:
        before_path, after_path = Path(folder, "before"), Path(folder, "after")
        unobserved = case.load()
        if state_fingerprint(unobserved.model) != initial_state:
            return "not compared: two loads differ"
        try:
            with captured_output():
                unobserved.model.save_pretrained(before_path)
        except Exception as error:  # a format that cannot be saved may raise anything
            return f"refused: {type(error).__name__}"
        try:
            with captured_output():
                model.save_pretrained(after_path)
        except Exception as error:  # as above, although a fresh candidate could be saved
            case.refuse(
                "saved after the check as before it", f"{type(error).__name__}: {error}", "keep what a save needs"
            )
        differing = _differing(before_path, after_path)
        reload_note = "" if differing else _check_reloaded(case, loaded, after_path, logits)
    if differing:
        found = f"{len(differing)} tensors differ, first {differing[0]}"
        case.refuse(
            "a checkpoint saved after the check equals one saved before", found, "let no pass repack the weights"
        )
    return f"equal{reload_note}"


def _check_reloaded(case: EngineCase, loaded: Loaded, folder: Path, logits: torch.Tensor) -> str:
    """Check that the checkpoint, loaded by the built-in loader, gives the same logits and is held to the same limits.

    Returns "", or why it was not loaded: transformers has no loader of this kind, or it is an adapter.
    """
    with captured_output():
        loaded.tokenizer.save_pretrained(folder)
        try:
            reloaded = engines.load(str(folder), device=case.device)
        except SwcheckError as error:
            return f", and not loaded again: {type(error).__name__}"
    logit_error = float((look_inside(case, reloaded.model)[1] - logits).norm() / logits.norm())
    if not logit_error <= LOGIT_TOLERANCE.get(loaded.model.dtype.itemsize, min(LOGIT_TOLERANCE.values())):
        found = f"its logits are {logit_error:.1%} off"
        case.refuse("a saved candidate that answers as before", found, "check what a save leaves out")
    scheme_classes = scheme_class(reloaded.scheme), scheme_class(loaded.scheme)
    if reloaded.scheme is not None and scheme_classes[0] != scheme_classes[1]:
        found = f"the directory {scheme_classes[0]}, the engine {scheme_classes[1]}"
        case.refuse("the same limits for the saved candidate", found, "say in Scheme what the config says")
    return ""


def _differing(first: Path, second: Path) -> list[str]:
    """Return the names of the tensors that differ between two checkpoints, byte by byte."""
    first_digests, second_digests = _tensors(first), _tensors(second)
    return sorted(
        name for name in {*first_digests, *second_digests} if first_digests.get(name) != second_digests.get(name)
    )


def _tensors(folder: Path) -> dict[str, str]:
    """Return a digest of every tensor in a folder's safetensors files, and of every other weight file as a whole."""
    digests: dict[str, str] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix in {".pt", ".bin", ".gguf"}:
            digests[file.name] = hashlib.blake2b(file.read_bytes()).hexdigest()
        elif file.suffix == ".safetensors":
            raw = file.read_bytes()
            start = 8 + int.from_bytes(raw[:8], "little")
            entries = json.loads(raw[8:start])
            for name in entries.keys() - {"__metadata__"}:
                first, end = entries[name]["data_offsets"]
                header = f"{entries[name]['dtype']} {entries[name]['shape']}".encode()
                digests[name] = hashlib.blake2b(header + raw[start + first : start + end]).hexdigest()
    return digests


def _digest(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return repr(value)
    flatten: Any = getattr(value, "__tensor_flatten__", None)
    if flatten is not None:
        return " ".join(_digest(getattr(value, name)) for name in flatten()[0])
    raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(raw.numpy().tobytes(), digest_size=16).hexdigest() + f" {value.dtype} {tuple(value.shape)}"
