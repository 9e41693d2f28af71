"""The engine ``gguf``: a GGUF file, or the reference sent through one and back.

transformers dequantizes the whole file, so the candidate has plain weights: what is checked is what the file holds.
The reference's own config is used where there is a reference, because a file does not say everything. A round trip is
written with the gguf package, Llama-like models only, into a temporary file; its K- and IQ-quants are read-only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from swcheck import (
    CheckpointError,
    EngineError,
    EngineRequest,
    Loaded,
    Scheme,
    check_packages,
    read_gguf_header,
    read_request,
)

SCHEMES: Final = ("q8_0", "q5_0", "q5_1", "q4_0", "q4_1", "f16")
PACKAGES: Final = (("gguf", "gguf>=0.17"), ("accelerate", "accelerate>=1.1"))
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

    def check(self, spec: str) -> EngineRequest:
        """Raise what ``load`` does for a file that is not there, another scheme, or without its package."""
        file = Path(spec).expanduser()
        if file.suffix != ".gguf":
            return read_request("gguf", spec, ("FILE.gguf", *SCHEMES), packages=PACKAGES)
        if not file.exists():
            raise CheckpointError(f"gguf:{spec}", "no such file", "give the path of a .gguf file")
        scheme_of(file)
        check_packages(f"gguf:{spec}", PACKAGES)
        return EngineRequest("gguf", spec, spec)

    def load(self, spec: str, *, reference: str | None, device: str | None, dtype: str | None) -> Loaded:
        asked = self.check(spec)
        base = asked.load_reference(reference, self, device=device, dtype=dtype)
        if asked.scheme not in SCHEMES:
            return _read(Path(spec).expanduser(), spec, base)
        with TemporaryDirectory() as folder:
            file = Path(folder, f"{asked.scheme}.gguf")
            write(base.model, file, asked.scheme, asked.modules_to_skip(base.model))
            return _read(file, spec, base)


ENGINE: Final = Gguf()


def encode(array: Any, kind: Any) -> Any:
    """Return a tensor in a type that the gguf package can encode."""
    import gguf

    return gguf.quants.quantize(array, kind)


def write(
    model: Any,
    file: Path,
    scheme: str,
    kept: tuple[str, ...] = (),
    *,
    plain: Any = None,
    encode: Callable[[Any, Any], Any] = encode,
    extra: Callable[[Any], None] = lambda _writer: None,
) -> None:
    """Write a Llama-like ``model``: matrices as ``scheme``; those ``kept``, embeddings and head as f16, vectors as f32.

    ``plain`` is another type than f16, ``encode`` another encoder, and ``extra`` writes further fields.
    """
    import gguf
    import torch

    config = model.config
    if config.model_type != "llama":
        attempt = "convert it with llama.cpp: gguf:FILE"
        raise EngineError(f"gguf:{scheme}", f"a round trip of {config.model_type}", attempt)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name(str(config.name_or_path or "model").rstrip("/").rsplit("/", 1)[-1])
    for key, value in facts(config).items():
        (writer.add_uint32 if isinstance(value, int) else writer.add_float32)(f"llama.{key}", value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    types = gguf.GGMLQuantizationType
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        is_plain = ".layers." not in name or name.removesuffix(".weight") in kept
        kind = types.F32 if tensor.ndim == 1 else (plain or types.F16) if is_plain else types[scheme.upper()]
        array = tensor.detach().to("cpu", torch.float32)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            array = permuted(array, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
        try:
            packed = encode(array.numpy(), kind)
        except (ValueError, gguf.quants.QuantError) as error:
            raise EngineError(f"gguf:{scheme}", f"{name}: {error}", "gguf:f16") from error
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), packed, raw_dtype=kind)
    extra(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def permuted(weight: Any, heads: int) -> Any:
    """The rows of q or k in llama.cpp's order: in each head, first and second halves interleaved."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape).contiguous()


def scheme_of(file: Path) -> Scheme:
    """What the decoder layers' matrices are stored as; where they differ, what most of the weights are.

    Raises ``CheckpointError`` for a file that is no whole one, or has no such matrix.
    """
    counts: Counter[str] = Counter()
    for name, tensor in read_gguf_header(file).tensors.items():
        if name.startswith("blk.") and len(tensor.shape) > 1:
            counts[tensor.type] += tensor.count
    if not counts:
        raise CheckpointError(f"gguf:{file}", "no matrix in any block", "give the file of a language model")
    kind = counts.most_common(1)[0][0]
    if kind in {"F32", "F16", "BF16"}:
        return Scheme("float", 32 if kind == "F32" else 16)
    if kind in {"MXFP4", "NVFP4"}:
        return Scheme(kind.lower(), 4)
    method = {"_0": "absmax", "_1": "rtn"}.get(kind[-2:], "k-quant")
    bits = next((float(sign) for sign in kind if sign.isdigit()), 16.0)
    return Scheme(method, bits, calibrated=method == "k-quant")


def _read(file: Path, spec: str, base: Loaded) -> Loaded:
    """The model of ``file`` with the config of the reference, on its device and in its dtype."""
    from transformers import AutoModelForCausalLM

    place, floats, config = base.model.device, base.model.dtype, base.model.config
    base.model.to("meta")  # one of the two models at a time
    attempt = "a whole file of the reference's architecture"
    try:
        scheme, said = scheme_of(file), _said(file)
        options = {"config": config, "dtype": floats, "output_loading_info": True, "local_files_only": True}
        with _alone(file) as folder:
            model, info = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, **options)
    except CheckpointError:
        raise
    except Exception as error:  # a foreign file raises nearly anything
        words = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise CheckpointError(f"gguf:{spec}", words[:300], attempt) from error
    ours, theirs = model.state_dict(), base.model.state_dict()
    wrong = [f"no {name}" for name in sorted(info["missing_keys"])]
    wrong += [f"{name}: {tuple(t.shape)}" for name, t in ours.items() if t.shape != theirs[name].shape]
    meant = {key: value for key, value in facts(config).items() if key not in FREE}
    wrong += [
        f"{key} = {said[key]:g}" for key, value in meant.items() if not abs(said.get(key, value) / value - 1) <= 1e-3
    ]
    if wrong:
        raise CheckpointError(f"gguf:{spec}", f"not the reference's: {', '.join(wrong[:3])}", attempt)
    return Loaded(model.to(place).eval(), base.tokenizer, f"gguf:{spec}", base.text, str(file), scheme)


def facts(config: Any) -> dict[str, float]:
    """What a file says about a model besides its weights, as far as this config has it, by transformers' own table."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    rope: Any = getattr(config, "rope_parameters", None) or {}
    names = {key: name for key, name in GGUF_CONFIG_MAPPING["llama"].items() if name}
    found = {key: getattr(config, name, None) or rope.get(name) for key, name in names.items()}
    return {key: value for key, value in found.items() if value}


def _said(file: Path) -> dict[str, float]:
    """The same, as the file has it: llama.cpp computes with these, transformers would not look."""
    header = read_gguf_header(file)
    prefix = f"{header.facts.get('general.architecture')}."
    said = {key.removeprefix(prefix): value for key, value in header.facts.items() if key.startswith(prefix)}
    return {key: float(value) for key, value in said.items() if isinstance(value, int | float)}


@contextmanager
def _alone(file: Path) -> Iterator[str]:
    """A folder that holds the file and nothing else: beside it transformers would read an adapter, and what that names."""
    with TemporaryDirectory() as folder:
        Path(folder, file.name).symlink_to(file.resolve())
        yield folder
