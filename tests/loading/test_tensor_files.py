"""Single tensors read from a checkpoint's files, by the name of a module."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file

from swcheck.loading.tensor_files import read_tensor
from swcheck.loading.tiny import CHECKPOINT
from tests import checkpoints


@pytest.fixture(scope="module")
def whole():
    return load_file(CHECKPOINT / "model.safetensors")


@pytest.mark.parametrize("prefix", ["", "base_model.model.", "language_"])
def test_a_tensor_is_found_by_its_module(whole, prefix):
    """Whatever wraps the model: the last parts of the name decide."""
    found = read_tensor(CHECKPOINT, f"{prefix}{checkpoints.DOWN}")
    assert torch.equal(found, whole[checkpoints.DOWN])


def test_a_shard_is_as_good(tmp_path, whole):
    """Each tensor comes from the file that has it."""
    folder = checkpoints.copy_of_tiny(tmp_path / "parts", checkpoints.sharded)
    assert all(torch.equal(read_tensor(folder, name), whole[name]) for name in whole)


def test_what_is_not_there_is_said(tmp_path):
    """An unknown name, one that several end like, an empty folder and a broken file are words, no exceptions."""
    assert "no tensor model.layers.9.mlp.down_proj.weight" in read_tensor(
        CHECKPOINT, "model.layers.9.mlp.down_proj.weight"
    )
    assert "no tensor mlp.down_proj.weight" in read_tensor(CHECKPOINT, "mlp.down_proj.weight")
    assert read_tensor(tmp_path, checkpoints.DOWN) == "the reference is not on this machine"
    shutil.copytree(CHECKPOINT, tmp_path / "cut")
    checkpoints.truncated(tmp_path / "cut")
    assert "cannot be read" in read_tensor(tmp_path / "cut", checkpoints.DOWN)
