"""The engine ``peft``: an adapter directory on the reference, beside its weights or merged into them.

The base model is the reference, whatever name the adapter's config gives. Only safetensors are read. What
``,skip=NAME+NAME`` names stays as the reference has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from swcheck import (
    AdapterFiles,
    CheckpointError,
    EngineRequest,
    Loaded,
    Scheme,
    UnsafeCheckpointError,
    check_adapter_patterns,
    check_packages,
    read_adapter,
    read_skip,
)

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
        asked, files = _asked(spec)
        folder = Path(asked.scheme.removesuffix(MERGED)).expanduser()
        base = asked.load_reference(reference, self, device=device, dtype=dtype)
        from peft import PeftModel

        floats, kept = 8 * base.model.dtype.itemsize, asked.modules_to_skip(base.model)
        check_adapter_patterns(files.config, (name for name, _ in base.model.named_modules()), asked.title)
        try:
            model = PeftModel.from_pretrained(base.model, str(folder), torch_device=str(base.model.device))
        except Exception as error:  # other widths, other names, another peft, fields of a wrong type
            words = " ".join(str(error).split())[:300]
            raise CheckpointError(
                f"{asked.title} on {reference}", words, "give the adapter's own base model"
            ) from error
        _check_all_used(model, files.tensors, asked.title)
        for one in kept:
            parent, _, child = one.rpartition(".")
            layer = model.base_model.model.get_submodule(one)
            setattr(model.base_model.model.get_submodule(parent), child, getattr(layer, "base_layer", layer))
        if asked.scheme.endswith(MERGED):
            model = model.merge_and_unload()
        scheme = Scheme(files.config["peft_type"].lower(), floats, activation_bits=floats)
        return Loaded(model.eval(), base.tokenizer, asked.title, base.text, str(folder), scheme)


ENGINE: Final = Peft()


def _check_all_used(model: Any, stored: frozenset[str], title: str) -> None:
    """Refuse an adapter whose tensors are not those that the model takes: peft fills gaps with random ones, and warns."""
    from peft import get_peft_model_state_dict

    wanted = set(get_peft_model_state_dict(model))
    for names, words in ((wanted - stored, "are missing"), (stored - wanted, "have no place in the base model")):
        if names:
            found = f"{len(names)} tensors {words}, first {min(names)}"
            raise CheckpointError(title, found, "give the adapter's own base model, and its own config")


def _asked(spec: str) -> tuple[EngineRequest, AdapterFiles]:
    """What is asked, its scheme a path, and what its files say; what is no adapter, or a pickle, is refused."""
    words, names = read_skip(f"peft:{spec}", spec)
    files = _files(spec, Path(words.removesuffix(MERGED)).expanduser())
    check_packages(f"peft:{spec}", PACKAGES)
    return EngineRequest("peft", spec, words, names=names), files


def _files(spec: str, folder: Path) -> AdapterFiles:
    if not (folder / CONFIG).exists():
        found = "no such directory" if not folder.is_dir() else f"no {CONFIG} in it"
        raise CheckpointError(f"peft:{spec}", found, "give the directory that PeftModel.save_pretrained wrote")
    if not (folder / WEIGHTS).exists():
        if any(folder.glob("*.bin")):
            found = "its weights are a pickle, which can run any code on loading"
            raise UnsafeCheckpointError(f"peft:{spec}", found, "save the adapter again, with safe_serialization=True")
        raise CheckpointError(f"peft:{spec}", f"no {WEIGHTS} in it", "save the adapter again")
    return read_adapter(folder)
