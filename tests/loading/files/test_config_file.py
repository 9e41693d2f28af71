"""The fields of ``config.json`` that swcheck uses have their types, or the file is refused."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given

from swcheck.base.errors import SwcheckError
from swcheck.loading import checkpoint
from swcheck.loading.checkpoint_size import checkpoint_size
from swcheck.loading.files.config_file import read_config
from swcheck.loading.scheme_from_config import missing_packages, scheme_of
from swcheck.loading.spec_from_config import spec_of
from swcheck.loading.tiny import CHECKPOINT
from tests import checkpoints, hostile

QUANTIZED = {
    "quant_method": "compressed-tensors",
    "bits": 4,
    "group_size": 128,
    "config_groups": {"a": {"weights": {"num_bits": 4, "type": "int"}, "input_activations": {"num_bits": 8}}},
    "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {"weight_dtype": "int4"}}},
    "iters": 200,
    "weights": "int8",
    "quant_config": {"weight_quant_params": {"nbits": 4}},
}
METHODS = ("compressed-tensors", "gptq", "awq", "auto-round", "torchao", "quanto", "hqq", "bitsandbytes")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": 7}, "architectures is 7, not a list"),
        ({"architectures": [7]}, r"architectures\[0\] is 7, not a text"),
        ({"model_type": ["llama"]}, "model_type is"),
        ({"quantization_config": {"quant_method": ["gptq"]}}, r"quantization_config.quant_method is \['gptq'\]"),
        ({"quantization_config": "gptq"}, "quantization_config is 'gptq', not an object"),
        ({"num_labels": 10**9}, "num_labels is 1000000000, not a whole number from 0 to 100,000"),
        ({"max_position_embeddings": "long"}, "max_position_embeddings is 'long'"),
        ({"dtype": 16}, "dtype is 16, not the name of a dtype"),
    ],
)
def test_a_field_of_another_type_is_refused(tmp_path, changes, said):
    """The field, its value and what was expected are named, before transformers sees the file."""
    folder = checkpoints.copy_of_tiny(tmp_path / "odd", checkpoints.config(**changes))
    with pytest.raises(SwcheckError, match=said):
        checkpoint.check_directory(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, and the files hold 48 tensors"),
        ({"num_hidden_layers": float("inf")}, "num_hidden_layers is inf"),
        ({"num_hidden_layers": float("nan")}, "num_hidden_layers is nan"),
        ({"text_config": {"num_hidden_layers": 10**6}}, "num_hidden_layers is 1000000"),
        ({"num_local_experts": 10**9}, "num_local_experts is 1000000000"),
    ],
)
def test_more_parts_than_the_files_hold_are_refused(tmp_path, changes, said):
    """Layers and experts are counted before transformers makes lists of them."""
    folder = checkpoints.copy_of_tiny(tmp_path / "odd", checkpoints.config(**changes))
    with pytest.raises(SwcheckError, match=said):
        checkpoint.check_directory(folder)


@given(config=hostile.damaged(json.loads((CHECKPOINT / "config.json").read_text())))
def test_any_config_is_read_or_refused(config, tmp_path_factory):
    """With one place of a good config replaced by anything, nothing that reads it ends otherwise than in words."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "model.safetensors").symlink_to(CHECKPOINT / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    with suppress(SwcheckError):
        checkpoint.check_directory(folder)
    size = checkpoint_size(folder)
    assert isinstance(size.dtype, str)
    with suppress(SwcheckError):
        assert isinstance(read_config(folder)["model_type"], str)


@given(config=hostile.damaged(QUANTIZED))
@pytest.mark.parametrize("method", METHODS)
def test_any_quantization_is_read_or_unknown(method, config):
    """Whatever a quantizer's config holds, its scheme is a plausible one or None, and nothing raises."""
    config = {**config, "quant_method": method} if isinstance(config, dict) else config
    scheme = scheme_of({"quantization_config": config})
    assert scheme is None or 0 < scheme.weight_bits <= 64
    missing_packages({"quantization_config": config})
    if isinstance(config, dict):
        assert spec_of(config) is None or ":" in spec_of(config)
