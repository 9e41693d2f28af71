"""The checkpoint of the benchmarks: sharded, random, with one super weight that is found where it was planted."""

from __future__ import annotations

from swcheck import SuperWeight, load, locate
from swcheck.loading.files.safetensors_header import read_header, safetensors_files
from tools.large_checkpoint import Shape, plant_on_disk, write_checkpoint


def test_the_planted_weight_is_found(tmp_path):
    """In its layer, with its value, and alone; all tensors of the shape are in the files."""
    shape, weight = Shape(128, 256, layers=6, heads=2, vocabulary=1024), SuperWeight(1, 97, 201, -1.5)
    write_checkpoint(tmp_path / "model", shape)
    plant_on_disk(tmp_path / "model", weight)
    stored = [read_header(file).tensors for file in safetensors_files(tmp_path / "model")]
    assert {name: one.shape for part in stored for name, one in part.items()} == shape.matrices
    loaded = load(tmp_path / "model", device="cpu")
    assert locate(loaded.model, loaded.tokenizer).super_weights == (weight,)
