"""One scheme of one engine under test, and what is read from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

import torch

from swcheck.base.errors import SwcheckError, brief_message
from swcheck.base.isolation import captured_output
from swcheck.base.records import Engine, Loaded, Scheme, SuperWeight
from swcheck.lens.architecture.anatomy import anatomy
from swcheck.lens.architecture.storage import evaluating
from swcheck.lens.observe import Observation, observe

if TYPE_CHECKING:
    from torch import nn


WEIGHT_ONLY: Final = 2**-7
"""Two ways to read one scalar differ by this share: a bfloat16 output is rounded in each of two passes."""


ACTIVATIONS_TOO: Final = 0.03
"""The same where activations are quantized as well: the sink sets the grid that the rest of its token is rounded on."""


SIXTEEN_BITS: Final = 2**-9
"""The relative error allowed to a map left unquantized, for the median token: the rounding of a bfloat16."""


UNKNOWN_SCHEME: Final = "no-such-scheme"
"""A scheme that no engine knows."""


NOT_OFFERED: Final = "not offered"


HEAVY: Final = ("torch", "transformers", "numpy")
"""Packages that an engine must not import before it loads a model."""


@dataclass(frozen=True)
class Reading:
    """What one scheme makes of one scalar: its input at the sink, and the weight by each way of reading it.

    ``contribution`` is what the scalar writes divided by its input; ``one_hot`` is the same with all other inputs zero;
    ``dequantized`` is what the module itself reports, None if it cannot. ``tolerance`` is the relative difference
    allowed between them. ``saved`` says how the checkpoints compared, ``seconds`` is the time of one load, and ``skip``
    says whether ``,skip=NAME`` keeps a matrix or is not offered.
    """

    scheme: str
    weight: SuperWeight
    input: float
    contribution: float
    one_hot: float
    dequantized: float | None
    tolerance: float
    saved: str
    seconds: float
    loaded_scheme: Scheme
    skip: str = NOT_OFFERED


@dataclass(frozen=True)
class EngineCase:
    """One scheme of one engine under test, with the reference it is made from and compared to.

    ``ids`` int64 ``(1, T)`` is the default prompt; ``weights`` are the super weights to inspect.
    """

    engine: Engine
    scheme: str
    spec: str
    reference: Loaded
    ids: torch.Tensor
    weights: tuple[SuperWeight, ...]
    device: str
    dtype: str | None
    dequantize: Callable[[nn.Module], torch.Tensor | None]

    @property
    def title(self) -> str:
        return f"{self.engine.name}:{self.scheme}"

    def load(self) -> Loaded:
        with captured_output():
            return self.engine.load(self.scheme, reference=self.spec, device=self.device, dtype=self.dtype)

    def refuse(self, asked: str, found: str, attempt: str) -> NoReturn:
        refuse(f"{self.title}: {asked}", found, attempt)


def load_scheme(case: EngineCase) -> Any:
    """Return what the engine makes of its scheme; an error that is not a ``SwcheckError`` is the engine's fault."""
    try:
        return case.load()
    except SwcheckError:
        raise
    except Exception as error:  # an engine may raise anything
        found = f"{type(error).__name__}: {brief_message(error)}"
        raise AssertionError(f"{case.title}: a model\n  found: {found}\n  try: repair its load()") from error


def look_inside(case: EngineCase, model: nn.Module) -> tuple[Observation, torch.Tensor]:
    """Run one pass on the prompt; return the inputs and outputs of every down projection, and the logits."""
    layers = range(len(anatomy(model).layers))
    with captured_output(), evaluating(model), observe(model, residual=layers, inputs=layers, outputs=layers) as sight:
        logits = model(case.ids, use_cache=False).logits.float()
    unhooked = [layer for layer in layers if layer not in sight.inputs or layer not in sight.outputs]
    if unhooked:
        found = f"none in {listed_layers(unhooked)}: the pass goes around the module"
        case.refuse("hooks fire at every down projection", found, "call the module, not its weight")
    if not torch.isfinite(logits).all():
        case.refuse(
            "finite logits", "NaN or infinity", "check the scheme against the reference's outliers, or its dtype"
        )
    return sight, logits


def listed_layers(layers: Sequence[int]) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(str(layer) for layer in layers)}"


def refuse(asked: str, found: str, attempt: str) -> NoReturn:
    """Raise ``AssertionError`` in the form of a ``SwcheckError``: what was asked, what was found, what to try."""
    raise AssertionError(f"{asked}\n  found: {' '.join(found.split())}\n  try: {attempt}")
