"""What the headers of a checkpoint say of its size."""

from __future__ import annotations

from swcheck import load
from swcheck.loading import tiny
from swcheck.loading.files.checkpoint_size import checkpoint_size
from tests import checkpoints


def test_what_a_checkpoint_holds(tmp_path):
    """Parameters and bytes of tiny are those of its file, in one shard or two; without weights there is nothing to say."""
    weights = checkpoint_size(tiny.CHECKPOINT)
    model = load("tiny", device="cpu").model

    assert weights.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert weights.size == (tiny.CHECKPOINT / "model.safetensors").stat().st_size
    assert (weights.largest, weights.dtype, weights.context) == ((1024, 256), "float32", 256)
    sharded = checkpoints.copy_of_tiny(tmp_path / "sharded", checkpoints.sharded)
    assert checkpoint_size(sharded).parameters == weights.parameters
    assert checkpoint_size(tmp_path) is None


def test_a_config_that_cannot_be_read_is_no_obstacle(tmp_path):
    """The dtype is then the stored one, and the context unknown."""
    folder = checkpoints.copy_of_tiny(tmp_path / "broken", checkpoints.text("config.json", "{"))
    assert (checkpoint_size(folder).dtype, checkpoint_size(folder).context) == ("bfloat16", None)
