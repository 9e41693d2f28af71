"""The engine ``peft``: an adapter directory on the reference, beside its weights or merged into them.

The base model is the reference, whatever name the adapter's config gives. Only safetensors are read. What
``,skip=NAME+NAME`` names stays as the reference has it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swcheck import engines, skip
from swcheck.errors import CheckpointError, EngineError, OptionError, UnsafeCheckpointError
from swcheck.records import Loaded, Scheme

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"


@dataclass(frozen=True)
class Peft:
    """``peft:DIRECTORY`` or ``peft:DIRECTORY,merged``, and ``,skip=NAME+NAME``."""

    name: str = "peft"
    trust_remote_code: bool = False
    offline: bool = False

    def claims(self, path: Path) -> bool:
        """Whether a path is an adapter: a directory with an adapter's config, and no model's beside it."""
        return (path / CONFIG).is_file() and not (path / "config.json").exists()

    def load(self, spec: str, *, reference: str | None, device: str | None, dtype: str | None) -> Loaded:
        words, names = skip.parted(spec)
        folder, merged = Path(words.removesuffix(",merged")).expanduser(), words.endswith(",merged")
        kind = _checked(spec, folder)
        if reference is None:
            raise OptionError(f"peft:{spec}", "no reference to put the adapter on", "name one with --model")
        try:
            from peft import PeftModel
        except ImportError as error:
            raise EngineError(f"peft:{spec}", str(error), "pip install 'peft>=0.19'") from error
        base = engines.load(
            reference, device=device, dtype=dtype, trust_remote_code=self.trust_remote_code, offline=self.offline
        )
        floats, kept = 8 * base.model.dtype.itemsize, skip.linear_maps(f"peft:{spec}", base.model, names)
        try:
            model = PeftModel.from_pretrained(base.model, str(folder), torch_device=str(base.model.device))
        except (RuntimeError, ValueError, KeyError, TypeError) as error:  # other widths, other names, another peft
            words = " ".join(str(error).split())[:300]
            raise CheckpointError(f"peft:{spec} on {reference}", words, "give the adapter's own base model") from error
        for one in kept:
            parent, _, child = one.rpartition(".")
            layer = model.base_model.model.get_submodule(one)
            setattr(model.base_model.model.get_submodule(parent), child, getattr(layer, "base_layer", layer))
        if merged:
            model = model.merge_and_unload()
        scheme = Scheme(kind, floats, activation_bits=floats)
        return Loaded(model.eval(), base.tokenizer, f"peft:{spec}", base.text, str(folder), scheme)


ENGINE: Final = Peft()


def _checked(spec: str, folder: Path) -> str:
    """The kind of the adapter in ``folder``, in lower case; what is no adapter, or a pickle, is refused."""
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
