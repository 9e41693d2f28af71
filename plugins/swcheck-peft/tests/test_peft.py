"""peft for real: adapters, merged and not, pass the shared check; what is no adapter for this model is refused."""

from __future__ import annotations

import json
import os
import shutil
import sys

import pytest
import swcheck_peft
import torch
from peft import LoraConfig, get_peft_model

import swcheck
from swcheck import (
    CheckpointError,
    EngineError,
    OptionError,
    Scheme,
    SuperWeight,
    UnsafeCheckpointError,
    anatomy,
    check_engine,
    plain_weight,
)
from swcheck.loading import engines
from swcheck.testing.conformance import save_narrowed_tiny

WEIGHT = SuperWeight(1, 97, 301)
IDS = torch.tensor([[0, 5, 9, 33, 2, 77, 130]])


def load(spec, reference="tiny"):
    return swcheck_peft.ENGINE.load(str(spec), reference=reference, device="cpu", dtype=None)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A LoRA adapter that writes into down projections, with the super weight itself raised by 0.5."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=4, target_modules=["down_proj", "q_proj"])
    model = get_peft_model(swcheck.load("tiny", device="cpu").model, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.01)
        if "layers.1.mlp.down_proj.lora_A" in name:
            parameter.data.zero_()[0, WEIGHT.column] = 1.0
        if "layers.1.mlp.down_proj.lora_B" in name:
            parameter.data.zero_()[WEIGHT.row, 0] = 0.5
    model.save_pretrained(folder)
    return folder


def test_conformance(adapter):
    """Beside the weights and merged into them, what reads as the super weight is base and adapter together."""
    for reading in check_engine("peft", [str(adapter), f"{adapter},merged"]):
        assert reading.contribution == pytest.approx(3.125, rel=1e-4)
        assert reading.one_hot == pytest.approx(3.125, rel=1e-4)


def test_an_adapter_needs_no_prefix(adapter, tmp_path):
    """A directory with an adapter's config is this engine's, one with a model's config beside it is not."""
    assert engines.route(str(adapter)) == ("peft", str(adapter))
    assert swcheck.load(str(adapter), reference="tiny", device="cpu").scheme == Scheme("lora", 32, activation_bits=32)
    for name in ("adapter_config.json", "config.json"):
        (tmp_path / name).write_text("{}")
    assert not swcheck_peft.ENGINE.claims(tmp_path)
    assert not swcheck_peft.ENGINE.claims(tmp_path / "nowhere")


def test_half_precision(adapter):
    """In bfloat16 as well."""
    check_engine("peft", [str(adapter), f"{adapter},merged"], dtype="bfloat16")


def test_merged_and_unmerged_are_one_model(adapter):
    """The two ways to release an adapter answer alike."""
    one, other = load(adapter), load(f"{adapter},merged")
    with torch.no_grad():
        assert torch.allclose(one.model(IDS).logits, other.model(IDS).logits, rtol=1e-4, atol=1e-4)
    assert plain_weight(anatomy(one.model).down_projections[1]) is None
    assert plain_weight(anatomy(other.model).down_projections[1]) is not None
    assert one.scheme == Scheme("lora", 32, activation_bits=32)


@pytest.mark.parametrize("suffix", ["", ",merged"])
def test_skip_leaves_the_adapter_out(adapter, suffix):
    """What is named stays the reference's; the adapter works everywhere else."""
    ours = load(f"{adapter}{suffix},skip=model.layers.1.mlp.down_proj")
    theirs = swcheck.load("tiny", device="cpu").model
    changed = []
    x = torch.randn(3, 512, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for number, (own, published) in enumerate(
            zip(anatomy(ours.model).down_projections, anatomy(theirs).down_projections, strict=True)
        ):
            changed += [] if torch.equal(own(x), published(x)) else [number]
    assert changed == [0, 2, 3, 4]


def test_skip_of_what_is_not_there(adapter):
    """A name without a linear map is refused."""
    with pytest.raises(EngineError, match=r"no linear map in this model is 'model\.layers\.9'"):
        load(f"{adapter},skip=model.layers.9")


def test_another_base_model(adapter, tmp_path):
    """Widths that do not match are an error, whatever name the adapter's config gives."""
    with pytest.raises(CheckpointError, match="size mismatch"):
        load(adapter, save_narrowed_tiny(tmp_path, 480))


def test_a_pickle(adapter, tmp_path):
    """An adapter that would run code on loading is not read."""
    shutil.copy(adapter / "adapter_config.json", tmp_path)
    torch.save({}, tmp_path / "adapter_model.bin")
    with pytest.raises(UnsafeCheckpointError, match="pickle"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "JSON in"), ("[]", "not an object"), ("{}", "not an object with peft_type"), ('"lora"', "not an object")],
)
def test_a_malformed_config(adapter, tmp_path, text, words):
    """A config that is none is an error of the directory."""
    shutil.copy(adapter / "adapter_model.safetensors", tmp_path)
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=words):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"peft_type": "ROLA"}, UnsafeCheckpointError, "the kind ROLA"),
        ({"peft_type": "XLORA", "adapters": {"0": "nobody/nothing"}}, UnsafeCheckpointError, "the kind XLORA"),
        ({"megatron_config": {"a": 1}, "megatron_core": "this"}, UnsafeCheckpointError, "megatron_config"),
        ({"r": 10**9}, CheckpointError, "r is 1000000000, and the largest side"),
        ({"target_modules": "("}, CheckpointError, "the pattern"),
        ({"target_modules": ["nowhere"]}, CheckpointError, "nowhere"),
        ({"bias": 7}, CheckpointError, "adapter"),
        ({"layers_to_transform": "all"}, CheckpointError, "adapter"),
        ({"use_dora": True}, CheckpointError, "tensors are missing, first .*magnitude"),
        ({"target_modules": ["down_proj"]}, CheckpointError, "have no place in the base model, first .*q_proj"),
    ],
)
def test_a_hostile_config(adapter, tmp_path, changes, error, words):
    """What would take memory, import a package or load more is refused in words; so is what peft itself refuses."""
    shutil.copytree(adapter, tmp_path / "other")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (tmp_path / "other" / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(error, match=words):
        load(tmp_path / "other")


def test_the_base_that_a_config_names_is_not_fetched(adapter, tmp_path):
    """The base model is the reference: a hub id in the config is neither loaded nor looked for."""
    shutil.copytree(adapter, tmp_path / "other")
    config = json.loads((adapter / "adapter_config.json").read_text())
    more = {"base_model_name_or_path": "nobody/nothing", "revision": "main"}
    (tmp_path / "other" / "adapter_config.json").write_text(json.dumps({**config, **more}))
    assert load(tmp_path / "other").scheme == Scheme("lora", 32, activation_bits=32)


def test_damaged_weights(adapter, tmp_path):
    """Weights that are cut off, and what is no regular file in the place of one, are refused before peft."""
    shutil.copytree(adapter, tmp_path / "other")
    weights = tmp_path / "other" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="the file is cut off"):
        load(tmp_path / "other")
    weights.unlink()
    os.mkfifo(weights)
    with pytest.raises(CheckpointError, match="a named pipe"):
        load(tmp_path / "other")


def test_no_weights(adapter, tmp_path):
    """A config alone is no adapter."""
    shutil.copy(adapter / "adapter_config.json", tmp_path)
    with pytest.raises(CheckpointError, match=r"no adapter_model\.safetensors"):
        load(tmp_path)


def test_no_adapter(tmp_path):
    """What is no adapter directory is refused, with what it is."""
    with pytest.raises(CheckpointError, match=r"no adapter_config\.json in it"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match="no such directory"):
        load(tmp_path / "nowhere")


def test_what_is_no_adapter_is_said_at_once(adapter):
    """Before anything is loaded, and in the words of a load."""
    for refuse in (swcheck_peft.ENGINE.check, load):
        with pytest.raises(CheckpointError, match="no such directory"):
            refuse(f"{adapter}x")
        with pytest.raises(OptionError, match="skip= without a module"):
            refuse(f"{adapter},skip=")
    swcheck_peft.ENGINE.check(f"{adapter},merged")


def test_no_reference(adapter):
    """An adapter needs a model to sit on."""
    with pytest.raises(OptionError, match="no reference"):
        load(adapter, None)


def test_without_the_package(adapter, monkeypatch):
    """The install line is given."""
    monkeypatch.setitem(sys.modules, "peft", None)
    for refuse in (swcheck_peft.ENGINE.check, load):
        with pytest.raises(EngineError, match=r"pip install 'peft>="):
            refuse(str(adapter))
