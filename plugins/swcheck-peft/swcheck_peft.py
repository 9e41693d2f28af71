"""The engine ``peft``: an adapter directory on the reference, beside its weights or merged into them.

The base model is the reference, whatever name the adapter's config gives. Only safetensors are read. What
``,skip=NAME+NAME`` names stays as the reference has it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swcheck import CheckpointError, EngineRequest, Loaded, Scheme, UnsafeCheckpointError, check_packages, read_skip

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
MERGED: Final = ",merged"
PACKAGES: Final = (("peft", "peft>=0.19"),)


@dataclass(frozen=True)
class Peft:
    """``peft:DIRECTORY`` or ``peft:DIRECTORY,merged``, and ``,skip=NAME+NAME``."""

    name: str = "peft"
    trust_remote_code: bool = False
    offline: bool = False

    def claims(self, path: Path) -> bool:
        """Whether a path is an adapter: a directory with an adapter's config, and no model's beside it."""
        return (path / CONFIG).is_file() and not (path / "config.json").exists()

    def check(self, spec: str) -> None:
        """Raise what ``load`` does for what is no adapter, or without its package."""
        _asked(spec)

    def load(self, spec: str, *, reference: str | None, device: str | None, dtype: str | None) -> Loaded:
        asked, kind = _asked(spec)
        folder = Path(asked.scheme.removesuffix(MERGED)).expanduser()
        base = asked.load_reference(reference, self, device=device, dtype=dtype)
        from peft import PeftModel

        floats, kept = 8 * base.model.dtype.itemsize, asked.modules_to_skip(base.model)
        try:
            model = PeftModel.from_pretrained(base.model, str(folder), torch_device=str(base.model.device))
        except (RuntimeError, ValueError, KeyError, TypeError) as error:  # other widths, other names, another peft
            words = " ".join(str(error).split())[:300]
            raise CheckpointError(
                f"{asked.title} on {reference}", words, "give the adapter's own base model"
            ) from error
        for one in kept:
            parent, _, child = one.rpartition(".")
            layer = model.base_model.model.get_submodule(one)
            setattr(model.base_model.model.get_submodule(parent), child, getattr(layer, "base_layer", layer))
        if asked.scheme.endswith(MERGED):
            model = model.merge_and_unload()
        scheme = Scheme(kind, floats, activation_bits=floats)
        return Loaded(model.eval(), base.tokenizer, asked.title, base.text, str(folder), scheme)


ENGINE: Final = Peft()


def _asked(spec: str) -> tuple[EngineRequest, str]:
    """What is asked, its scheme a path, and the adapter's kind in lower case; what is no adapter, or a pickle, is refused."""
    words, names = read_skip(f"peft:{spec}", spec)
    kind = _kind(spec, Path(words.removesuffix(MERGED)).expanduser())
    check_packages(f"peft:{spec}", PACKAGES)
    return EngineRequest("peft", spec, words, names=names), kind


def _kind(spec: str, folder: Path) -> str:
    if not (folder / CONFIG).is_file():
        found = "no such directory" if not folder.is_dir() else f"no {CONFIG} in it"
        raise CheckpointError(f"peft:{spec}", found, "give the directory that PeftModel.save_pretrained wrote")
    if not (folder / WEIGHTS).is_file():
        if any(folder.glob("*.bin")):
            found = "its weights are a pickle, which can run any code on loading"
            raise UnsafeCheckpointError(f"peft:{spec}", found, "save the adapter again, with safe_serialization=True")
        raise CheckpointError(f"peft:{spec}", f"no {WEIGHTS} in it", "save the adapter again")
    try:
        kind = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["peft_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"peft:{spec}", f"a {CONFIG} without peft_type", "save the adapter again") from error
    return str(kind).lower()
