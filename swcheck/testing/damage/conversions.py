"""Edits as faulty conversions and merges make them: fused matrices split wrongly, adapters merged twice, lost experts.

As in ``edits``, each takes a model that is a copy, and a strength, and edits the model in place.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.nn import functional

from swcheck.base.errors import OptionError
from swcheck.lens.architecture.anatomy import anatomy
from swcheck.lens.architecture.tracing import is_norm
from swcheck.testing.damage.edits import Edit, generator, linear_weights, map_weight, middle

ADAPTED: Final = ("q_proj", "v_proj", "o_proj", "c_attn", "query_key_value", "out_proj", "qkv_proj")
"""The endings of the names of the linear maps that an adapter changes, those of the attention."""

RANK: Final = 4
"""The rank of an adapter."""

GROUP: Final = 128
"""A range is clipped in runs of this many values, or of a whole row where that does not divide it."""


def split_by_parts(model: Any, strength: float) -> None:
    """Cut q, k and v of ``strength`` layers out of a matrix that is fused by head as if it were fused in whole parts."""
    heads = int(getattr(model.config, "num_key_value_heads", None) or model.config.num_attention_heads)
    if heads < 2:
        raise OptionError("several heads of k and v", "one", "another candidate")
    for layer in range(int(strength)):
        parts = [map_weight(model, name, layer) for name in ("q_proj", "k_proj", "v_proj")]
        by_head = torch.cat([part.reshape(heads, -1, part.shape[1]) for part in parts], 1).flatten(0, 1)
        for part, rows in zip(parts, torch.split(by_head, [len(part) for part in parts]), strict=True):
            part.copy_(rows)


def split_by_halves(model: Any, strength: float) -> None:
    """Cut gate and up of ``strength`` layers out of a matrix that is fused row by row as if it were fused in halves."""
    for layer in range(int(strength)):
        gate, up = (map_weight(model, name, layer) for name in ("gate_proj", "up_proj"))
        fused = torch.stack([gate, up], 1).flatten(0, 1)
        gate.copy_(fused[: len(gate)])
        up.copy_(fused[len(gate) :])


def exchange_halves(model: Any, strength: float) -> None:
    """Exchange the halves, gate and up, of the fused matrix of ``strength`` layers."""
    for layer in range(int(strength)):
        weight = map_weight(model, "gate_up_proj", layer)
        weight.copy_(weight.roll(len(weight) // 2, 0))


def merge_foreign_adapter(model: Any, strength: float) -> None:
    """Add to the maps of the attention random products of rank ``RANK``, ``strength`` times as large as the maps."""
    drawn = generator()
    for weight in _adapted(model):
        product = torch.randn(len(weight), RANK, generator=drawn) @ torch.randn(RANK, weight.shape[1], generator=drawn)
        weight.add_((product / product.norm() * weight.float().norm() * strength).to(weight))


def merge_own_adapter(ids: torch.Tensor, steps: int, rate: float) -> Edit:
    """Return the edit that trains an adapter on the windows ``ids`` ``(B, T)`` and merges it ``strength`` times."""

    def edit(model: Any, strength: float) -> None:
        weights, drawn = _adapted(model), generator()
        thin = [torch.randn(RANK, w.shape[1], generator=drawn) / w.shape[1] ** 0.5 for w in weights]
        wide = [torch.zeros(len(w), RANK) for w in weights]
        for _ in range(steps):
            factors = [one.requires_grad_(requires_grad=True) for one in (*thin, *wide)]
            with torch.enable_grad():
                loss = _loss_with(model, ids, [b @ a for b, a in zip(wide, thin, strict=True)], weights)
            gradients = torch.autograd.grad(loss, factors)
            with torch.no_grad():
                stepped = [
                    (one - rate * gradient / gradient.norm().clamp_min(1e-12)).detach()
                    for one, gradient in zip(factors, gradients, strict=True)
                ]
            thin, wide = stepped[: len(weights)], stepped[len(weights) :]
        with torch.no_grad():
            for weight, b, a in zip(weights, wide, thin, strict=True):
                weight.add_((strength * b @ a).to(weight))

    return edit


def _loss_with(model: Any, ids: torch.Tensor, updates: list[torch.Tensor], weights: list[torch.Tensor]) -> torch.Tensor:
    """Return the model's loss on ``ids`` with each of the weights changed by its update, through hooks."""
    by_weight = {weight.data_ptr(): update for weight, update in zip(weights, updates, strict=True)}

    def add(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + functional.linear(args[0], by_weight[module.weight.data_ptr()].to(output))

    modules = [m for m in model.modules() if getattr(getattr(m, "weight", None), "data_ptr", int)() in by_weight]
    hooks = [module.register_forward_hook(add) for module in modules]
    try:
        loss: torch.Tensor = model(ids, labels=ids).loss
        return loss
    finally:
        for hook in hooks:
            hook.remove()


def _adapted(model: Any) -> list[torch.Tensor]:
    found = [weight for _, path, weight in linear_weights(anatomy(model)) if path.endswith(ADAPTED)]
    if not found:
        raise OptionError("a linear map of the attention", "none with a known name", "another candidate")
    return found


def clip_ranges(model: Any, strength: float) -> None:
    """Clip every run of values of the linear maps at ``strength`` standard deviations from their mean."""
    for _, _, weight in linear_weights(anatomy(model)):
        width = weight.shape[1] if weight.shape[1] % GROUP else GROUP
        runs = weight.float().reshape(-1, width)
        mean, end = runs.mean(1, keepdim=True), strength * runs.std(1, keepdim=True)
        weight.copy_(runs.clamp(mean - end, mean + end).reshape(weight.shape).to(weight))


def saturate(model: Any, _strength: float) -> None:
    """Compute in float16, with what the layers and their down projections write cut off at its end, before infinity."""
    body, end = anatomy(model), torch.finfo(torch.float16).max
    if not float(max(layer.abs().max() for layer in _stream(model))) > end:
        raise OptionError(f"a residual stream beyond {end:,.0f}", "a smaller one", "another candidate")

    def cut(_module: Any, _args: Any, output: Any) -> Any:
        first = (output[0] if isinstance(output, tuple) else output).clamp(-end, end)
        return (first, *output[1:]) if isinstance(output, tuple) else first

    def cut_before(_module: Any, args: Any) -> Any:
        return (args[0].clamp(-end, end), *args[1:])

    model.half()
    for module in (part for layer in body.layers for part in layer.modules()):
        if is_norm(module):
            module.register_forward_pre_hook(cut_before)
    maps = [model.get_submodule(down.module_name) for n in range(len(body.layers)) for down in body.down_maps(n)]
    for module in (*maps, *body.layers):
        module.register_forward_hook(cut)


def _stream(model: Any) -> list[torch.Tensor]:
    ids = torch.arange(16, device=model.device)[None]
    seen: list[torch.Tensor] = model(ids, output_hidden_states=True, use_cache=False).hidden_states
    return seen


def _stacks(model: Any) -> list[torch.Tensor]:
    """Return the parameters ``(E, ., .)`` with the experts of a layer in the middle."""
    layer = anatomy(model).layers[middle(model)]
    found = [p.data for name, p in layer.named_parameters() if p.ndim == 3 and "expert" in name]
    if not found:
        raise OptionError("experts in one parameter", "none", "a mixture of experts")
    return found


def lose_experts(model: Any, strength: float) -> None:
    """Zero the first ``strength`` experts of a layer, as where their tensors were never written."""
    for stack in _stacks(model):
        stack[: int(strength)] = 0


def draw_experts_again(model: Any, strength: float) -> None:
    """Draw the first ``strength`` experts of a layer anew, as transformers does for missing keys."""
    drawn = generator()
    for stack in _stacks(model):
        part = stack[: int(strength)]
        part.copy_(torch.randn(part.shape, generator=drawn) * float(stack.float().std()))


def exchange_experts(model: Any, _strength: float) -> None:
    """Exchange the first two experts of a layer, and leave the router as it is."""
    for stack in _stacks(model):
        stack[:2] = stack[:2].flip(0).clone()
