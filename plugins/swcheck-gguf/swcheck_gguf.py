"""The engine ``gguf``: a GGUF file, or the reference sent through one and back.

transformers dequantizes the whole file, so the candidate has plain weights: what is checked is what the file holds.
The reference's own config is used where there is a reference, because a file does not say everything. A round trip is
written with the gguf package, Llama-like models only, into a temporary file; its K- and IQ-quants are read-only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from swcheck import engines
from swcheck.errors import CheckpointError, EngineError, OptionError
from swcheck.records import Loaded, Scheme

SCHEMES: Final = ("q8_0", "q5_0", "q5_1", "q4_0", "q4_1", "f16")
INSTALL: Final = "pip install 'gguf>=0.17'"


@dataclass(frozen=True)
class Gguf:
    """``gguf:PATH.gguf`` or ``gguf:SCHEME``."""

    name: str = "gguf"
    trust_remote_code: bool = False
    offline: bool = False

    def load(self, spec: str, *, reference: str | None, device: str | None, dtype: str | None) -> Loaded:
        file = Path(spec).expanduser()
        if spec not in SCHEMES and file.suffix != ".gguf":
            raise EngineError(f"scheme {spec!r} of gguf", f"known: a file, {', '.join(SCHEMES)}", "gguf:./model.gguf")
        if spec not in SCHEMES and not file.is_file():
            raise CheckpointError(f"gguf:{spec}", "no such file", "give the path of a .gguf file")
        if reference is None:
            raise OptionError(f"gguf:{spec}", "no reference with its tokenizer", "name one with --model")
        try:
            import gguf  # noqa: F401 - transformers asks for it
        except ImportError as error:
            raise EngineError(f"gguf:{spec}", str(error), INSTALL) from error
        base = engines.load(
            reference, device=device, dtype=dtype, trust_remote_code=self.trust_remote_code, offline=self.offline
        )
        if spec not in SCHEMES:
            return _read(file, spec, base)
        with TemporaryDirectory() as folder:
            file = Path(folder, f"{spec}.gguf")
            write(base.model, file, spec)
            return _read(file, spec, base)


ENGINE: Final = Gguf()


def write(model: Any, file: Path, scheme: str) -> None:
    """Write a Llama-like ``model``: its matrices as ``scheme``, embeddings and head as f16, vectors as f32."""
    import gguf
    import torch

    config = model.config
    if config.model_type != "llama":
        raise EngineError(
            f"gguf:{scheme}", f"a round trip of {config.model_type}", "convert it with llama.cpp: gguf:FILE"
        )
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name(str(config.name_or_path or "model").rstrip("/").rsplit("/", 1)[-1])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    types = gguf.GGMLQuantizationType
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        kind = types.F32 if tensor.ndim == 1 else types[scheme.upper()] if ".layers." in name else types.F16
        array = tensor.detach().to("cpu", torch.float32)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            array = permuted(array, heads if "q_proj" in name else groups)
        try:
            packed = gguf.quants.quantize(array.numpy(), kind)
        except ValueError as error:
            raise EngineError(f"gguf:{scheme}", f"{name}: {error}", "gguf:f16") from error
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def permuted(weight: Any, heads: int) -> Any:
    """The rows of q or k in llama.cpp's order: in each head, first and second halves interleaved."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape).contiguous()


def scheme_of(file: Path) -> Scheme:
    """What the decoder layers' matrices are stored as; where they differ, what most of the weights are."""
    import gguf

    counts: dict[str, int] = {}
    for tensor in gguf.GGUFReader(file).tensors:
        if tensor.name.startswith("blk.") and len(tensor.shape) > 1:
            counts[tensor.tensor_type.name] = counts.get(tensor.tensor_type.name, 0) + int(tensor.n_elements)
    if not counts:
        raise ValueError("no matrix in any block")
    kind = max(counts, key=lambda name: counts[name])
    if kind in {"F32", "F16", "BF16"}:
        return Scheme("float", 32 if kind == "F32" else 16)
    if kind in {"MXFP4", "NVFP4"}:
        return Scheme(kind.lower(), 4)
    found = re.search(r"\d", kind)
    bits = float(found.group()) if found else 16.0
    if kind.endswith("_0"):
        return Scheme("absmax", bits)
    return Scheme("rtn", bits) if kind.endswith("_1") else Scheme("k-quant", bits, calibrated=True)


def _read(file: Path, spec: str, base: Loaded) -> Loaded:
    """The model of ``file`` with the config of the reference, on its device and in its dtype."""
    from transformers import AutoModelForCausalLM

    place, floats, config = base.model.device, base.model.dtype, base.model.config
    try:
        scheme = scheme_of(file)
        model, info = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            config=config,
            dtype=floats,
            output_loading_info=True,
            local_files_only=True,
        )
    except Exception as error:  # a cut-off or foreign file raises nearly anything
        words = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise CheckpointError(f"gguf:{spec}", words[:300], "a whole file of the reference's architecture") from error
    lacking = sorted(info["missing_keys"])
    if lacking:
        found = f"{len(lacking)} tensors are not in it, first {lacking[0]}"
        raise CheckpointError(f"gguf:{spec}", found, "a file of the reference's architecture")
    return Loaded(model.to(place).eval(), base.tokenizer, f"gguf:{spec}", base.text, str(file), scheme)
