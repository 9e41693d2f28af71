"""Finds down projections by following a short forward pass.

A down projection is a linear map whose input is an activation function of another linear map's output, multiplied
perhaps by more of them: nothing else lies between. What attention and state-space mixers give to their output projection
has gone through a product of two tensors of the pass, or over tokens, and is no such input. Module names play no part.
H residual width, F inner width, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.overrides import TorchFunctionMode

from swcheck.lens.architecture.storage import first_tensor, input_width, is_plain
from swcheck.loading.parallel.shards import is_shared

if TYPE_CHECKING:
    from torch import nn

LINEAR: Final = "linear"
"""The output of a linear map, or a sum or product of such outputs and of parameters."""

ACTIVATED: Final = "activated"
"""An activation function of a ``LINEAR`` tensor, or its product with ``LINEAR`` tensors."""

PARAMETER: Final = "parameter"
"""A parameter or buffer of the model, or what is computed from these alone."""

ACTIVATIONS: Final = frozenset({
    "silu", "gelu", "relu", "relu_", "relu6", "sigmoid", "tanh", "softplus", "leaky_relu", "elu", "celu", "selu", "mish",
    "expm1", "hardswish", "hardtanh", "logsigmoid", "silu_", "sigmoid_", "tanh_", "glu", "erf",
})  # fmt: skip

ELEMENTWISE: Final = frozenset({
    "mul", "add", "sub", "div", "neg", "pow", "square", "exp", "abs", "sqrt", "clamp", "clamp_min", "clamp_max",
    "min", "max", "minimum", "maximum", "where", "masked_fill", "to", "float", "half", "bfloat16", "type", "type_as", "contiguous",
    "clone", "detach", "dropout", "view", "reshape", "chunk", "split", "unbind", "getitem", "flatten", "unflatten",
    "squeeze", "unsqueeze", "transpose", "permute", "expand", "index_select", "rsub", "rmul", "radd", "truediv", "rpow",
    "mul_", "add_", "sub_", "div_", "imul", "iadd", "isub", "itruediv", "multiply", "narrow", "view_as", "movedim",
    "log1p", "log", "repeat", "repeat_interleave", "stack", "cat", "threshold", "tensor_split", "moveaxis", "swapaxes",
    "dequantize", "pow_", "clamp_",
})  # fmt: skip

PRODUCTS: Final = frozenset({"linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "rmatmul"})


@dataclass(frozen=True)
class LinearCall:
    """One product with a weight in a forward pass whose input is ``ACTIVATED``.

    ``module`` keeps the weight. ``parameter`` is the name of a parameter with the matrices of all experts, None for a linear
    map of its own; ``is_transposed`` says whether each is ``(in, out)``. ``rows`` are those of one matrix where the
    parameter is 2-D and has them below each other. ``width`` is the number of outputs. ``running`` are the modules of
    lists that are running, outermost first.
    """

    module: nn.Module
    parameter: str | None
    is_transposed: bool
    width: int
    running: tuple[tuple[str, int], ...]
    rows: int | None = None


class Tracer(TorchFunctionMode):
    """Follows the tensors of a forward pass, and notes the linear maps that read an activated one.

    Enter it around the pass, and ``watching`` with it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.calls: list[LinearCall] = []
        self._kinds = {id(tensor): PARAMETER for tensor in (*model.parameters(), *model.buffers())}
        self._alive: list[torch.Tensor] = []  # the id of a tensor is not given again while the tensor lives
        self._inside_a_map = 0
        self.running: list[tuple[str, int]] = []
        self._weights = {
            parameter.untyped_storage().data_ptr(): (module, name, parameter)
            for module in model.modules()
            for name, parameter in module.named_parameters(recurse=False)
            if parameter.ndim in {2, 3} and is_plain(parameter) and not is_shared(parameter)
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if not self._inside_a_map:
            name, tensors = func.__name__.strip("_"), _tensors((*args, *(kwargs or {}).values()))
            if name in PRODUCTS:
                self._note_product(name, tensors, output)
            else:
                self._mark(output, self._kind_of(name, tensors))
        return output

    def _kind_of(self, name: str, tensors: Sequence[torch.Tensor]) -> str | None:
        """Return the kind of what a function that is no product returns for these tensors.

        One factor for each token, as a router's weight is, changes nothing.
        """
        kinds = {self._kinds.get(id(one)) for one in tensors if one.is_floating_point() and one.shape[-1:] != (1,)}
        if None in kinds or not kinds:
            return None
        if kinds == {PARAMETER}:
            return PARAMETER
        if name in ACTIVATIONS:
            return ACTIVATED
        if name in ELEMENTWISE:
            return ACTIVATED if ACTIVATED in kinds else LINEAR
        return None

    def _note_product(self, function: str, tensors: Sequence[torch.Tensor], output: torch.Tensor) -> None:
        """Note a product with the weight of a module, where the other factor is activated."""
        weight = next((one for one in tensors if self._is_weight(one)), None)
        if weight is None:
            return
        others = [one for one in tensors if one is not weight and self._kinds.get(id(one)) != PARAMETER]
        if any(self._kinds.get(id(one)) == ACTIVATED for one in others):
            module, name, parameter = self._weights[weight.untyped_storage().data_ptr()]
            as_stored = weight.stride()[-2:] == parameter.stride()[-2:]
            is_transposed = as_stored != (function == "linear")
            rows = (
                weight.shape[-2] if as_stored and weight.numel() < parameter.numel() and parameter.ndim == 2 else None
            )
            stack = name if parameter.ndim == 3 or rows else None
            self._add_call(module, stack, output, is_transposed=is_transposed, rows=rows)
        self._mark(output, LINEAR if others else PARAMETER)

    def _is_weight(self, tensor: torch.Tensor) -> bool:
        if not tensor.is_floating_point() or tensor.is_meta or tensor.ndim < 2:
            return False
        return tensor.untyped_storage().data_ptr() in self._weights

    def _mark(self, output: Any, kind: str | None) -> None:
        if kind is not None:
            for tensor in _tensors(output if isinstance(output, tuple | list) else (output,)):
                self._kinds[id(tensor)] = kind
                self._alive.append(tensor)

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Take each module that is a linear map or a norm for one, whatever it computes inside.

        What a norm returns is of the kind of its input.
        """
        with ExitStack() as hooks:
            for module in model.modules():
                if is_linear_map(module):
                    hooks.callback(module.register_forward_pre_hook(self._before_map).remove)
                    hooks.callback(module.register_forward_hook(self._after_map).remove)
                elif is_norm(module):
                    hooks.callback(module.register_forward_hook(self._after_norm).remove)
            yield

    def _before_map(self, _module: nn.Module, _args: Any) -> None:
        self._inside_a_map += 1

    def _after_map(self, module: nn.Module, args: Any, output: Any) -> None:
        self._inside_a_map -= 1
        if args and self._kinds.get(id(args[0])) == ACTIVATED:
            stacks = {name: one for name, one in module.named_parameters(recurse=False) if one.ndim == 3}
            name = next(iter(stacks), None)
            is_transposed = name is not None and stacks[name].shape[1] == input_width(module)
            self._add_call(module, name, first_tensor(output), is_transposed=is_transposed)
        self._mark(output, LINEAR)

    def _add_call(
        self,
        module: nn.Module,
        parameter: str | None,
        output: torch.Tensor,
        *,
        is_transposed: bool,
        rows: int | None = None,
    ) -> None:
        self.calls.append(LinearCall(module, parameter, is_transposed, output.shape[-1], tuple(self.running), rows))

    def _after_norm(self, _module: nn.Module, args: Any, output: Any) -> None:
        if len(args) == 1 and isinstance(args[0], torch.Tensor) and self._kinds.get(id(output)) is None:
            self._mark(output, self._kinds.get(id(args[0])))


def is_linear_map(module: nn.Module) -> bool:
    """Return whether a module is a linear map: an ``nn.Linear``, or a module without submodules that declares a width."""
    from torch import nn

    return isinstance(module, nn.Linear) or (
        input_width(module) is not None and not any(True for _ in module.children())
    )


def is_norm(module: nn.Module) -> bool:
    """Return whether a module keeps vectors alone, and no module inside, as norms do."""
    parameters = list(module.parameters(recurse=False))
    return bool(parameters) and all(one.ndim == 1 for one in parameters) and not any(True for _ in module.children())


def _tensors(values: Any) -> list[torch.Tensor]:
    found = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, tuple | list):
            found += _tensors(value)
    return found


@contextmanager
def eager_experts(model: nn.Module) -> Iterator[None]:
    """Let the experts of a transformers model be computed one after the other, each by its own matrices."""
    configs = {id(one): one for module in model.modules() if (one := getattr(module, "config", None)) is not None}
    saved = [
        (one, one._experts_implementation_internal)  # noqa: SLF001 - the setter of transformers wants the whole model
        for one in configs.values()
        if hasattr(one, "_experts_implementation_internal")
    ]
    try:
        for config, _ in saved:
            config._experts_implementation_internal = "eager"  # noqa: SLF001
        yield
    finally:
        for config, value in saved:
            config._experts_implementation_internal = value  # noqa: SLF001
