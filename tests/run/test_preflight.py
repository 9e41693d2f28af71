"""``swcheck preflight``: what a scheme will stumble over is seen in the headers; what it will not is not."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from swcheck.base.errors import CheckpointError
from swcheck.run import preflight
from swcheck.run.preflight import gate_lines, group_size, remarks
from swcheck.run.settings import Settings
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
    tensor = type("Tensor", (), {"shape": (4, width), "count": 4 * width})()
    found = list(preflight._widths({"model.layers.0.mlp.up_proj.weight": tensor}, size))
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


def test_a_directory_without_weights_is_refused(tmp_path):
    """There is nothing to look at."""
    with pytest.raises(CheckpointError, match="no safetensors file"):
        remarks(tmp_path)


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
