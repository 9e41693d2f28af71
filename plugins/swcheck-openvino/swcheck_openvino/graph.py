"""OpenVINO graphs of language models: converted, compressed, and where their down projections and residual streams are."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import openvino
import torch
from openvino import opset13 as ops
from openvino._offline_transformations import apply_make_stateful_transformation

from swcheck import CheckpointError, EngineError, Scheme, exportable, exportable_with_cache

DOWN: Final = re.compile(r"layers\.(\d+)\.mlp\.down_proj/[\w:]+/MatMul$")
LINEAR: Final = re.compile(r"layers\.\d+\.(?:\w+\.)+\w+_proj/[\w:]+/MatMul$")
STREAM: Final = re.compile(r"layers\.(\d+)/aten::add/Add_1$")
NAME: Final = re.compile(r"^__module\.(?:model\.)?(.+?)/[\w:]+/MatMul$")
BITS: Final = {"u8": 8, "i8": 8, "u4": 4, "i4": 4, "nf4": 4, "u2": 2, "f8e4m3": 8, "f4e2m1": 4}
"""The bits of the types that compressed weights are stored in."""

CORE: Final = openvino.Core()


def converted(model: Any) -> Any:
    """Return the graph of a transformers module: ids ``(B, T)`` to logits ``(B, T, V)``.

    It keeps its key-value cache in variables, as optimum-intel writes it; without one where the model's cache is another.
    """
    cached = exportable_with_cache(model)
    with torch.no_grad():
        if cached is None:
            graph = openvino.convert_model(exportable(model), example_input=torch.zeros(1, 8, dtype=torch.int64))
            graph.outputs[0].get_tensor().set_names({"logits"})
            return graph
        graph = openvino.convert_model(cached.module, example_input=cached.example)
    for place, name in (
        *zip(graph.inputs, cached.inputs, strict=True),
        *zip(graph.outputs, cached.outputs, strict=True),
    ):
        place.get_tensor().set_names({name})
    for name, example in cached.inputs.items():
        if name.startswith("past"):
            _, heads, _, width = example.shape
            graph.input(name).get_node().set_partial_shape(openvino.PartialShape([-1, heads, -1, width]))
    _keep_cache(graph, dict(zip(list(cached.inputs)[3:], cached.outputs[1:], strict=True)))
    return graph


def _keep_cache(graph: Any, kept: Mapping[str, str]) -> None:
    """Turn the inputs and outputs ``kept`` into variables that are reordered by ``beam_idx`` and are empty at first."""
    beams = ops.parameter([-1], np.int32, name="beam_idx")
    beams.output(0).get_tensor().set_names({"beam_idx"})
    graph.add_parameters([beams])
    for name in kept:
        past = graph.input(name)
        readers = list(past.get_target_inputs())
        ordered = ops.gather(past.get_node(), beams, ops.constant(np.int64(0)))
        for reader in readers:
            reader.replace_source_output(ordered.output(0))
    graph.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(graph, kept)
    rows = ops.gather(ops.shape_of(graph.input("input_ids")), ops.constant([0]), ops.constant(0))
    for node in graph.get_ops():
        if node.get_type_name() == "ReadValue":
            _, heads, _, width = node.get_output_partial_shape(0)
            sizes = (ops.constant(np.array([size], np.int64)) for size in (heads.get_length(), 0, width.get_length()))
            shape = ops.concat([rows, *sizes], 0)
            node.set_arguments([ops.broadcast(ops.constant(np.float32(0)), shape)])
    graph.validate_nodes_and_infer_types()


def compressed(graph: Any, scheme: str, group: int, kept: Iterable[str]) -> Any:
    """Return the graph with its weights compressed by nncf; the maps ``kept`` stay as they are."""
    if scheme == "f32":
        return graph
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    modes = nncf.CompressWeightsMode
    named = {
        found[1]: node.get_friendly_name()
        for node in graph.get_ops()
        if (found := NAME.match(node.get_friendly_name()))
    }
    ignored = nncf.IgnoredScope(names=[named[name] for name in kept])
    if scheme == "int8":
        return nncf.compress_weights(graph, mode=modes.INT8_ASYM, ignored_scope=ignored)
    mode = modes.INT4_ASYM if scheme == "int4-asym" else modes.INT4_SYM
    try:
        return nncf.compress_weights(graph, mode=mode, group_size=group, ignored_scope=ignored)
    except nncf.ValidationError as error:
        raise CheckpointError(f"openvino:{scheme}", str(error).splitlines()[0][:300], "another group=") from error
    except nncf.InvalidGroupSizeError as error:
        sizes = sorted({int(size) for size in re.findall(r"channel size: (\d+)", str(error))})
        words = f"groups of {group} do not divide rows of {', '.join(map(str, sizes)) or 'some map'}"
        raise EngineError(f"openvino:{scheme}", words, f"group={math.gcd(*sizes, group)}, or skip=NAME") from error


def read(file: Path) -> Any:
    """Return the graph in a file. Raises ``CheckpointError`` for what is none, or lacks its ``.bin``."""
    title, attempt = f"openvino:{file}", "a whole IR: an .xml file with its .bin beside it"
    if not file.with_suffix(".bin").is_file():
        raise CheckpointError(title, f"no {file.with_suffix('.bin').name} beside it", attempt)
    try:
        graph = CORE.read_model(file)
    except RuntimeError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise CheckpointError(title, lines[-1][:300], attempt) from error
    if not any("logits" in one.get_names() for one in graph.outputs):
        raise CheckpointError(title, "it has no output called logits", "an export of a causal language model")
    return graph


class Places:
    """Where things are in a graph."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self._named = {node.get_friendly_name(): node for node in graph.get_ops()}

    @cached_property
    def streams(self) -> Mapping[int, Any]:
        """The node of the residual stream after each layer."""
        return {int(found[1]): node for name, node in self._named.items() if (found := STREAM.search(name))}

    @cached_property
    def downs(self) -> Mapping[int, Any]:
        """The node of the down projection of each layer."""
        return {int(found[1]): node for name, node in self._named.items() if (found := DOWN.search(name))}

    def matrix(self, layer: int) -> np.ndarray:
        """Return the weight of a down projection as its graph decompresses it, float32 ``(H, F)``."""
        node = self.downs[layer]
        alone = openvino.Model([node.input_value(1)], [])
        weight = CORE.compile_model(alone, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([])[0]
        return weight if node.get_attributes()["transpose_b"] else weight.T


def scheme_of(graph: Any) -> Scheme | None:
    """Return how most linear maps of the layers are stored; None where none is found."""
    maps = [node for node in graph.get_ops() if LINEAR.search(node.get_friendly_name())]
    kinds = [_stored_type(node.input_value(1).get_node()) for node in maps]
    if not kinds:
        return None
    common = max(set(kinds), key=kinds.count)
    return Scheme("rtn", BITS[common]) if common in BITS else Scheme("float", 16 if common in {"f16", "bf16"} else 32)


def _stored_type(node: Any) -> str:
    """Return the type of the largest constant that a node is computed from."""
    found, waiting = (0, "f32"), [node]
    while waiting:
        node = waiting.pop()
        if node.get_type_name() == "Constant":
            found = max(found, (int(np.prod(list(node.shape) or [1])), node.get_element_type().get_type_name()))
        waiting += [node.input_value(place).get_node() for place in range(node.get_input_size())]
    return found[1]


def with_changes(
    graph: Any, streams: Iterable[int], inputs: Iterable[int], changes: Mapping[tuple[int, int, int], float]
) -> Any:
    """Return a copy of a graph with layers' tensors as further outputs, and with ``changes`` of (layer, row, column).

    A change is added behind the product: the difference times the input of its column, in the channel of its row. That
    is exact however the weight is stored.
    """
    new = graph.clone()
    places = Places(new)
    wanted = {f"swcheck residual {n}": places.streams[n].output(0) for n in streams}
    wanted |= {f"swcheck input {n}": places.downs[n].input_value(0) for n in inputs}
    for name, output in wanted.items():
        result = new.add_outputs([output])[0]
        result.get_tensor().set_names({*result.get_tensor().get_names(), name})
    for layer in {layer for layer, _, _ in changes}:
        _correct(places.downs[layer], {place[1:]: value for place, value in changes.items() if place[0] == layer})
    return new


def _correct(node: Any, scalars: Mapping[tuple[int, int], float]) -> None:
    """Add to what a product writes the changes of its scalars (row, column)."""
    width = int(node.get_output_partial_shape(0)[-1].get_length())
    directions = np.zeros((len(scalars), width), np.float32)
    for number, ((row, _), change) in enumerate(scalars.items()):
        directions[number, row] = change
    columns = np.array([column for _, column in scalars], np.int64)
    readers = list(node.output(0).get_target_inputs())
    read = ops.gather(node.input_value(0), ops.constant(columns), ops.constant(np.int64(-1)))
    change = ops.matmul(read, ops.constant(directions), False, False)
    corrected = ops.add(node.output(0), change)
    for reader in readers:
        reader.replace_source_output(corrected.output(0))
