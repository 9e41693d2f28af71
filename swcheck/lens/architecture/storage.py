"""Small readings of modules: plain weights, widths, devices, outputs of any form, evaluation mode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from swcheck.loading.parallel.shards import is_shared, whole
from swcheck.loading.streaming.pager import check_files, paging

if TYPE_CHECKING:
    from torch import nn


def plain_weight(module: nn.Module) -> torch.Tensor | None:
    """Return the weight ``(out, in)`` of an ordinary linear map itself, not a copy; None for any other module.

    Ordinary are ``nn.Linear``, ``FalconLinear`` and the ``Conv1D`` of transformers, whose weight ``(in, out)`` is returned as a transposed
    view. None for packed storage, tensor subclasses, a replaced ``forward``, offloaded weights, and weights that are
    computed anew in every pass (parametrizations, ``torch.nn.utils.prune``). In those cases a write into the tensor
    need not change what the next pass computes with. A weight that the processes of torchrun share is a whole copy,
    made by all of them together; ``own_rows`` of it are what a write has to go into. Raises ``CheckpointError`` if the
    file of a streamed model was changed.
    """
    weight = _plain_parameter(module)
    if weight is None:
        return None
    check_files([weight])
    values = whole(weight) if is_shared(weight) else weight.data
    return values.T if is_conv1d(module) else values


def has_plain_weight(module: nn.Module) -> bool:
    """Return whether ``plain_weight`` returns one. A shared one is not put together for that."""
    return _plain_parameter(module) is not None


def _plain_parameter(module: nn.Module) -> torch.Tensor | None:
    from torch import nn

    weight = dict(module.named_parameters(recurse=False)).get("weight")
    is_ordinary = type(module) is nn.Linear or is_conv1d(module) or type(module).__name__ == "FalconLinear"
    if weight is None or not is_ordinary or not is_plain(weight):
        return None
    # transformers replaces the forward of a map whose weight is shared; it computes with what each process keeps
    return weight if "forward" not in vars(module) or is_shared(weight) else None


def is_plain(parameter: torch.Tensor) -> bool:
    """Return whether a parameter keeps floats that can be read and written where they are.

    One that is shared counts: each process has some of its rows.
    """
    is_ordinary = type(parameter.data) is torch.Tensor or is_shared(parameter)
    return is_ordinary and not parameter.is_meta and parameter.is_floating_point()


def is_conv1d(module: nn.Module) -> bool:
    """Return whether a module is the ``Conv1D`` of transformers: a linear map that keeps its weight as ``(in, out)``."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and hasattr(module, "nx")


def input_width(module: nn.Module) -> int | None:
    """Return the number of inputs that a linear map declares, None where it declares none.

    The attribute is ``in_features``; AutoRound's kernels call it ``infeatures``, ``Conv1D`` ``nx``.
    """
    names = ("in_features", "infeatures", *(("nx",) if is_conv1d(module) else ()))
    return next((width for name in names if (width := getattr(module, name, None))), None)


def output_width(module: nn.Module) -> int | None:
    """Return the number of outputs that a linear map declares, None where it declares none."""
    names = ("out_features", "outfeatures", *(("nf",) if is_conv1d(module) else ()))
    return next((width for name in names if (width := getattr(module, name, None))), None)


def first_tensor(output: Any) -> torch.Tensor:
    """Return the tensor that a module returned, dequantized to plain floats.

    Depending on the version of transformers a decoder layer returns the tensor alone or first in a tuple.
    """
    return dequantized(output[0] if isinstance(output, tuple | list) else output)


def tuple_like(output: tuple[Any, ...], values: Iterable[Any]) -> Any:
    """Return a tuple of ``values``, whose fields have names where those of ``output`` have."""
    return type(output)(*values) if hasattr(output, "_fields") else tuple(values)


def stream_given(values: Iterable[Any]) -> torch.Tensor | None:
    """Return the residual stream among what a decoder layer is given, ``(B, T, H)`` or of four axes; None without one."""
    tensors = (one for one in values if isinstance(one, torch.Tensor))
    return next((one for one in tensors if one.ndim >= 3 and one.is_floating_point()), None)


def dequantized(tensor: torch.Tensor) -> torch.Tensor:
    """Return the dequantized values of a tensor whose class overrides ``dequantize``, else ``tensor`` itself.

    Some quantizers pass tensors of integer codes from module to module.
    """
    if type(tensor).dequantize is torch.Tensor.dequantize:
        return tensor
    return tensor.dequantize()


def device_of(model: nn.Module) -> torch.device:
    """Return the device that inputs must be on: that of the first parameter or buffer that is not on ``meta``.

    Offloaded weights are on ``meta`` until their module runs. Where all are, the result is the CPU if ``forward`` was
    replaced on the model, because whatever loads the weights then moves the inputs as well; else it is ``meta``. The
    CPU for a module without tensors.
    """
    meta = None
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.device.type != "meta":
            return tensor.device
        meta = tensor.device
    return torch.device("cpu") if "forward" in vars(model) or meta is None else meta


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put ``model`` in evaluation mode and disable gradients; every module gets its former mode back.

    The weights of a streamed model stay out of memory but for those in use.
    """
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        with torch.no_grad(), paging(model):
            yield
    finally:
        for module in training:
            module.training = True
