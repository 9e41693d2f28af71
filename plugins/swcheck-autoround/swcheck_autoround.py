"""The engine ``autoround``: the reference quantized by AutoRound, saved in one of its formats and loaded back.

Rounding is to the nearest, without data (``iters=0``): AutoRound's grids and kernels, not its tuning. A tuned
checkpoint is a directory, and needs no engine. AutoRound computes in float16 on its own.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from swcheck import engines, skip
from swcheck.errors import EngineError, OptionError
from swcheck.records import Loaded, Scheme

SCHEMES: Final = {f"W{bits}A16": Scheme("rtn", bits) for bits in (8, 4, 3, 2)}
FORMATS: Final = ("auto_round", "auto_gptq", "auto_awq")


@dataclass(frozen=True)
class AutoRound:
    """``autoround:SCHEME`` or ``autoround:SCHEME,format=NAME``, and ``,skip=NAME+NAME``."""

    name: str = "autoround"
    trust_remote_code: bool = False
    offline: bool = False

    def load(self, spec: str, *, reference: str | None, device: str | None, dtype: str | None) -> Loaded:
        words, names = skip.parted(spec)
        name, comma, kind = words.partition(",format=")
        if name not in SCHEMES:
            raise EngineError(f"scheme {spec!r} of autoround", f"known: {', '.join(SCHEMES)}", "autoround:W4A16")
        if comma and kind not in FORMATS:
            raise OptionError(f"autoround:{spec}", f"formats: {', '.join(FORMATS)}", f"autoround:{name}")
        if reference is None:
            raise OptionError(f"autoround:{spec}", "no reference to quantize", "name one with --model")
        with undisturbed():
            try:
                import auto_round
            except ImportError as error:
                raise EngineError(f"autoround:{spec}", str(error), "pip install 'auto-round>=0.15'") from error
            base = engines.load(reference, device="cpu", trust_remote_code=self.trust_remote_code, offline=self.offline)
            kept = skip.linear_maps(f"autoround:{spec}", base.model, names)
            with TemporaryDirectory() as folder:
                worker = auto_round.AutoRound(
                    base.model,
                    tokenizer=base.tokenizer,
                    scheme=name,
                    iters=0,
                    disable_opt_rtn=True,
                    disable_model_free=True,  # it would start processes
                    device_map="cpu",
                    layer_config={one: {"bits": 16} for one in kept} or None,
                )
                worker.quantize_and_save(folder, format=kind or FORMATS[0])
                saved = next(file.parent for file in Path(folder).rglob("config.json"))
                made = engines.load(str(saved), device=device, dtype=dtype)
        return replace(
            made,
            tokenizer=base.tokenizer,
            name=f"autoround:{spec}",
            text=base.text,
            source=base.source,
            scheme=SCHEMES[name],
        )


ENGINE: Final = AutoRound()


@contextmanager
def undisturbed() -> Iterator[None]:
    """The process as it was: AutoRound sets variables of torch, and collects garbage after every layer.

    What is there already is kept out of these collections, which would take longer than the rounding.
    """
    before, ours = dict(os.environ), not gc.get_freeze_count()
    if ours:
        gc.freeze()
    try:
        yield
    finally:
        if ours:
            gc.unfreeze()
        for key in os.environ.keys() - before.keys():
            del os.environ[key]
        os.environ.update(before)
