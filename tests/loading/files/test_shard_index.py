"""The index of a sharded checkpoint names files of its own directory, or is refused."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest
from hypothesis import given

from swcheck.base.errors import CheckpointError
from swcheck.loading import hub
from swcheck.loading.files.shard_index import SHARD_INDEX, shards_of
from tests import checkpoints, hostile

GOOD = {"metadata": {"total_size": 10}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}


def test_the_files_of_an_index(tmp_path):
    """They are those that it names, once each; a directory without an index has none."""
    assert shards_of(tmp_path) == set()
    (tmp_path / SHARD_INDEX).write_text(json.dumps(GOOD))
    assert shards_of(tmp_path) == {"model-1.safetensors", "model-2.safetensors"}


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/tmp/x.safetensors", "sub/x.safetensors", "..\\x.safetensors", "C:x.safetensors", ".",
     "", ".safetensors", "x.bin", 7, None, "x" * 300 + ".safetensors", "a\0.safetensors", "\x1b[1m.safetensors"],
)  # fmt: skip
def test_a_name_that_is_no_file_of_the_directory_is_refused(tmp_path, name):
    """Nothing outside of the directory is loaded because an index names it, nor what is no name of a weight file."""
    (tmp_path / SHARD_INDEX).write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": name}}))
    with pytest.raises(CheckpointError, match="weight_map.b is"):
        shards_of(tmp_path)


def test_a_model_outside_is_not_loaded(tmp_path):
    """A sharded copy of tiny whose second shard lies above its directory, where the index leads, is refused."""
    folder = checkpoints.copy_of_tiny(tmp_path / "in", checkpoints.sharded)
    (folder / "model-00002-of-00002.safetensors").rename(tmp_path / "model-00002-of-00002.safetensors")
    text = (folder / SHARD_INDEX).read_text()
    (folder / SHARD_INDEX).write_text(text.replace("model-00002-of", "../model-00002-of"))
    with pytest.raises(CheckpointError, match="not a file of this directory"):
        hub.check(str(folder))


def test_the_longest_name_and_the_largest_index(tmp_path):
    """A name has at most 255 bytes, as in file systems; an index of no tensors, or too large a one, is refused."""
    for length in (255, 256):
        name = "x" * (length - len(".safetensors")) + ".safetensors"
        (tmp_path / SHARD_INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(CheckpointError, match="the name of a safetensors file") if length > 255 else nullcontext():
            assert shards_of(tmp_path) == {name}
    (tmp_path / SHARD_INDEX).write_text('{"weight_map": {}}')
    with pytest.raises(CheckpointError, match="at least 1 key"):
        shards_of(tmp_path)
    with (tmp_path / SHARD_INDEX).open("r+b") as stream:
        stream.truncate(2**26 + 1)
    with pytest.raises(CheckpointError, match="at most 67,108,864 are read"):
        shards_of(tmp_path)


@given(index=hostile.damaged(GOOD))
def test_any_index_is_read_or_refused(index, tmp_path_factory):
    """With one place of a good index replaced by anything, the names that are read are plain file names."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / SHARD_INDEX).write_text(json.dumps(index))
    try:
        names = shards_of(folder)
    except CheckpointError:
        return
    assert all(name.endswith(".safetensors") and "/" not in name for name in names)
