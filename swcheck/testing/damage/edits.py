"""Edits that damage a model in one known way, or leave it as it is: what ``swcheck.testing.candidates`` is made of.

Each takes a model that is a copy, and a strength, and edits the model in place. The parts are found through the
anatomy, so that any family will do; an edit that a model has no part for raises ``OptionError``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import torch
from torch import nn

from swcheck.base.errors import OptionError
from swcheck.lens.architecture.anatomy import Anatomy, anatomy
from swcheck.lens.architecture.norm_gain import gain_offset
from swcheck.lens.architecture.storage import plain_weight
from swcheck.lens.architecture.tracing import is_norm

Edit = Callable[[Any, float], None]

GROUP: Final = 32
"""Matrices are rounded in groups of this many columns, or of a whole row where that does not divide it."""


def linear_weights(body: Anatomy, layers: range | None = None) -> Iterator[tuple[int, str, torch.Tensor]]:
    """Yield the layer, the path and the weight ``(out, in)`` of every plain linear map of the decoder layers."""
    for number, path, _, weight in linear_modules(body, layers):
        yield number, path, weight


def linear_modules(body: Anatomy, layers: range | None = None) -> Iterator[tuple[int, str, nn.Module, torch.Tensor]]:
    """Yield the same with the module before the weight."""
    for number in range(len(body.layers)) if layers is None else layers:
        for path, module in body.layers[number].named_modules():
            weight = plain_weight(module)
            if weight is not None:
                yield number, path, module, weight


def middle(model: nn.Module) -> int:
    """Return the number of a layer in the middle."""
    return len(anatomy(model).layers) // 2


def map_weight(model: nn.Module, names: str | tuple[str, ...], layer: int | None = None) -> torch.Tensor:
    """Return the weight of the first linear map of a layer that has one of the ``names``."""
    number = middle(model) if layer is None else layer
    names = (names,) if isinstance(names, str) else names
    for _, path, weight in linear_weights(anatomy(model), range(number, number + 1)):
        if f".{path}".endswith(tuple(f".{name}" for name in names)):
            return weight
    raise OptionError(f"a linear map called {' or '.join(names)} in layer {number}", "none", "another candidate")


def down_weight(model: nn.Module, layer: int | None = None) -> torch.Tensor:
    """Return the weight of a layer's down projection."""
    down = next(iter(anatomy(model).down_maps(middle(model) if layer is None else layer)), None)
    weight = None if down is None else down.weight
    if weight is None:
        raise OptionError("a plain down projection", "a packed one", "the reference before it is quantized")
    return weight


def first_norm(model: nn.Module) -> nn.Module:
    """Return the first norm of the decoder layers."""
    return _norm(module for layer in anatomy(model).layers for module in layer.modules())


def final_norm(model: nn.Module) -> nn.Module:
    """Return the norm before the head."""
    path = anatomy(model).path
    return _norm(module for name, module in reversed([*model.named_modules()]) if not name.startswith(f"{path}."))


def _norm(modules: Iterable[nn.Module]) -> nn.Module:
    found = next((one for one in modules if is_norm(one) and "weight" in dict(one.named_parameters())), None)
    if found is None:
        raise OptionError("a norm with a weight", "none", "another candidate")
    return found


def embedding(model: Any) -> torch.Tensor:
    """Return the token embedding ``(V, H)``."""
    return model.get_input_embeddings().weight.data  # type: ignore[no-any-return]


def head(model: Any) -> torch.Tensor:
    """Return the head ``(V, H)``; raises ``OptionError`` where it is the embedding itself."""
    found = model.get_output_embeddings().weight
    if found is model.get_input_embeddings().weight:
        raise OptionError("a head of its own", "it is tied to the embedding", "another candidate")
    return found.data  # type: ignore[no-any-return]


def generator() -> torch.Generator:
    """Return a seeded generator: an edit is the same every time."""
    return torch.Generator().manual_seed(0)


def rounded(weight: torch.Tensor, bits: float) -> torch.Tensor:
    """Return a weight ``(out, in)`` rounded symmetrically to ``bits`` in groups of ``GROUP`` columns."""
    width = weight.shape[1] if weight.shape[1] % GROUP else GROUP
    groups = weight.float().reshape(len(weight), -1, width)
    step = groups.abs().amax(2, keepdim=True).clamp_min(1e-12) / (2 ** (bits - 1) - 1)
    return ((groups / step).round() * step).reshape(weight.shape).to(weight.dtype)


def permuted_rows(weight: torch.Tensor, share: float) -> torch.Tensor:
    """Return a weight with the first ``share`` of its rows in another order."""
    count = max(2, int(len(weight) * share))
    order = torch.randperm(count, generator=generator())
    return torch.cat([weight[:count][order], weight[count:]])


def scale(find: Callable[[Any], torch.Tensor]) -> Edit:
    """Return the edit that multiplies a tensor by the strength."""

    def edit(model: Any, strength: float) -> None:
        find(model).mul_(strength)

    return edit


def scale_gain(find: Callable[[Any], nn.Module]) -> Edit:
    """Return the edit that multiplies by the strength what a norm multiplies by."""

    def edit(model: Any, strength: float) -> None:
        norm: Any = find(model)
        offset = gain_offset(norm)
        norm.weight.add_(offset).mul_(strength).sub_(offset)

    return edit


def fill_gain(find: Callable[[Any], nn.Module]) -> Edit:
    """Return the edit that sets all that a norm multiplies by to the strength."""

    def edit(model: Any, strength: float) -> None:
        norm: Any = find(model)
        norm.weight.fill_(strength - gain_offset(norm))

    return edit


def roll_rows(find: Callable[[Any], torch.Tensor], dim: int = 0) -> Edit:
    """Return the edit that rolls the rows, or columns, of a matrix by the strength."""

    def edit(model: Any, strength: float) -> None:
        weight = find(model)
        weight.copy_(weight.roll(int(strength), dim))

    return edit


def shuffle_rows(find: Callable[[Any], torch.Tensor]) -> Edit:
    """Return the edit that exchanges the first rows of a table, a share of it that is the strength."""

    def edit(model: Any, strength: float) -> None:
        weight = find(model)
        weight.copy_(permuted_rows(weight, strength))

    return edit


def fill(find: Callable[[Any], torch.Tensor]) -> Edit:
    """Return the edit that sets all values of a tensor to the strength."""

    def edit(model: Any, strength: float) -> None:
        find(model).fill_(strength)

    return edit


def draw_again(find: Callable[[Any], torch.Tensor]) -> Edit:
    """Return the edit that draws a tensor anew, as transformers does for missing keys, ``strength`` times as large."""

    def edit(model: Any, strength: float) -> None:
        weight = find(model)
        drawn = torch.randn(weight.shape, generator=generator()) * float(weight.float().std()) * strength
        weight.copy_(drawn.to(weight))

    return edit


def add_noise_to(find: Callable[[Any], torch.Tensor]) -> Edit:
    """Return the edit that adds noise to a tensor, ``strength`` of its standard deviation: as from another training."""

    def edit(model: Any, strength: float) -> None:
        weight = find(model)
        noise = torch.randn(weight.shape, generator=generator()) * float(weight.float().std()) * strength
        weight.add_(noise.to(weight))

    return edit


def exchange_layers(model: Any, strength: float) -> None:
    """Exchange a layer in the middle with the one ``strength`` behind it."""
    one = middle(model)
    _reorder_layers(model, {one: one + int(strength), one + int(strength): one})


def reverse_layers(model: Any, strength: float) -> None:
    """Put the last ``strength`` layers in reversed order."""
    last = len(anatomy(model).layers) - 1
    _reorder_layers(model, {last - number: last - int(strength) + 1 + number for number in range(int(strength))})


def copy_layer(model: Any, _strength: float) -> None:
    """Write a layer in the middle over the one behind it."""
    _reorder_layers(model, {middle(model) + 1: middle(model)})


def _reorder_layers(model: Any, places: Mapping[int, int]) -> None:
    """Write into each of the layers what another one holds: ``places`` gives its number by theirs."""
    layers = anatomy(model).layers
    held = {number: copy.deepcopy(layers[number].state_dict()) for number in places.values()}
    for number, other in places.items():
        layers[number].load_state_dict(held[other])


def exchange_maps(one: str, other: str) -> Edit:
    """Return the edit that exchanges two matrices of one shape in ``strength`` layers."""

    def edit(model: Any, strength: float) -> None:
        for layer in range(int(strength)):
            first, second = map_weight(model, one, layer), map_weight(model, other, layer)
            kept = first.clone()
            first.copy_(second)
            second.copy_(kept)

    return edit


def head_width(model: Any) -> int:
    """Return the width of an attention head."""
    config = model.config
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def other_rope_layout(model: Any, strength: float) -> None:
    """Store q and k of ``strength`` layers with pairs interleaved in place of split halves."""
    size = head_width(model)
    for layer in range(int(strength)):
        for name in ("q_proj", "k_proj"):
            weight = map_weight(model, name, layer)
            pairs = weight.reshape(-1, 2, size // 2, weight.shape[1]).transpose(1, 2)
            weight.copy_(pairs.reshape(weight.shape).clone())


def transpose(name: str) -> Edit:
    """Return the edit that transposes a square matrix."""

    def edit(model: Any, _strength: float) -> None:
        weight = map_weight(model, name)
        if weight.shape[0] != weight.shape[1]:
            raise OptionError(f"a square {name}", f"{tuple(weight.shape)}", "another candidate")
        weight.copy_(weight.T.clone())

    return edit


def roll_group_scales(model: Any, strength: float) -> None:
    """Give every group of columns of every linear map the scale of its neighbour, as a wrong order of scales does."""
    for _, name, weight in linear_weights(anatomy(model)):
        if weight.shape[1] % GROUP:
            raise OptionError(f"groups of {GROUP} columns in {name}", f"{weight.shape[1]} columns", "another candidate")
        groups = weight.float().reshape(len(weight), -1, GROUP)
        scales = groups.abs().amax(2, keepdim=True).clamp_min(1e-12)
        weight.copy_((groups / scales * scales.roll(int(strength), 1)).reshape(weight.shape))


def round_all(model: Any, strength: float) -> None:
    """Round every linear map to ``strength`` bits."""
    for _, _, weight in linear_weights(anatomy(model)):
        weight.copy_(rounded(weight, strength))


def add_noise(model: Any, strength: float) -> None:
    """Add noise to every linear map, ``strength`` of its standard deviation, as training that diverges does."""
    drawn = generator()
    for _, _, weight in linear_weights(anatomy(model)):
        noise = torch.randn(weight.shape, generator=drawn) * float(weight.float().std()) * strength
        weight.add_(noise.to(weight))


def prune(model: Any, strength: float) -> None:
    """Zero the smallest weights of every linear map, a share of them that is the strength."""
    for _, _, weight in linear_weights(anatomy(model)):
        flat = weight.abs().flatten().float()
        weight.masked_fill_(weight.abs() <= flat.kthvalue(max(1, int(flat.numel() * strength))).values, 0)


def prune_pattern(width: int) -> Edit:
    """Return an edit that keeps half of every ``width`` neighbours in a row (2:4, 4:8): at strength 1 those that count most,
    as Wanda does; above it the others. What counts is the weight times the norm of its input, on random tokens.
    """

    def edit(model: Any, strength: float) -> None:
        norms: dict[Any, torch.Tensor] = {}
        maps = {module: weight for _, _, module, weight in linear_modules(anatomy(model))}
        hooks = [
            module.register_forward_pre_hook(
                lambda one, args: norms.update({one: args[0].float().flatten(0, 1).norm(dim=0)})
            )
            for module in maps
        ]
        model(torch.randint(0, len(embedding(model)), (4, 32), generator=generator()))
        for hook in hooks:
            hook.remove()
        for module, weight in maps.items():
            scores = (weight.abs().float() * norms[module]).reshape(len(weight), -1, width)
            dropped = scores.topk(width // 2, dim=2, largest=strength > 1).indices
            weight.masked_fill_(torch.zeros_like(scores).scatter_(2, dropped, 1).reshape(weight.shape).bool(), 0)

    return edit


def permute_neurons(model: Any, _strength: float) -> None:
    """Permute the inner neurons of a gated MLP in every layer: the same function."""
    for layer in range(len(anatomy(model).layers)):
        down = down_weight(model, layer)
        order = torch.randperm(down.shape[1], generator=generator())
        down.copy_(down[:, order])
        for name in ("gate_proj", "up_proj"):
            weight = map_weight(model, name, layer)
            weight.copy_(weight[order])


def rescale_neurons(model: Any, strength: float) -> None:
    """Divide what a gated MLP puts into its neurons by the strength, and multiply their columns: the same function."""
    for layer in range(len(anatomy(model).layers)):
        map_weight(model, "up_proj", layer).div_(strength)
        down_weight(model, layer).mul_(strength)
