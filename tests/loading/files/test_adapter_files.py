"""The config of an adapter is typed and belongs to its weights, or it is refused before peft sees it."""

from __future__ import annotations

import json
import os
import time

import pytest
import torch
from hypothesis import given
from safetensors.torch import save_file

from swcheck.base.errors import CheckpointError, SwcheckError, UnsafeCheckpointError
from swcheck.loading.files.adapter_files import (
    PATTERN_MEMORY,
    PATTERN_SECONDS,
    check_adapter_patterns,
    read_adapter,
)
from tests import hostile

GOOD = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "nobody/nothing", "r": 4,
    "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": ["down_proj", "q_proj"], "exclude_modules": None,
    "rank_pattern": {"down_proj": 2}, "alpha_pattern": {}, "modules_to_save": None, "layers_pattern": None,
    "fan_in_fan_out": False, "megatron_config": None,
}  # fmt: skip
NAMES = [f"model.layers.{layer}.mlp.{'a' * 40}_proj" for layer in range(3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    save_file({"a": torch.zeros(4, 16)}, folder / "adapter_model.safetensors")
    return folder


def read(folder, config):
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return read_adapter(folder)


def test_an_adapter_is_read(folder):
    """The config comes back as it is, with the names of the tensors."""
    found = read(folder, GOOD)
    assert (found.config, found.tensors) == (GOOD, {"a"})
    check_adapter_patterns(GOOD, NAMES, "an adapter")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": 7}, "peft_type is 7, not a text"),
        ({"r": 10**9}, "r is 1000000000, and the largest side of its tensors is 16"),
        ({"rank_pattern": {"down_proj": 17}}, r"rank_pattern\.down_proj is 17"),
        ({"r": 0}, "r is 0, not a whole number from 1"),
        ({"lora_alpha": "8"}, "lora_alpha is '8', not a number"),
        ({"lora_dropout": 2}, "lora_dropout is 2, not a number from 0 to 1"),
        ({"target_modules": [1]}, r"target_modules is \[1\], not a text or a list of texts"),
        ({"base_model_name_or_path": ["x"]}, "base_model_name_or_path is"),
        ({"peft_type": "L" * 65}, "not a text of at most 64 characters"),
        ({"target_modules": "x" * 10_001}, "target_modules is .*, not a text or a list of texts"),
        ({"modules_to_save": ["x"] * 100_001}, "modules_to_save is .*, not a text or a list of texts"),
        ({"rank_pattern": {"x" * 201: 17}}, f"rank_pattern.{'x' * 187} is 17"),
    ],
)
def test_a_field_that_cannot_be_is_refused(folder, changes, said):
    """The field and its value are named: peft would take memory for it, or fail deep inside."""
    with pytest.raises(CheckpointError, match=said):
        read(folder, {**GOOD, **changes})


def test_what_just_fits_is_read(folder, tmp_path):
    """A rank as large as the largest side, ranks of one, the longest pattern; weights without tensors have no rank."""
    for changes in ({"r": 16}, {"rank_pattern": {"q_proj": 1}}, {"exclude_modules": "x" * 10_000}):
        assert read(folder, {**GOOD, **changes}).config == {**GOOD, **changes}
    save_file({}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="r is 1, and the largest side of its tensors is 0"):
        read(tmp_path, {**GOOD, "r": 1})
    os.truncate(tmp_path / "adapter_config.json", 2**22 + 1)
    with pytest.raises(CheckpointError, match="4,194,305 bytes, at most 4,194,304 are read"):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "XLORA", "adapters": {"0": "nobody/pickle"}}, "the kind XLORA"),
        ({"peft_type": "MULTITASK_PROMPT_TUNING", "prompt_tuning_init_state_dict_path": "/x"}, "MULTITASK_PROMPT"),
        ({"peft_type": "SHADOW", "shadow_model": "nobody/code"}, "the kind SHADOW"),
        ({"megatron_config": {"a": 1}, "megatron_core": "antigravity"}, "megatron_config, which makes peft load"),
        ({"arrow_config": {"top_k": 1}}, "arrow_config, which makes peft load"),
    ],
)
def test_what_would_load_or_import_more_is_unsafe(folder, changes, said):
    """Kinds and fields that name other files, models or packages are refused."""
    with pytest.raises(UnsafeCheckpointError, match=said):
        read(folder, {**GOOD, **changes})


@pytest.mark.parametrize(
    ("field", "pattern"), [("target_modules", "(a+)+$"), ("rank_pattern", "("), ("layers_pattern", "[")]
)
def test_a_pattern_that_does_not_end_or_is_none(field, pattern, monkeypatch):
    """A regular expression is tried on the names of the modules, for a time."""
    monkeypatch.setattr("swcheck.loading.files.adapter_files.PATTERN_SECONDS", 0.2)
    names = ["a" * 40 + "!", *NAMES]
    start = time.monotonic()
    with pytest.raises(CheckpointError, match="the pattern"):
        check_adapter_patterns({field: {pattern: 1} if field == "rank_pattern" else pattern}, names, "an adapter")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"layers_pattern": ["ab", "("]}, r"the pattern .*: missing \), unterminated subpattern"),
        ({"modules_to_save": "a["}, r"the pattern .*a\[.*: unterminated character set"),
        ({"target_modules": "x" * 200 + "["}, f"the pattern '{'x' * 100}': unterminated character set"),
    ],
)
def test_every_pattern_is_tried(config, said):
    """One in a list, a text alone; it is shown as peft writes it, at most 100 characters of it, with the reason."""
    assert (PATTERN_SECONDS, PATTERN_MEMORY) == (5, 2**28)
    with pytest.raises(CheckpointError, match=said):
        check_adapter_patterns(config, NAMES, "an adapter")


@given(config=hostile.damaged(GOOD))
def test_any_config_is_read_or_refused(folder, config):
    """With one place of a good config replaced by anything, it is read or refused in words."""
    try:
        found = read(folder, config)
    except SwcheckError:
        return
    assert isinstance(found.config["peft_type"], str)
