"""Checks that a candidate can be saved, and is the same when it is loaded again."""

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


ALIKE: Final = {2: 0.05, 4: 0.01}
"""What a saved candidate may answer off, by the bytes of its floats: a kernel chosen anew adds in another order, and
what quantization of the inputs changes is 1.5 %. A corrupt checkpoint is far away (bitsandbytes' repacked one: 91 %)."""


def state_fingerprint(model: nn.Module) -> dict[str, str]:
    """A digest of every tensor that a checkpoint of ``model`` would hold, the parts of packed ones included."""
    return {name: _digest(value) for name, value in model.state_dict().items()}


def check_saved(case: EngineCase, loaded: Loaded, fresh: Mapping[str, str], logits: torch.Tensor) -> str:
    """A checkpoint written now equals one of a second candidate that was never looked at, and loaded it is the same."""
    model: Any = loaded.model
    with TemporaryDirectory() as folder:
        first, second = Path(folder, "before"), Path(folder, "after")
        untouched = case.load()
        if state_fingerprint(untouched.model) != fresh:
            return "not compared: two loads differ"
        try:
            with captured_output():
                untouched.model.save_pretrained(first)
        except Exception as error:  # whatever a format raises that cannot be saved
            return f"refused: {type(error).__name__}"
        try:
            with captured_output():
                model.save_pretrained(second)
        except Exception as error:  # as above; but a fresh one could be saved
            case.refuse(
                "saved after the check as before it", f"{type(error).__name__}: {error}", "keep what a save needs"
            )
        differing = _differing(first, second)
        again = "" if differing else _check_reloaded(case, loaded, second, logits)
    if differing:
        found = f"{len(differing)} tensors differ, first {differing[0]}"
        case.refuse(
            "a checkpoint saved after the check equals one saved before", found, "let no pass repack the weights"
        )
    return f"equal{again}"


def _check_reloaded(case: EngineCase, loaded: Loaded, folder: Path, logits: torch.Tensor) -> str:
    """What the built-in loader makes of the checkpoint answers as the candidate does, and is held to the same limits.

    Returns nothing, or why there is no such model: transformers knows no loader of this kind, or it is an adapter.
    """
    with captured_output():
        loaded.tokenizer.save_pretrained(folder)
        try:
            again = engines.load(str(folder), device=case.device)
        except SwcheckError as error:
            return f", and not loaded again: {type(error).__name__}"
    off = float((look_inside(case, again.model)[1] - logits).norm() / logits.norm())
    if not off <= ALIKE.get(loaded.model.dtype.itemsize, min(ALIKE.values())):
        found = f"its logits are {off:.1%} off"
        case.refuse("a saved candidate that answers as before", found, "check what a save leaves out")
    kinds = scheme_class(again.scheme), scheme_class(loaded.scheme)
    if again.scheme is not None and kinds[0] != kinds[1]:
        found = f"the directory {kinds[0]}, the engine {kinds[1]}"
        case.refuse("the same limits for the saved candidate", found, "say in Scheme what the config says")
    return ""


def _differing(one: Path, other: Path) -> list[str]:
    """The names of tensors that two checkpoints do not share to the byte."""
    before, after = _tensors(one), _tensors(other)
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))


def _tensors(folder: Path) -> dict[str, str]:
    """A digest of every tensor of the safetensors files of a folder, and of any other weight file as a whole."""
    found: dict[str, str] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix in {".pt", ".bin", ".gguf"}:
            found[file.name] = hashlib.blake2b(file.read_bytes()).hexdigest()
        elif file.suffix == ".safetensors":
            raw = file.read_bytes()
            start = 8 + int.from_bytes(raw[:8], "little")
            entries = json.loads(raw[8:start])
            for name in entries.keys() - {"__metadata__"}:
                low, high = entries[name]["data_offsets"]
                head = f"{entries[name]['dtype']} {entries[name]['shape']}".encode()
                found[name] = hashlib.blake2b(head + raw[start + low : start + high]).hexdigest()
    return found


def _digest(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return repr(value)
    parts: Any = getattr(value, "__tensor_flatten__", None)
    if parts is not None:
        return " ".join(_digest(getattr(value, name)) for name in parts()[0])
    raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(raw.numpy().tobytes(), digest_size=16).hexdigest() + f" {value.dtype} {tuple(value.shape)}"
