"""The engine ``autoround``: the reference quantized by AutoRound, saved in one of its formats and loaded back.

Rounding is to the nearest, without data (``iters=0``): AutoRound's grids and kernels, not its tuning. A tuned
checkpoint is a directory, and needs no engine. AutoRound computes in float16 on its own.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from swcheck import EngineRequest, Loaded, OptionError, Scheme, load, read_request, restored_environment

SCHEMES: Final = {f"W{bits}A16": Scheme("rtn", bits) for bits in (8, 4, 3, 2)}
FORMATS: Final = ("auto_round", "auto_gptq", "auto_awq")
PACKAGES: Final = (("auto_round", "auto-round>=0.15"),)


@dataclass(frozen=True)
class AutoRound:
    """``autoround:SCHEME`` or ``autoround:SCHEME,format=NAME``, and ``,skip=NAME+NAME``."""

    name: str = "autoround"
    trust_remote_code: bool = False
    offline: bool = False

    def check(self, spec: str) -> EngineRequest:
        """Raise what ``load`` does for a scheme that it does not know, or without its packages."""
        asked = read_request("autoround", spec, SCHEMES, options=("format",), packages=PACKAGES)
        if asked.options.get("format", FORMATS[0]) not in FORMATS:
            raise OptionError(asked.title, f"formats: {', '.join(FORMATS)}", f"autoround:{asked.scheme}")
        return asked

    def load(self, spec: str, *, reference: str | None, device: str | None, dtype: str | None) -> Loaded:
        asked = self.check(spec)
        with undisturbed():
            base = asked.load_reference(reference, self, device="cpu", dtype=None)
            import auto_round

            with TemporaryDirectory() as folder:
                worker = auto_round.AutoRound(
                    base.model,
                    tokenizer=base.tokenizer,
                    scheme=asked.scheme,
                    iters=0,
                    disable_opt_rtn=True,
                    disable_model_free=True,  # it would start processes
                    device_map="cpu",
                    layer_config={one: {"bits": 16} for one in asked.modules_to_skip(base.model)} or None,
                )
                worker.quantize_and_save(folder, format=asked.options.get("format", FORMATS[0]))
                del worker
                base.model.to("meta")  # one of the two models at a time
                saved = next(file.parent for file in Path(folder).rglob("config.json"))
                made = load(str(saved), device=device, dtype=dtype)
        return replace(
            made,
            tokenizer=base.tokenizer,
            name=asked.title,
            text=base.text,
            source=base.source,
            scheme=SCHEMES[asked.scheme],
        )


ENGINE: Final = AutoRound()


@contextmanager
def undisturbed() -> Iterator[None]:
    """The process as it was: AutoRound sets variables of torch, and collects garbage after every layer.

    What is there already is kept out of these collections, which would take longer than the rounding.
    """
    ours = not gc.get_freeze_count()
    if ours:
        gc.freeze()
    try:
        with restored_environment():
            yield
    finally:
        if ours:
            gc.unfreeze()
