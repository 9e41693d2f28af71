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

from swcheck import engines, skip
from swcheck.errors import CheckpointError, EngineError, OptionError
from swcheck.records import Loaded, Scheme

SCHEMES: Final = ("q8_0", "q5_0", "q5_1", "q4_0", "q4_1", "f16")
FREE: Final = ("context_length", "vocab_size")
"""What may differ between a file and its reference: a longer context, a padded vocabulary."""


@dataclass(frozen=True)
class Gguf:
    """``gguf:PATH.gguf``, ``gguf:SCHEME`` or ``gguf:SCHEME,skip=NAME+NAME``."""

    name: str = "gguf"
    trust_remote_code: bool = False
    offline: bool = False

    def claims(self, path: Path) -> bool:
        """Whether a path is a GGUF file."""
        return path.suffix == ".gguf" and path.is_file()

    def load(self, spec: str, *, reference: str | None, device: str | None, dtype: str | None) -> Loaded:
        words, names = skip.parted(spec)
        scheme, names = (words, names) if words in SCHEMES else (spec, ())  # a path may hold a comma
        file = Path(spec).expanduser()
        if scheme not in SCHEMES and file.suffix != ".gguf":
            raise EngineError(f"scheme {spec!r} of gguf", f"known: a file, {', '.join(SCHEMES)}", "gguf:./model.gguf")
        if scheme not in SCHEMES and not file.is_file():
            raise CheckpointError(f"gguf:{spec}", "no such file", "give the path of a .gguf file")
        if reference is None:
            raise OptionError(f"gguf:{spec}", "no reference with its tokenizer", "name one with --model")
        try:
            import gguf  # noqa: F401 - transformers asks for it
        except ImportError as error:
            raise EngineError(f"gguf:{spec}", str(error), "pip install 'gguf>=0.17'") from error
        base = engines.load(
            reference, device=device, dtype=dtype, trust_remote_code=self.trust_remote_code, offline=self.offline
        )
        if scheme not in SCHEMES:
            return _read(file, spec, base)
        kept = skip.linear_maps(f"gguf:{spec}", base.model, names)
        with TemporaryDirectory() as folder:
            file = Path(folder, f"{scheme}.gguf")
            write(base.model, file, scheme, kept)
            return _read(file, spec, base)


ENGINE: Final = Gguf()


def write(model: Any, file: Path, scheme: str, kept: tuple[str, ...] = ()) -> None:
    """Write a Llama-like ``model``: matrices as ``scheme``; those ``kept``, embeddings and head as f16, vectors as f32."""
    import gguf
    import torch

    config = model.config
    if config.model_type != "llama":
        raise EngineError(
            f"gguf:{scheme}", f"a round trip of {config.model_type}", "convert it with llama.cpp: gguf:FILE"
        )
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name(str(config.name_or_path or "model").rstrip("/").rsplit("/", 1)[-1])
    for key, value in facts(config).items():
        (writer.add_uint32 if isinstance(value, int) else writer.add_float32)(f"llama.{key}", value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    types = gguf.GGMLQuantizationType
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        plain = ".layers." not in name or name.removesuffix(".weight") in kept
        kind = types.F32 if tensor.ndim == 1 else types.F16 if plain else types[scheme.upper()]
        array = tensor.detach().to("cpu", torch.float32)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            array = permuted(array, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
        try:
            packed = gguf.quants.quantize(array.numpy(), kind)
        except (ValueError, gguf.quants.QuantError) as error:
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
    attempt = "a whole file of the reference's architecture"
    try:
        scheme, said = scheme_of(file), _said(file)
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
        raise CheckpointError(f"gguf:{spec}", words[:300], attempt) from error
    ours, theirs = model.state_dict(), base.model.state_dict()
    wrong = [f"no {name}" for name in sorted(info["missing_keys"])]
    wrong += [f"{name}: {tuple(t.shape)}" for name, t in ours.items() if t.shape != theirs[name].shape]
    meant = {key: value for key, value in facts(config).items() if key not in FREE}
    wrong += [f"{key} = {said[key]:g}" for key, value in meant.items() if abs(said.get(key, value) / value - 1) > 1e-3]
    if wrong:
        raise CheckpointError(f"gguf:{spec}", f"not the reference's: {', '.join(wrong[:3])}", attempt)
    return Loaded(model.to(place).eval(), base.tokenizer, f"gguf:{spec}", base.text, str(file), scheme)


def facts(config: Any) -> dict[str, float]:
    """What a file says about a model besides its weights, as far as this config has it."""
    named = {
        "context_length": "max_position_embeddings",
        "vocab_size": "vocab_size",
        "block_count": "num_hidden_layers",
        "embedding_length": "hidden_size",
        "feed_forward_length": "intermediate_size",
        "attention.head_count": "num_attention_heads",
        "attention.head_count_kv": "num_key_value_heads",
        "rope.dimension_count": "head_dim",
        "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    }
    found = {key: getattr(config, name, None) for key, name in named.items()}
    found["rope.freq_base"] = (getattr(config, "rope_parameters", None) or {}).get("rope_theta")
    return {key: value for key, value in found.items() if value}


def _said(file: Path) -> dict[str, float]:
    """The same, as the file has it: llama.cpp computes with these, transformers would not look."""
    import gguf

    fields = gguf.GGUFReader(file).fields
    values = {name.partition(".")[2]: field.contents() for name, field in fields.items()}
    return {key: float(value) for key, value in values.items() if isinstance(value, int | float)}
