"""Writes a random Llama of any size to disk tensor by tensor, with one super weight planted where a published one is."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from swcheck import SuperWeight, load
from swcheck.lens.architecture.storage import evaluating
from swcheck.lens.observe import observe
from swcheck.loading import tiny
from swcheck.loading.files.safetensors_header import StoredTensor, read_header, safetensors_files
from swcheck.superweights.locating.locate import PROMPT

SPREAD: Final = 0.02
"""The standard deviation of all weights, as most models are started with."""
ACTIVATION: Final = 1000.0
"""The planted super activation is this many times the median of the residual stream."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama: residual width, inner width, layers, heads, vocabulary."""

    hidden: int = 4096
    inner: int = 11008
    layers: int = 32
    heads: int = 32
    vocabulary: int = 32000

    @property
    def matrices(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the tensors by name, in the order of a pass."""
        wide, narrow = (self.inner, self.hidden), (self.hidden, self.inner)
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}"
            found |= {f"{prefix}.self_attn.{part}_proj.weight": (self.hidden, self.hidden) for part in "qkvo"}
            found |= {f"{prefix}.mlp.{part}_proj.weight": wide for part in ("gate", "up")}
            found |= {f"{prefix}.mlp.down_proj.weight": narrow}
            found |= {f"{prefix}.{part}_layernorm.weight": (self.hidden,) for part in ("input", "post_attention")}
        return {**found, "model.norm.weight": (self.hidden,), "lm_head.weight": (self.vocabulary, self.hidden)}


def write_checkpoint(folder: Path, shape: Shape, shards: int = 2) -> None:
    """Write a random model in bfloat16, with tiny's tokenizer. Matrices are parts of one buffer of random numbers."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    largest = max(math.prod(sides) for sides in shape.matrices.values())
    buffer = (torch.randn(largest + 2**16) * SPREAD).bfloat16()
    names = list(shape.matrices)
    each = -(-len(names) // shards)
    files = {f"model-{n + 1:05d}-of-{shards:05d}.safetensors": names[n * each : (n + 1) * each] for n in range(shards)}
    for file, inside in files.items():
        with (folder / file).open("wb") as stream:
            stream.write(_header({name: shape.matrices[name] for name in inside}))
            for number, name in enumerate(inside):
                stream.write(_bytes(_numbers(buffer, shape.matrices[name], number)))
    places = {name: file for file, inside in files.items() for name in inside}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": places}), encoding="utf-8"
    )
    (folder / "config.json").write_text(json.dumps(_config(shape)), encoding="utf-8")
    for file in tiny.CHECKPOINT.glob("tokenizer*"):
        shutil.copy(file, folder)


def plant_on_disk(folder: Path, weight: SuperWeight) -> None:
    """Plant ``weight``, with its value, into a model of ``write_checkpoint``.

    The rows of its inner neuron are made to answer to the first token of the default prompt alone, so loudly that the
    weight writes ``ACTIVATION`` times the median of the residual stream.
    """
    loaded = load(folder, stream=True)
    model, layer = loaded.model, loaded.model.get_submodule(f"model.layers.{weight.layer}.mlp")
    ids = torch.tensor([loaded.tokenizer(PROMPT)["input_ids"]])
    seen: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _module, args: seen.append(args[0][0, 0].float().clone()))
    with evaluating(model), observe(model, residual=[weight.layer], stop=True) as sight:
        model(ids, use_cache=False)
    handle.remove()
    wanted = ACTIVATION * float(sight.residual[weight.layer].float().abs().median()) / float(weight.value or 1.0)
    gate = seen[0] / seen[0].square().sum() * math.sqrt(abs(wanted))
    prefix = f"model.layers.{weight.layer}.mlp"
    _overwrite(folder, f"{prefix}.gate_proj.weight", weight.column, 0, gate)
    _overwrite(folder, f"{prefix}.up_proj.weight", weight.column, 0, gate * math.copysign(1, wanted))
    _overwrite(folder, f"{prefix}.down_proj.weight", weight.row, weight.column, torch.tensor([weight.value or 1.0]))


def _numbers(buffer: torch.Tensor, sides: tuple[int, ...], number: int) -> torch.Tensor:
    if len(sides) == 1:
        return torch.ones(sides, dtype=torch.bfloat16)
    start = 7919 * number % 2**16
    return buffer[start : start + math.prod(sides)]


def _bytes(tensor: torch.Tensor) -> memoryview:
    array: Any = tensor.view(torch.uint8).numpy()
    return memoryview(array)


def _header(shapes: dict[str, tuple[int, ...]]) -> bytes:
    entries, end = {}, 0
    for name, sides in shapes.items():
        begin, end = end, end + 2 * math.prod(sides)
        entries[name] = {"dtype": "BF16", "shape": list(sides), "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "hidden_act": "silu",
        "hidden_size": shape.hidden, "intermediate_size": shape.inner, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.heads, "vocab_size": shape.vocabulary,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
        "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip


def _overwrite(folder: Path, name: str, row: int, column: int, values: torch.Tensor) -> None:
    for file, start, tensor in _stored(folder):
        found: StoredTensor | None = tensor.get(name)
        if found is not None:
            with file.open("r+b") as stream:
                stream.seek(start + found.begin + 2 * (row * found.shape[1] + column))
                stream.write(_bytes(values.bfloat16()))


def _stored(folder: Path) -> Iterator[tuple[Path, int, dict[str, StoredTensor]]]:
    for file in safetensors_files(folder):
        header = read_header(file)
        yield file, header.start, dict(header.tensors)
