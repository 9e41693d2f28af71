"""The fields of ``config.json`` that swcheck uses have their types, or the file is refused."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
from hypothesis import given

from swcheck.base.errors import SwcheckError
from swcheck.loading import checkpoint
from swcheck.loading.files.checkpoint_size import checkpoint_size
from swcheck.loading.files.config_file import (
    LARGEST_CONFIG,
    LONGEST_NAME,
    MORE_EXPERTS,
    MORE_LAYERS,
    MOST_LABELS,
    check_counts,
    read_config,
)
from swcheck.loading.files.safetensors_header import StoredTensor
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


def counted(config, *shapes):
    """Whether a config is refused for what it counts, beside tensors of these shapes."""
    tensors = [StoredTensor("F32", shape, 0, 4 * math.prod(shape)) for shape in shapes]
    try:
        check_counts(config, tensors, Path("config.json"))
    except SwcheckError:
        return False
    return True


def test_a_config_may_count_what_the_files_could_hold():
    """A few layers and experts always, else as many as there are tensors; experts also as many as a stack has."""
    matrix = (5000, 2)
    assert counted({"n_layer": MORE_LAYERS}, matrix)
    assert not counted({"n_layer": MORE_LAYERS + 1}, matrix)
    assert counted({"num_layers": MORE_LAYERS + 1}, *[matrix] * (MORE_LAYERS + 1))
    assert counted({"num_experts": MORE_EXPERTS}, matrix)
    assert not counted({"num_experts": MORE_EXPERTS + 1}, matrix, (2, MORE_EXPERTS + 1, 2))
    assert counted({"num_experts": MORE_EXPERTS + 1}, matrix, (MORE_EXPERTS + 1, 2, 2), (2, 2, 2))
    assert not counted({"num_experts": MORE_EXPERTS + 1})
    assert counted({"num_experts": MORE_EXPERTS + 1}, *[matrix] * (MORE_EXPERTS + 1))


def test_the_bounds_of_a_config_are_those_that_were_chosen():
    """Written a second time, as each has its reason."""
    assert (LARGEST_CONFIG, MORE_LAYERS, MORE_EXPERTS, LONGEST_NAME, MOST_LABELS) == (2**24, 64, 1024, 256, 100_000)


def test_the_longest_names_and_lists_are_read(tmp_path):
    """One more than that is refused."""
    for names, longest in ((64, LONGEST_NAME), (65, LONGEST_NAME), (64, LONGEST_NAME + 1)):
        config = {"model_type": "x", "architectures": ["x" * longest] * names}
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(SwcheckError) if (names, longest) != (64, LONGEST_NAME) else nullcontext():
            assert read_config(tmp_path) == config
