"""ONNX graphs of language models: exported, quantized, and where their down projections and residual streams are.

The names of tensors are those that optimum's exporter gives, so that both kinds of graph are read in one way.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from swcheck import EngineError, Scheme, exportable, exportable_with_cache

DOWN: Final = re.compile(r"layers\.(\d+)/mlp/down_proj/MatMul_output_0$")
LINEAR: Final = re.compile(r"layers\.\d+/(?:\w+/)+\w+_proj/MatMul_output_0$")
STREAM: Final = re.compile(r"layers\.(\d+)/Add_1_output_0$")
SCOPES: Final = "pkg.torch.onnx.name_scopes"
LONGEST: Final = 1 << 20


def exported(model: Any) -> Any:
    """Return the graph of a transformers module: ids ``(B, T)`` to logits ``(B, T, V)``.

    It takes a key-value cache and gives it back, as optimum exports it; none where the model's cache is another.
    """
    cached = exportable_with_cache(model)
    if cached is not None:
        free = torch.export.Dim.AUTO
        kept = [{0: free, 2: free} for _ in cached.example[3]]
        shapes = (*({0: free, 1: free} for _ in range(3)), kept)
        return _traced(cached.module, cached.example, shapes, cached.inputs, cached.outputs)
    rows, length = torch.export.Dim("B", min=1, max=LONGEST), torch.export.Dim("T", min=2, max=LONGEST)
    ids = torch.zeros(2, 8, dtype=torch.int64)  # of 1 row the exporter would make a constant
    return _traced(exportable(model), (ids,), ({0: rows, 1: length},), ["input_ids"], ["logits"])


def _traced(module: Any, example: Any, shapes: Any, inputs: Iterable[str], outputs: Iterable[str]) -> Any:
    with torch.no_grad():
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            verbose=False,
            dynamic_shapes=shapes,
            input_names=list(inputs),
            output_names=list(outputs),
        )
    return _renamed(program.model_proto)


def _renamed(proto: Any) -> Any:
    """Return the graph with optimum's names for the linear maps and for the sums of the residual stream."""
    tensors: dict[str, str] = {}
    for node in proto.graph.node:
        scopes = [_scopes(one.value) for one in node.metadata_props if one.key == SCOPES]
        *_, module, last = ["", "", *(scopes[0] if scopes else [])]
        place = "/" + module.removeprefix("model.").replace(".layers.", "/layers.").replace(".", "/").replace(
            "/layers/", "/layers."
        )
        if node.op_type == "MatMul" and last.startswith("linear"):
            node.name = f"{place}/MatMul"
            tensors[node.output[0]] = f"{node.name}_output_0"
            tensors[node.input[1]] = f"{module.removeprefix('model.')}.weight.T"
        elif node.op_type == "Add" and re.search(r"layers\.\d+$", place):
            node.name = f"{place}/Add" + "_1" * any(name.startswith(f"{place}/Add") for name in tensors.values())
            tensors[node.output[0]] = f"{node.name}_output_0"
    outputs = {one.name for one in proto.graph.output}
    for node in proto.graph.node:
        node.input[:] = [tensors.get(name, name) if name not in outputs else name for name in node.input]
        node.output[:] = [tensors.get(name, name) if name not in outputs else name for name in node.output]
    for one in proto.graph.initializer:
        one.name = tensors.get(one.name, one.name)
    del proto.graph.value_info[:]
    return proto


def _scopes(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text)


def quantized(proto: Any, scheme: str, kept: tuple[str, ...]) -> Any:
    """Return the graph quantized by ONNX Runtime's own tools; the maps ``kept``, and the head, stay as they are."""
    if scheme == "f32":
        return proto
    names = {f"{name}.weight.T" for name in (*kept, "lm_head")}
    nodes = [node.name for node in proto.graph.node if node.op_type == "MatMul" and node.input[1] in names]
    nodes += [node.name for node in proto.graph.node if node.op_type == "MatMul" and "logits" in node.output]
    if scheme == "int8":
        return _in_8_bits(proto, nodes)
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    logging.getLogger("onnxruntime.quantization").setLevel(logging.ERROR)
    tool = MatMulNBitsQuantizer(proto, block_size=32, is_symmetric=True, accuracy_level=4, nodes_to_exclude=nodes)
    tool.process()
    return tool.model.model


def _in_8_bits(proto: Any, nodes: list[str]) -> Any:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with TemporaryDirectory() as folder:
        file = Path(folder, "quantized.onnx")
        quantize_dynamic(proto, file, weight_type=QuantType.QInt8, per_channel=True, nodes_to_exclude=nodes)
        return onnx.load(file)


@dataclass(frozen=True)
class DownMap:
    """A down projection in a graph: its node, the tensor it reads, the tensor it writes."""

    node: Any
    read: str
    written: str


class Places:
    """Where things are in a graph."""

    def __init__(self, proto: Any) -> None:
        self.proto = proto
        self._makers = {name: node for node in proto.graph.node for name in node.output}

    @cached_property
    def streams(self) -> Mapping[int, str]:
        """The tensor of the residual stream after each layer."""
        return {int(found[1]): name for name in self._makers if (found := STREAM.search(name))}

    @cached_property
    def downs(self) -> Mapping[int, DownMap]:
        """The down projection of each layer."""
        return dict(self._find_downs())

    def _find_downs(self) -> Iterator[tuple[int, DownMap]]:
        for name in self._makers:
            found = DOWN.search(name)
            node = self._product(name) if found else None
            if found and node is not None:
                maker = self._makers.get(node.input[0])
                quantizes = maker is not None and maker.op_type == "DynamicQuantizeLinear"
                yield int(found[1]), DownMap(node, maker.input[0] if quantizes else node.input[0], name)

    @cached_property
    def products(self) -> list[Any]:
        """The nodes of all linear maps of the layers."""
        found = [self._product(name) for name in self._makers if LINEAR.search(name)]
        return [node for node in found if node is not None]

    def _product(self, name: str) -> Any:
        """Return the matrix product that makes a tensor, behind casts and scales of a quantized one."""
        node = self._makers.get(name)
        while node is not None and node.op_type in {"Mul", "Cast", "Add"}:
            node = self._makers.get(node.input[0])
        return node if node is not None and node.op_type in {"MatMul", "MatMulInteger", "MatMulNBits"} else None

    def matrix(self, layer: int) -> np.ndarray:
        """Return the weight of a down projection, dequantized, float32 ``(H, F)``."""
        node = self.downs[layer].node
        if node.op_type == "MatMulNBits":
            return self._from_blocks(node)
        stored = self._constant(node.input[1])
        if node.op_type == "MatMul":
            return stored.astype(np.float32).T
        start = node.input[1].removesuffix("_quantized")
        zero = self._constant(node.input[3]) if len(node.input) > 3 and node.input[3] else np.zeros(1, stored.dtype)
        return ((stored.astype(np.float32) - zero) * self._constant(f"{start}_scale")).astype(np.float32).T

    def _from_blocks(self, node: Any) -> np.ndarray:
        """Return what ``MatMulNBits`` multiplies with: codes in blocks along F, the low half of a byte first."""
        said = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        bits, rows, columns = said.get("bits", 4), said["N"], said["K"]
        raw = self._constant(node.input[1]).reshape(rows, -1)
        codes = np.stack([raw & 15, raw >> 4], axis=-1).reshape(rows, -1) if bits == 4 else raw
        scales = np.repeat(self._constant(node.input[2]).reshape(rows, -1), said["block_size"], axis=1)
        zeros: Any = 1 << (bits - 1)
        if len(node.input) > 3 and node.input[3]:
            packed = self._constant(node.input[3]).reshape(rows, -1)
            each = np.stack([packed & 15, packed >> 4], axis=-1).reshape(rows, -1) if bits == 4 else packed
            zeros = np.repeat(each, said["block_size"], axis=1)[:, : codes.shape[1]]
        return ((codes.astype(np.float32) - zeros) * scales[:, : codes.shape[1]])[:, :columns]

    def _constant(self, name: str) -> np.ndarray:
        for one in self.proto.graph.initializer:
            if one.name == name:
                return numpy_helper.to_array(one)
        raise EngineError(f"the weights of {name}", "they are computed, not stored", "compare predictions")


def scheme_of(proto: Any) -> Scheme | None:
    """Return how most linear maps of the layers are stored; None where none is found."""
    kinds = Places(proto).products
    if not kinds:
        return None
    common = max({one.op_type for one in kinds}, key=[one.op_type for one in kinds].count)
    node = next(one for one in kinds if one.op_type == common)
    if common == "MatMul":
        return Scheme("float", 32)
    if common == "MatMulInteger":
        return Scheme("int8", 8, 8)
    bits = next((one.i for one in node.attribute if one.name == "bits"), 4)
    return Scheme("rtn", bits)


def with_changes(proto: Any, outputs: list[str], changes: Mapping[tuple[int, int, int], float]) -> Any:
    """Return a copy of a graph with more outputs, and with ``changes`` of scalars (layer, row, column).

    A change is added behind the product: the difference times the input of its column, in the channel of its row. That
    is exact however the weight is stored.
    """
    new, places = onnx.ModelProto(), Places(proto)
    new.CopyFrom(proto)
    for layer in sorted({layer for layer, _, _ in changes}):
        scalars = {place[1:]: value for place, value in changes.items() if place[0] == layer}
        _correct(new.graph, places.downs[layer], scalars, places.matrix(layer).shape[0], f"swcheck_{layer}")
    known = {one.name for one in new.graph.output}
    for name in outputs:
        if name not in known:
            new.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return new


def _correct(graph: Any, down: DownMap, scalars: Mapping[tuple[int, int], float], width: int, start: str) -> None:
    """Add to what a down projection writes, in ``width`` channels, the changes of its scalars (row, column)."""
    directions = np.zeros((len(scalars), width), np.float32)
    for number, ((row, _), change) in enumerate(scalars.items()):
        directions[number, row] = change
    columns = np.array([column for _, column in scalars], np.int64)
    for one, name in ((columns, "columns"), (directions, "directions")):
        graph.initializer.append(numpy_helper.from_array(one, f"{start}_{name}"))
    for node in graph.node:
        node.input[:] = [f"{start}_written" if name == down.written else name for name in node.input]
    place = 1 + next(number for number, node in enumerate(graph.node) if down.written in node.output)
    nodes = (
        helper.make_node("Gather", [down.read, f"{start}_columns"], [f"{start}_read"], axis=-1),
        helper.make_node("MatMul", [f"{start}_read", f"{start}_directions"], [f"{start}_change"]),
        helper.make_node("Add", [down.written, f"{start}_change"], [f"{start}_written"]),
    )
    for step, node in enumerate(nodes):
        graph.node.insert(place + step, node)
