"""The engine ``gptq``: the reference quantized by GPTQModel, calibrated with the model's own text, saved and loaded back.

What is looked at is the checkpoint, as transformers loads it: GPTQModel's kernels repack their weights at the first
forward pass, so only that is the candidate that is released. The first use of a machine compiles C++ for half a minute.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from swcheck import EngineError, EngineRequest, Loaded, Scheme, anatomy, load, read_request, restored_environment

SCHEMES: Final = {f"{bits}bit": Scheme("gptq", bits, calibrated=True) for bits in (8, 4, 3, 2)}
GROUP: Final = 128
PACKAGES: Final = (("gptqmodel", "gptqmodel>=7.6,<7.7"), ("optimum.gptq", "optimum>=2.3"))
WINDOWS: Final = 32
LENGTH: Final = 128
WORKERS: Final = "GPTQMODEL_CPU_WORKERS"
"""GPTQModel asks for two workers, and on one or two cores gives itself one."""


@dataclass(frozen=True)
class Gptq:
    """``gptq:SCHEME`` or ``gptq:SCHEME,group=N``, and ``,skip=NAME+NAME``."""

    name: str = "gptq"
    trust_remote_code: bool = False
    offline: bool = False

    def check(self, spec: str) -> EngineRequest:
        """Raise what ``load`` does for a scheme that it does not know, or without its packages."""
        asked = read_request("gptq", spec, SCHEMES, options=("group",), packages=PACKAGES)
        asked.group_size(GROUP)
        return asked

    def load(self, spec: str, *, reference: str | None, device: str | None, dtype: str | None) -> Loaded:
        asked = self.check(spec)
        base = asked.load_reference(reference, self, device="cpu", dtype=None)
        with TemporaryDirectory() as folder:
            quantized(base, spec, Path(folder))
            made = load(folder, device=device, dtype=dtype)
        return replace(
            made,
            tokenizer=base.tokenizer,
            name=asked.title,
            text=base.text,
            source=base.source,
            scheme=SCHEMES[asked.scheme],
        )


ENGINE: Final = Gptq()


def quantized(base: Loaded, spec: str, folder: Path) -> None:
    """Write what ``spec`` makes of ``base`` into ``folder``, with its tokenizer: a directory as it is released.

    GPTQModel loads a model of its own from ``base.source``, and ``base`` gives up its weights for it.
    """
    asked = ENGINE.check(spec)
    group = asked.group_size(GROUP)
    kept = asked.modules_to_skip(base.model)
    _check_widths(asked, base.model, group, kept)
    base.model.to("meta")  # one of the two models at a time
    source, target = Path(base.source).resolve(), folder.resolve()
    with undisturbed():
        from gptqmodel import GPTQModel, QuantizeConfig

        dynamic = {f"-:^{re.escape(one)}$": {} for one in kept} or None
        config = QuantizeConfig(bits=int(SCHEMES[asked.scheme].weight_bits), group_size=group, dynamic=dynamic)
        worker = GPTQModel.load(str(source), config)
        worker.quantize(_calibration(base), batch_size=8)
        worker.save(str(target))
    base.tokenizer.save_pretrained(folder)
    if kept:
        _name_the_quantized(folder / "config.json", base.model, kept)


def _calibration(base: Loaded) -> list[dict[str, Any]]:
    """Windows of the model's own text, or of the package's."""
    from swcheck import evaluation_text, token_windows

    ids = token_windows(base.tokenizer, base.text or evaluation_text(), count=WINDOWS, length=LENGTH)
    return [{"input_ids": row, "attention_mask": [1] * len(row)} for row in ids.tolist()]


def _name_the_quantized(file: Path, model: Any, kept: tuple[str, ...]) -> None:
    """Say which maps are quantized in the words that transformers reads; GPTQModel's own (``dynamic``) it does not."""
    config = json.loads(file.read_text(encoding="utf-8"))
    names = [name for name, _ in _inner(model) if name not in kept]
    config["quantization_config"]["modules_in_block_to_quantize"] = [names]
    file.write_text(json.dumps(config, indent=2), encoding="utf-8")


def _inner(model: Any) -> Iterator[tuple[str, Any]]:
    """The linear maps of the decoder layers, fully named."""
    from torch import nn

    path = anatomy(model).path
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.startswith(f"{path}."):
            yield name, module


def _check_widths(asked: EngineRequest, model: Any, group: int, kept: tuple[str, ...]) -> None:
    """Refuse inner widths that the group does not divide: GPTQModel quantizes them, and most of its kernels fail later."""
    for name, module in _inner(model):
        if name not in kept and module.in_features % group:
            found = f"{name} has {module.in_features} inputs, no multiple of {group}"
            fits = next((size for size in (64, 32) if module.in_features % size == 0), None)
            attempt = f"gptq:{asked.scheme},group={fits}" if fits else f"{asked.title},skip={name}"
            raise EngineError(asked.title, found, attempt)


@contextmanager
def undisturbed() -> Iterator[None]:
    """The process as it was: GPTQModel sets variables of torch and CUDA, and keeps a log where it stands."""
    with restored_environment(**{WORKERS: "2"}), TemporaryDirectory() as scratch, chdir(scratch):
        yield
