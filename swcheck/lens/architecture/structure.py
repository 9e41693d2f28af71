"""Finds a model's decoder layers and down projections in a short forward pass, and holds them against it.

H residual width, F inner width, E experts, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import torch

from swcheck.base.errors import ArchitectureError, CheckpointError
from swcheck.lens.architecture.blocks import Block, Blocks
from swcheck.lens.architecture.places import Place, Structure
from swcheck.lens.architecture.storage import device_of, evaluating, input_width
from swcheck.lens.architecture.sums import are_finite, is_added, left_of_mix, left_of_sum, take_stream
from swcheck.lens.architecture.tracing import LinearCall, Tracer, eager_experts
from swcheck.lens.architecture.twins import answers_repeated, layers_like_earlier_ones
from swcheck.loading.streaming.pager import pager_of

if TYPE_CHECKING:
    from torch import nn

TOKENS: Final = 5
"""The length of the traced prompt. Two prompts that differ in their last token are traced together."""

SLACK: Final = 16
"""What a block adds has to be a sum of its branches up to this many units in the last place of its largest value."""


class _LayersDone(Exception):  # noqa: N818 - a signal, not an error
    """Ends the pass where the module that runs the layers returns."""


def _end_pass(*_call: Any) -> None:
    raise _LayersDone


def traced(model: nn.Module, known: Structure | None = None) -> Structure:
    """Find the structure of ``model`` in one forward pass over a few tokens.

    With ``known``, which a family gave, its paths stay as they are, and only what the pass shows of them is filled in.
    Of a streamed model, layers that are built like an earlier one are not run, and are taken to be like it.
    A model without down projections has layers and no places. Raises ``ArchitectureError`` where the pass fails, for a
    model that looks at later tokens or has no layers, and where a layer's output is not a sum of its input and what its
    modules return.
    """
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise _refusal(model, "an encoder-decoder: it does not continue a text")
    tracer, blocks = Tracer(model), Blocks(model)
    twins = {} if pager_of(model) is None else layers_like_earlier_ones(blocks.lists)
    ids = torch.arange(5, 5 + TOKENS).repeat(2, 1) % max(1, _vocabulary(model))
    ids[1, -1] = 3 % max(1, _vocabulary(model))
    try:
        passing = evaluating(model), eager_experts(model), blocks.watching(tracer), tracer.watching(model)
        with ExitStack() as stack:
            for block in (*passing, tracer, answers_repeated(blocks.lists, twins)):
                stack.enter_context(block)
            if known is not None:  # what follows the layers, such as a large head, shows nothing more
                runs_layers = model.get_submodule(known.layers.rpartition(".")[0])
                stack.callback(runs_layers.register_forward_hook(_end_pass).remove)
            model(ids.to(device_of(model)), use_cache=False)
    except _LayersDone:
        pass
    except (ArchitectureError, CheckpointError):
        raise
    except Exception as error:
        raise _refusal(model, f"a pass over {TOKENS} tokens ends in {type(error).__name__}: {error}") from error
    name = _decoder(model, tracer.calls, blocks) if known is None else known.layers
    if name is None:
        raise _refusal(model, "no list of decoder layers that run in a pass")
    firsts = [twins.get((name, number), number) for number in range(len(blocks.lists[name]))]
    layers = [blocks.seen[name, number] for number in firsts]
    rounds = _rounds(model, blocks, name)
    tensor = None if known is not None else _stream_among(model, tracer.calls, blocks, name, sorted(set(firsts)))
    whole = Structure(name, (), *_streams(model, layers), tensor, rounds)
    _check_chain(model, whole, layers)
    _check_sums(model, whole, layers)
    if known is not None:
        return replace(known, places=tuple(map(_filled_in, layers, known.places)), rounds=rounds)
    places = {
        number: _places_of(whole, blocks.seen[name, number], blocks.lists[name][number], number, tracer.calls)
        for number in set(firsts)
    }
    return replace(whole, places=tuple(places[number] for number in firsts))


def _vocabulary(model: nn.Module) -> int:
    get = getattr(model, "get_input_embeddings", None)
    return int(getattr(get(), "num_embeddings", 0) or 2**10) if get else 2**10


def _decoder(model: nn.Module, calls: list[LinearCall], blocks: Blocks) -> str | None:
    """Return the list of modules with down projections that ends last in the pass; without any, the list that ends last."""
    outermost = {call.running[0][0] for call in calls if call.running and _writes_into_stream(model, call, blocks)}
    return next((name for name, _ in reversed(blocks.order) if name in outermost or not outermost), None)


def _writes_into_stream(model: nn.Module, call: LinearCall, blocks: Blocks) -> bool:
    after = blocks.seen[call.running[0]].after
    return after is not None and _streams(model, [blocks.seen[call.running[0]]])[0] == call.width


def _streams(model: nn.Module, layers: list[Block]) -> tuple[int, int | None]:
    """Return H, and where several residual streams are in what a layer returns: see ``Structure``.

    Streams that lie behind each other in one axis are seen by the hidden size that the config declares.
    """
    shape = next((one.after.shape for one in layers if one.after is not None), torch.Size([0]))
    if len(shape) == 4:
        return shape[-1], 2 if shape[:2] == (2, TOKENS) else 0
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    declared = getattr(config, "hidden_size", None) or shape[-1]
    if declared < shape[-1] and shape[-1] % declared == 0:
        return int(declared), -1
    return shape[-1], None


def _rounds(model: nn.Module, blocks: Blocks, name: str) -> int:
    """Return how often the layers run in a pass, one after the other in each round.

    Raises ``ArchitectureError`` where some run more often than others, or before those in front of them have run.
    """
    order = [number for other, number in blocks.order if other == name]
    once = sorted(set(order))
    if len(order) == len(once):
        return 1
    rounds, layers = len(order) // len(once), [blocks.lists[name][number] for number in once]
    if order != once * rounds or len({id(layer) for layer in layers}) < len(layers):
        number = next(number for number in once if order.count(number) > 1)
        shown = ", ".join(map(str, order))
        found = f"{name}.{number} runs {order.count(number)} times in a pass, and not in rounds of all layers: {shown}"
        raise _refusal(model, found)
    return rounds


def _stream_among(
    model: nn.Module, calls: Sequence[LinearCall], blocks: Blocks, name: str, numbers: Sequence[int]
) -> int | None:
    """Let each layer that hands on several tensors be seen by that to which its MLP's output is added; return its number.

    None where they hand on one tensor, or have no MLP. Raises ``ArchitectureError`` where it cannot be told.
    """
    layers = [blocks.seen[name, number] for number in numbers]
    tensors = min((layer.tensors for layer in layers if layer.runs), default=0)
    if tensors < 2:
        return None
    maps = []
    for number in numbers:
        paths = {module: path for path, module in blocks.lists[name][number].named_modules()}
        here = {paths[call.module] for call in calls if (name, number) in call.running and call.module in paths}
        maps.append({path for path in paths.values() if any(f"{one}.".startswith(f"{path}.") for one in here)})
    if not any(maps):
        return None
    taken = take_stream(layers, maps)
    if taken is None:
        raise _refusal(model, f"{name} hands on {tensors} tensors, and MLPs do not add to just one of them")
    return taken


def _check_chain(model: nn.Module, whole: Structure, layers: list[Block]) -> None:
    """Raise ``ArchitectureError`` unless each layer returns the shape it got, and does not look ahead."""
    name = whole.layers
    for number, layer in _runs(layers):
        if layer.before is None or layer.after is None or layer.before.shape != layer.after.shape:
            raise _refusal(model, f"{name}.{number} returns another shape than it gets")
        count, time = whole.by_stream(layer.after).shape[:2] if layer.after.ndim in {3, 4} else (0, 0)
        is_encoder = (count, time) == (TOKENS, 2) and _looks_ahead(layer.after.transpose(0, 1))
        if count == 2 and time > TOKENS:  # with tokens of its own before the prompt
            is_encoder = _looks_ahead(whole.by_stream(layer.after)[:, :2])
        if count == 2 and time == TOKENS and _is_encoder(model):
            is_encoder = _looks_ahead(whole.by_stream(layer.after))
        if is_encoder:
            raise _refusal(model, f"an encoder: what {name}.{number} returns depends on later tokens")
        if (count, time) != (2, TOKENS):
            found = f"{name}.{number} returns {tuple(layer.after.shape)} for 2 prompts of {TOKENS} tokens"
            raise _refusal(model, found)


def _runs(layers: list[Block]) -> Iterator[tuple[int, Block]]:
    """Yield each run of each layer, with the layer's number; none of a layer for images."""
    for number, layer in enumerate(layers):
        yield from ((number, run) for run in layer.all_runs)


def _is_encoder(model: nn.Module) -> bool:
    """Return whether the config says that the model is used as an encoder; some decoders look ahead without a mask."""
    config = getattr(model, "config", None)
    return getattr(config, "is_decoder", None) is False or getattr(config, "causal", None) is False


def _looks_ahead(stream: torch.Tensor) -> bool:
    """Return whether the streams of two prompts that differ in their last token differ before it, relatively."""
    if stream.is_meta:
        return False
    return float((stream[0, :-1] - stream[1, :-1]).abs().max()) > 1e-5 * float(stream.abs().max())


def _places_of(
    whole: Structure, layer: Block, block: nn.Module, number: int, calls: list[LinearCall]
) -> tuple[Place, ...]:
    """Return the places of the down projections of one layer that were seen in the pass."""
    paths = {module: path for path, module in block.named_modules()}
    found = {
        paths[call.module]: call
        for call in calls
        if (whole.layers, number) in call.running
        and call.width == whole.hidden
        and "norm" not in paths.get(call.module, "norm")
    }  # an MLP inside a norm scales the stream, and writes nothing into it
    dense = [path for path, call in found.items() if call.parameter is None and _expert_number(block, path) is None]
    named = [path for path in dense if "shared" not in path]
    main = max(named, key=lambda path: input_width(block.get_submodule(path)) or 0, default=None)
    places: dict[Place, None] = {}
    for path, call in found.items():
        label = "shared" if "shared" in path else path
        if call.parameter is not None:
            label = "shared" if "shared" in path else None
            places[Place(path, label, call.parameter, call.is_transposed, rows=call.rows)] = None
        elif path in dense:
            is_plain = whole.streams is None and is_added(layer, path)
            places[Place(path, None if path == main else label, is_added=is_plain)] = None
        else:
            places |= dict.fromkeys(_all_experts(block, path))
    return tuple(places)


def _filled_in(layer: Block, places: tuple[Place, ...]) -> tuple[Place, ...]:
    return tuple(replace(place, is_added=is_added(layer, place.path)) for place in places)


def _expert_number(block: nn.Module, path: str) -> int | None:
    """Return the number of a module in the list of experts inside a layer that has it, None where no list has it."""
    from torch import nn

    parts = path.split(".")
    for end in range(1, len(parts)):
        if "expert" in parts[end - 1] and isinstance(block.get_submodule(".".join(parts[:end])), nn.ModuleList):
            return int(parts[end])
    return None


def _all_experts(block: nn.Module, path: str) -> Iterator[Place]:
    """Yield the place that one expert of a list has at ``path``, and those of all others in the list."""
    number = _expert_number(block, path)
    head, _, tail = path.partition(f".{number}.")
    for other in range(len(block.get_submodule(head))):  # type: ignore[arg-type]
        yield Place(f"{head}.{other}.{tail}", other)


def _check_sums(model: nn.Module, whole: Structure, layers: list[Block]) -> None:
    """Raise ``ArchitectureError`` unless each layer's output is a linear combination of its input and its modules' outputs.

    The factors are those of least squares: 1 for most, a multiplier for Granite, 0 for what a norm follows. They are the
    same at all tokens, but for several streams: these are mixed by weights that each token has of its own.
    """
    name = whole.layers
    for number, layer in _runs(layers):
        if layer.after is None or not are_finite([layer.after]):
            continue
        error = left_of_sum(layer) if whole.streams is None else left_of_mix(whole, layer)
        if not error <= SLACK * max(torch.finfo(layer.after.dtype).eps, torch.finfo(torch.float32).eps):
            found = (
                f"what {name}.{number} returns is no sum of its input and what its modules return: {error:.2%} is left"
            )
            raise _refusal(model, found)


def _refusal(model: nn.Module, found: str) -> ArchitectureError:
    return ArchitectureError(
        f"a causal language model whose decoder layers write into one residual stream: {type(model).__name__}",
        found,
        "perplexity and KL divergence are measured of any causal language model; docs/families.md lists what is covered",
    )


def check_has_down_projections(model: nn.Module, structure: Structure) -> None:
    """Raise ``ArchitectureError``, which names the kind of model, for one without any down projection."""
    if any(structure.places):
        return
    recurrent = any(
        name.endswith(("A_log", "time_decay", "igate_preact.weight")) for name, _ in model.named_parameters()
    )
    kind = "a state-space or recurrent model" if recurrent else "no model with MLPs or experts"
    words = f"{kind}: no linear map follows an activation function in {structure.layers}"
    raise _refusal(model, words)
