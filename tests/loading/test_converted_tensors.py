"""Tensors that transformers puts together when it loads are read from the files of every such type, bit by bit."""

from __future__ import annotations

import pytest
import torch

from swcheck.loading.tensor_files import read_converted
from tests.versions import RECENT
from tools.small_models import small_model


@pytest.mark.parametrize("name", [*(pytest.param(name, marks=RECENT) for name in ("mixtral", "qwen3_moe")), "gpt_oss"])
def test_experts_and_routers_are_read_as_they_are_loaded(name, tmp_path):
    """Each parameter of a layer, saved in whatever form its type has, is the model's own."""
    model = small_model(name)
    model.save_pretrained(tmp_path)
    names = [one for one, _ in model.named_parameters() if ".layers.1." in one]
    assert any("experts" in one for one in names)
    for one in names:
        found = read_converted(tmp_path, one, model)
        assert isinstance(found, torch.Tensor), found
        assert torch.equal(found, model.get_parameter(one))


def test_what_is_not_there_is_said_in_words(tmp_path):
    """No file, another name, a file that is none: words, and no error."""
    model = small_model("mixtral")
    assert read_converted(tmp_path, "model.norm.weight", model) == "the reference's files have no model.norm.weight"
    (tmp_path / "model.safetensors").write_bytes(b"no header")
    assert read_converted(tmp_path, "model.norm.weight", model) == "the reference's files do not show model.norm.weight"
