"""One scheme of one engine under test, and what is read of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

import torch

from swcheck.base.errors import SwcheckError, brief_message
from swcheck.base.isolation import captured_output
from swcheck.base.records import Engine, Loaded, Scheme, SuperWeight
from swcheck.lens.anatomy import anatomy
from swcheck.lens.likelihood import evaluating
from swcheck.lens.observe import Sight, observe

if TYPE_CHECKING:
    from torch import nn


WEIGHT_ONLY: Final = 2**-7
"""Two ways of reading one scalar differ by the rounding of a bfloat16 output, once in each of two passes."""


ACTIVATIONS_TOO: Final = 0.03
"""Where activations are quantized as well, the sink sets the grid that the rest of its token is rounded on."""


SIXTEEN_BITS: Final = 2**-9
"""What a map that was left unquantized may answer off, for the middle token: the rounding of a bfloat16."""


UNKNOWN: Final = "no-such-scheme"


NOT_OFFERED: Final = "not offered"


HEAVY: Final = ("torch", "transformers", "numpy")


@dataclass(frozen=True)
class Reading:
    """What one scheme makes of one scalar: its input at the sink, and the weight as each way of reading gives it.

    ``contribution`` divides what the scalar writes by its input; ``one_hot`` does so with all other inputs at zero;
    ``dequantized`` is the module's own word, None where it has none. ``saved`` says how the checkpoints compared,
    ``seconds`` is what one load took, ``skip`` says whether ``,skip=NAME`` keeps a matrix or is not offered.
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
    """One scheme of one engine under test, with the reference beside it."""

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
    """What the engine makes of its scheme; what it raises without words of its own is its fault."""
    try:
        return case.load()
    except SwcheckError:
        raise
    except Exception as error:  # whatever an engine raises
        found = f"{type(error).__name__}: {brief_message(error)}"
        raise AssertionError(f"{case.title}: a model\n  found: {found}\n  try: repair its load()") from error


def look_inside(case: EngineCase, model: nn.Module) -> tuple[Sight, torch.Tensor]:
    """One pass on the prompt: what every down projection read and wrote, and the logits."""
    layers = range(len(anatomy(model).layers))
    with captured_output(), evaluating(model), observe(model, residual=layers, inputs=layers, outputs=layers) as sight:
        logits = model(case.ids, use_cache=False).logits.float()
    silent = [layer for layer in layers if layer not in sight.inputs or layer not in sight.outputs]
    if silent:
        found = f"none in {listed_layers(silent)}: the pass goes around the module"
        case.refuse("hooks fire at every down projection", found, "call the module, not its weight")
    if not torch.isfinite(logits).all():
        case.refuse(
            "finite logits", "NaN or infinity", "check the scheme against the reference's outliers, or its dtype"
        )
    return sight, logits


def listed_layers(layers: Sequence[int]) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(str(layer) for layer in layers)}"


def refuse(asked: str, found: str, attempt: str) -> NoReturn:
    raise AssertionError(f"{asked}\n  found: {' '.join(found.split())}\n  try: {attempt}")
