"""``swcheck preflight``: what a scheme will stumble over is seen in the headers; what it will not is not."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from swcheck.base.errors import CheckpointError
from swcheck.run import preflight
from swcheck.run.outline import Outline
from swcheck.run.preflight import gate_lines, group_size, remarks
from swcheck.run.session import Session
from swcheck.run.settings import Settings
from swcheck.superweights.measurements.located import located
from tests import checkpoints


@pytest.fixture
def checkpoint(tmp_path):
    """Write a checkpoint of headers that matter: two layers of matrices, an embedding, a head."""

    def write(inner=96, fused=False, dtype="float32"):
        tensors = {"model.embed_tokens.weight": torch.zeros(7, 50), "lm_head.weight": torch.zeros(7, 50)}
        for layer in range(2):
            tensors[f"model.layers.{layer}.mlp.down_proj.weight"] = torch.zeros(64, inner)
            tensors[f"model.layers.{layer}.mlp.up_proj.weight"] = torch.zeros(inner, 64)
            if fused:
                tensors[f"model.layers.{layer}.mlp.experts.down_proj"] = torch.zeros(4, 64, inner)
        save_file(tensors, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "dtype": dtype}))
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("scheme", "size"),
    [
        ("W4A16-g128", 128), ("gptq:bits=4,group=64", 64), ("rtn:bits=4,block=32", 32), ("group_size=128", 128),
        ("q4_k", 256), ("llamacpp:q2_k", 256), ("gguf:q8_0", 32), ("nvfp4", 16), ("mxfp4", 32), ("int8-weight-only", None),
        ("", None), ("rtn:bits=4", None), ("gguf:4", None),
    ],
)  # fmt: skip
def test_the_size_of_a_group_is_read_from_the_words_of_any_tool(scheme, size):
    """As a number where the scheme has one, by its format where that fixes it, else not at all."""
    assert group_size(scheme) == size


def test_a_width_that_groups_do_not_divide_is_named_with_one_that_do(checkpoint):
    """The matrices of layers, without the number of the layer; embedding and head, whose width fits neither, are not."""
    [remark] = remarks(checkpoint(), "W4A16-g64")
    assert str(remark) == (
        "group size: 96 input channels are no multiple of 64: model.layers.*.mlp.down_proj (2 tensors);"
        " groups of 32, or leave these matrices out"
    )
    assert remark.blocks
    assert remarks(checkpoint(), "W4A16-g32") == []


@given(st.integers(1, 300), st.integers(1, 300))
def test_there_is_a_remark_exactly_if_the_width_is_no_multiple(width, size):
    """For every width and size of a group, and the advice divides the width."""
    seen = Outline({"model.layers.0.mlp.up_proj.weight": (4, width)}, {}, "float32", None)
    found = list(preflight._widths(seen, size))
    assert bool(found) == bool(width % size)
    assert all(width % int(remark.attempt.split()[2].rstrip(",")) == 0 for remark in found)


def test_fused_experts_are_told_if_something_is_to_be_quantized(checkpoint):
    """Their share of the parameters is said, since a quantizer may skip them in silence."""
    [remark] = remarks(checkpoint(fused=True), "W4A16-g32")
    assert str(remark).startswith("fused experts: 66% of the parameters are experts in one tensor a layer")
    assert remarks(checkpoint(fused=True)) == []


def test_range_and_memory_are_remarks_that_block_nothing(checkpoint, monkeypatch):
    """A bfloat16 checkpoint in float16 may overflow; weights beyond the memory are said with both sizes."""
    monkeypatch.setattr(preflight, "machine_memory", lambda: 10_000)
    found = remarks(checkpoint(dtype="bfloat16"), dtype="float16")
    assert [remark.what for remark in found] == ["range", "memory"]
    assert not any(remark.blocks for remark in found)
    assert [remark.what for remark in remarks(checkpoint(dtype="float16"), dtype="float16")] == ["memory"]


def test_a_gate_begins_with_what_its_quantizer_will_stumble_over(checkpoint, monkeypatch):
    """A candidate that an engine makes is looked at, one that is read from files and the built-in quantizer are not."""
    folder = str(checkpoint())
    monkeypatch.setattr("swcheck.loading.engines.needs_reference", lambda spec: ":" in spec)
    settings = Settings(models=(folder,), candidates=("gptq:bits=4,group=64", "rtn:bits=4,block=64", folder))
    [line] = gate_lines(settings)
    assert line.startswith("gptq:bits=4,group=64: group size: 96 input channels are no multiple of 64")


def config_of(folder, **fields):
    """Write a ``config.json`` without weights beside it."""
    small = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "vocab_size": 64,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({"dtype": "bfloat16", **small, **fields}))
    return folder


def test_a_config_alone_will_do(tmp_path):
    """Before a download the shapes are those of the model that transformers would build, without its memory."""
    [remark] = remarks(config_of(tmp_path, model_type="llama"), "W4A16-g64")
    assert "96 input channels are no multiple of 64: model.layers.*.mlp.down_proj (2 tensors)" in str(remark)


def test_experts_that_transformers_fuses_are_told_too(tmp_path):
    """Published files hold them apart, and transformers loads them as one tensor a layer: a quantizer of nn.Linear skips them."""
    config_of(tmp_path, model_type="mixtral", num_local_experts=2)
    assert "once transformers" not in str(remarks(tmp_path, "int8"))  # of a config alone they are seen as built
    apart = {f"model.layers.0.block_sparse_moe.experts.{n}.w2.weight": torch.zeros(64, 96) for n in range(2)}
    save_file(apart, tmp_path / "model.safetensors")
    [remark] = remarks(tmp_path, "int8")
    assert remark.what == "fused experts"
    assert "experts in one tensor a layer once transformers has loaded them" in remark.words
    assert remark.blocks


def test_transposed_layers_are_told_and_their_inputs_are_the_rows(tmp_path):
    """GPT-2 keeps its matrices as Conv1D (in, out): no nn.Linear, and the first side is what groups have to divide."""
    config_of(tmp_path, model_type="gpt2")
    save_file({"h.0.attn.c_attn.weight": torch.zeros(48, 64)}, tmp_path / "model.safetensors")
    width, kind = remarks(tmp_path, "W4A16-g32")
    assert str(width).startswith("group size: 48 input channels are no multiple of 32")
    assert str(kind).startswith("transposed layers: its matrices are Conv1D, no nn.Linear: h.*.attn.c_attn")


@pytest.mark.parametrize(
    ("quantization", "generation", "said"),
    [
        ({"kv_cache_scheme": {"num_bits": 8, "type": "float"}}, {}, "its config asks for 8 bits (float); a runtime that lacks it"),
        ({}, {"cache_implementation": "quantized", "cache_config": {"backend": "nonesuch"}}, "which transformers lacks; transformers has quanto and hqq"),
        ({}, {"cache_implementation": "quantized", "cache_config": {"backend": "HQQ"}}, "by hqq, which is not installed; pip install hqq"),
        ({}, {"cache_implementation": "static"}, ""),
        ({"kv_cache_scheme": None}, [], ""),
    ],
)  # fmt: skip
def test_a_cache_that_is_not_applied_is_told(checkpoint, monkeypatch, quantization, generation, said):
    """A scheme of the cache that transformers lacks, or whose package is missing; no other one."""
    monkeypatch.setattr(preflight, "is_installed", lambda module: module == "optimum.quanto")
    folder = checkpoint()
    config = {"model_type": "llama", "quantization_config": {"quant_method": "compressed-tensors", **quantization}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(generation))
    found = remarks(folder)
    assert (said in str(*found)) if said else found == []
    assert all(remark.what == "KV cache" and remark.blocks for remark in found)


def test_a_known_activation_beyond_float16_blocks_it(checkpoint, tmp_path):
    """What was measured decides; of a type that is known for it the type does; one that fits is no remark."""
    folder = checkpoint(dtype="bfloat16")
    [remark] = remarks(folder, dtype="float16", known=70_000.0)
    assert str(remark) == (
        "range: float16 ends at 65,504, and a super activation of this model is 70,000; bfloat16 or float32"
    )
    assert remark.blocks
    assert remarks(folder, dtype="float16", known=396.8) == []
    assert remarks(folder, known=70_000.0) == []
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3_text", "dtype": "bfloat16"}))
    assert "Gemma 3 overflows it" in str(*remarks(folder, dtype="float16"))


def test_a_gate_in_float16_begins_with_the_activation_that_a_baseline_has(checkpoint, monkeypatch, tmp_path):
    """The reference's own measurement is what the candidate's dtype is held against."""
    monkeypatch.setattr(preflight, "known_activation", lambda *_: 70_000.0)
    other = tmp_path / "half"
    other.mkdir()
    folder = str(checkpoint(dtype="bfloat16"))
    save_file({"w": torch.zeros(2, 2)}, other / "model.safetensors")
    (other / "config.json").write_text(json.dumps({"model_type": "llama", "dtype": "float16"}))
    [line] = gate_lines(Settings(models=(folder,), candidates=(str(other),)))
    assert line.startswith(f"{other}: range: float16 ends at 65,504")


@pytest.mark.slow
def test_the_activation_of_an_earlier_run_is_known(monkeypatch, tmp_path):
    """It is read from what that run has kept, in the checkpoint's dtype; without one nothing is known."""
    monkeypatch.setenv("SWCHECK_CACHE_DIR", str(tmp_path / "cache"))
    settings = Settings(models=("tiny",))
    assert preflight.known_activation(settings, "tiny") is None
    session = Session(settings)
    located(session.reference("tiny"))
    session.free()
    known = preflight.known_activation(replace(settings, dtype="float16"), "tiny")
    assert known == pytest.approx(396.8, abs=0.1)


def test_a_directory_without_weights_and_config_is_refused(tmp_path):
    """There is nothing to look at; a config that cannot be built says why."""
    with pytest.raises(CheckpointError, match="no safetensors file"):
        remarks(tmp_path)
    with pytest.raises(CheckpointError, match="a config.json that is not built"):
        remarks(config_of(tmp_path, model_type="nonesuch"))
    with pytest.raises(CheckpointError, match="more than 1,024 layers"):
        remarks(config_of(tmp_path, model_type="llama", num_hidden_layers=10**9))


@pytest.mark.slow
def test_the_command_loads_nothing_and_says_whether_it_will_do(run, checkpoint, monkeypatch, tmp_path):
    """Exit code 1 where a quantizer will fail, 0 where it will not, with size and dtype; a missing model is told."""
    monkeypatch.setattr("swcheck.loading.engines.load", lambda *_a, **_k: pytest.fail("loaded"))
    folder = checkpoints.micro(tmp_path / "micro")
    code, out, _ = run("preflight", folder, "--scheme=int4-g3")
    assert code == 1
    assert "groups of 3\n" in out
    code, out, _ = run("preflight", "tiny", "--scheme=nvfp4", "--dtype=bfloat16")
    assert (code, out) == (
        0,
        "tiny: 3,476,224 parameters, 7 MB, float32; groups of 16\n  nothing to stumble over in config and headers\n",
    )
    assert run("preflight", "llama-7b")[0] == 2
