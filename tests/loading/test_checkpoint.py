"""The files of a checkpoint: any bytes are read, or refused in words."""

from __future__ import annotations

import json
import os
import struct

import pytest
from safetensors.torch import load_file, save_file

import swcheck
from swcheck.base.errors import CheckpointError, UnsafeCheckpointError
from swcheck.loading import hub
from swcheck.loading.checkpoint import LARGEST_FILES
from tests import checkpoints
from tests.checkpoints import DOWN, copy_of_tiny


def test_a_header_that_lies(tmp_path):
    """A header whose shapes do not fit its own offsets is refused."""
    folder = copy_of_tiny(tmp_path / "lying")
    file = folder / "model.safetensors"
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header[DOWN]["shape"] = [1, 2]
    written = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(written)) + written + data[8 + length :])
    with pytest.raises(CheckpointError, match="mlp.down_proj.weight of 1 x 2 in "):
        swcheck.load(str(folder))


def test_a_file_that_is_too_long(tmp_path):
    """Bytes after the last tensor are refused: two files may have been written into one."""
    folder = copy_of_tiny(tmp_path / "long")
    with (folder / "model.safetensors").open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(CheckpointError, match="the file is too long"):
        hub.check(str(folder))


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "more.jinja"]
)
@pytest.mark.parametrize(("make", "kind"), [(os.mkdir, "a directory"), (os.mkfifo, "a named pipe")])
def test_what_is_no_regular_file_is_refused(tmp_path, name, make, kind):
    """A directory or a named pipe in the place of a file is refused at once: nothing waits for a writer."""
    folder = copy_of_tiny(tmp_path / "odd")
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    with pytest.raises(CheckpointError) as caught:
        hub.check(str(folder))
    assert (caught.value.found, name in caught.value.asked) == (kind, True)


def test_a_device_in_the_place_of_a_directory_is_called_one():
    """It is no file."""
    with pytest.raises(CheckpointError, match="model directory") as caught:
        hub.check(os.devnull)
    assert caught.value.found == "a device"


def test_a_device_behind_a_link_is_refused(tmp_path):
    """A link is followed to what it leads to, and that has to be a regular file."""
    folder = copy_of_tiny(tmp_path / "odd")
    (folder / "generation_config.json").unlink()
    (folder / "generation_config.json").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="a device"):
        hub.check(str(folder))


def test_a_file_of_implausible_size_is_refused(tmp_path):
    """What transformers would read whole has a size that a machine can hold; the sparse file here takes no room."""
    folder = copy_of_tiny(tmp_path / "large")
    with (folder / "chat_template.jinja").open("wb") as stream:
        stream.truncate(LARGEST_FILES[".jinja"] + 1)
    with pytest.raises(CheckpointError, match="1,048,577 bytes, at most 1,048,576 are read"):
        hub.check(str(folder))


def test_a_folder_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    """Where the folder cannot be listed, the reason of the system is said."""
    folder = copy_of_tiny(tmp_path / "closed")

    def refuse(_path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.iterdir", refuse)  # the mode of a folder does not stop a superuser
    with pytest.raises(CheckpointError, match="found: Permission denied"):
        hub.check(str(folder))


@pytest.mark.parametrize("model_type", ["../auto", "..", "llama/../llama", "a\0b"])
def test_a_model_type_is_no_path(tmp_path, model_type):
    """A type that leads to a folder of transformers by a path does not pass for one that transformers knows."""
    changes = checkpoints.config(model_type=model_type, auto_map={"AutoConfig": "code.Config"})
    with pytest.raises(UnsafeCheckpointError):
        hub.check(str(copy_of_tiny(tmp_path / "odd", changes)))


def test_links_into_a_cache_are_followed(tmp_path):
    """A directory of symbolic links to files elsewhere loads, as the snapshots of the hub's cache do."""
    stored = copy_of_tiny(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for file in stored.iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(file)
    hub.check(str(tmp_path / "snapshot"))


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    """Which of the two would be read is chance."""
    folder = copy_of_tiny(tmp_path / "twice", checkpoints.sharded)
    first, second = sorted(folder.glob("*.safetensors"))[:2]
    name, tensor = next(iter(load_file(first).items()))
    save_file({**load_file(second), name: tensor}, second, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"{name} is in {first.name} and in {second.name}"):
        hub.check(str(folder))
