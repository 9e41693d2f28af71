"""Where the down projections of a model are: paths and parameters, no tensors.

H residual width, F inner width, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from swcheck.lens.architecture.storage import first_tensor, input_width, tuple_like

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Place:
    """Where one down projection of a decoder layer is, or where those of all experts in one parameter are.

    ``path`` leads from the layer to the module. ``expert`` is how a super weight there is addressed: None in the dense
    map of a layer, a number in a list of experts, else a name ("shared"). ``parameter`` names a 3-D parameter, which is
    ``(E, F, H)`` if ``is_transposed``, else ``(E, H, F)``; None for a linear map. Its matrices are addressed by number,
    after ``expert`` if that is a name. ``rows`` are those of one matrix where the parameter is 2-D, with the matrices below
    each other. ``is_added`` says whether the residual stream gets just what the map writes.
    """

    path: str
    expert: int | str | None = None
    parameter: str | None = None
    is_transposed: bool = False
    is_added: bool = False
    rows: int | None = None

    def stack(self, module: nn.Module) -> torch.Tensor | None:
        """Return the matrices of all experts in ``module``, 3-D, not a copy; None where it has none."""
        found: torch.Tensor | None = getattr(module, self.parameter, None) if self.parameter is not None else None
        if found is None or self.rows is None or found.ndim != 2:
            return found
        return found.view(-1, self.rows, found.shape[1])

    def inner_width(self, module: nn.Module) -> int | None:
        """Return F of the map that ``module`` keeps here, None where it does not say it."""
        if self.parameter is None:
            return input_width(module)
        stack = self.stack(module)
        return int(stack.shape[1 if self.is_transposed else 2]) if stack is not None and stack.ndim == 3 else None


@dataclass(frozen=True)
class Structure:
    """``layers`` is the name of the list of decoder layers, ``places`` are those of each layer, ``hidden`` is H.

    ``streams`` is None for a model with one residual stream. A model with S of them keeps them in what a layer returns:
    ``(B, T, S, H)`` if it is 2, ``(S, B, T, H)`` if it is 0, ``(B, T, S * H)`` if it is -1. ``tensor`` is None where
    layers hand on one tensor; where they hand on several, it is the number of that with the stream: the one to which MLPs'
    outputs are added. ``rounds`` is how often the layers run one after the other in a pass; the stream is that of the last
    round.
    """

    layers: str
    places: tuple[tuple[Place, ...], ...]
    hidden: int | None = None
    streams: int | None = None
    tensor: int | None = None
    rounds: int = 1

    @property
    def can_resume(self) -> bool:
        """Whether a pass can be taken up behind any layer with its residual stream ``(B, T, H)`` alone."""
        return self.streams is None and self.tensor is None and self.rounds == 1

    def by_stream(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a view ``(B, T, S, H)`` of what a layer gets or returns."""
        if self.streams is None:
            return tensor.unsqueeze(2)
        if self.streams == -1:
            return tensor.view(*tensor.shape[:-1], -1, self.hidden or 1)
        return tensor.movedim(self.streams, 2)

    def stream(self, output: Any) -> torch.Tensor:
        """Return the residual stream ``(B, T, H)`` in what a layer returned: of several streams their mean.

        A layer mixes its streams with weights that add up to 1 for each, and adds what its modules write to all of them
        with weights of one sign. So what is written persists in the mean as it does in a single stream.
        """
        tensor = self.tensor_of(output)
        return tensor if self.streams is None else self.by_stream(tensor).mean(2)

    def tensor_of(self, output: Any) -> torch.Tensor:
        """Return the tensor that has the residual stream, or all streams, in what a layer returned."""
        return first_tensor(output[self.tensor or 0 :] if isinstance(output, tuple | list) else output)

    def with_tensor(self, output: Any, tensor: torch.Tensor) -> Any:
        """Return what a layer returned with another tensor in the place of that."""
        if not isinstance(output, tuple):
            return tensor
        number = self.tensor or 0
        return tuple_like(output, (*output[:number], tensor, *output[number + 1 :]))
