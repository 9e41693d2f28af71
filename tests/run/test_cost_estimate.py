"""What a run will cost, told before it starts."""

from __future__ import annotations

import json

import pytest

from swcheck.base.tiers import FULL, SMOKE, STANDARD
from swcheck.gate.baseline.document import sealed
from swcheck.loading.files.checkpoint_size import CheckpointSize
from swcheck.run.cost_estimate import (
    GREEDY_TOKENS,
    SWEPT_TOKENS,
    estimated_seconds,
    is_swept,
    measured_rate,
    window_passes,
)
from swcheck.run.settings import Settings, cost_estimate_words, name_with_size, tier_of
from tests import checkpoints


def test_passes_and_time():
    """Smoke scores the tokens once, standard a quarter more for each causal measurement; twice the rate, half the time."""
    weights = CheckpointSize(0, 1_000_000, (64, 64), "float32")

    assert window_passes(SMOKE) == 1
    assert window_passes(STANDARD) == 2.25
    assert window_passes(STANDARD, references=0, candidates=2) == 2.5
    sweep = SWEPT_TOKENS / (STANDARD.windows * STANDARD.length)
    assert window_passes(STANDARD, references=0, candidates=2, swept=2) == 2.5 + 2 * sweep
    assert (
        estimated_seconds(weights, FULL, 1e9)
        > estimated_seconds(weights, STANDARD, 1e9)
        > estimated_seconds(weights, SMOKE, 1e9)
        > 0
    )
    seconds = [estimated_seconds(weights, tier, 1e9) for tier in (SMOKE, STANDARD)]
    scored = STANDARD.windows * STANDARD.length * 2.25 - SMOKE.windows * SMOKE.length
    assert seconds[1] - seconds[0] == pytest.approx(2 * 2e6 / 1e9 * (scored + GREEDY_TOKENS))
    assert estimated_seconds(weights, SMOKE, 2e9) == estimated_seconds(weights, SMOKE, 1e9) / 2
    assert measured_rate(weights, "cpu") > 0
    assert measured_rate(weights, "cpu", "bfloat16") > 0


@pytest.mark.whole_text
def test_other_shapes_are_counted_where_they_are_scored(tmp_path, monkeypatch):
    """Of an engine's candidates and of packed checkpoints, and of all with the option: more passes, and more time."""
    packed = checkpoints.copy_of_tiny(tmp_path / "packed")
    config = json.loads((packed / "config.json").read_text(encoding="utf-8"))
    (packed / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "gptq", "bits": 4}}), encoding="utf-8"
    )
    plain = checkpoints.copy_of_tiny(tmp_path / "plain")
    found = {spec: is_swept(spec) for spec in (str(plain), str(packed), "rtn:bits=4", "openvino:int4", "./not-there")}
    assert list(found.values()) == [False, True, False, True, False]

    monkeypatch.setattr("swcheck.run.settings.measured_rate", lambda *_: 2e10)
    words = {
        (spec, shapes): cost_estimate_words(
            Settings(models=("tiny",), candidates=(spec,), shapes=shapes, device="cpu"), "tiny", ["tiny", spec]
        )
        for spec in (str(plain), str(packed))
        for shapes in (False, True)
    }
    assert "about 3.5 passes" in words[str(plain), False]
    assert "about 3.9 passes" in words[str(packed), False] == words[str(packed), True] == words[str(plain), True]
    assert words[str(packed), False].rpartition("~")[2] != words[str(plain), False].rpartition("~")[2]


@pytest.mark.whole_text
def test_the_estimate(tmp_path):
    """Tier, windows, passes and a time for what is loaded; nothing where nothing is known."""
    settings = Settings(models=("tiny",), candidates=(str(tmp_path), "rtn:bits=4"), device="cpu")

    assert cost_estimate_words(settings, "tiny", ["tiny"]).startswith(
        "standard tier: 32 windows of 256 tokens, about 2.2 passes, ~"
    )
    assert "about 3.5 passes" in cost_estimate_words(settings, "tiny", ["tiny", "rtn:bits=4"])
    assert "full tier: 256 windows" in cost_estimate_words(Settings(models=("tiny",), tier="full"), "tiny", ["tiny"])
    assert cost_estimate_words(settings, str(tmp_path), ["x"]) == ""
    assert [name_with_size(settings, spec) for spec in settings.specs] == ["tiny (7 MB)", str(tmp_path), "rtn:bits=4"]
    assert name_with_size(Settings(models=("tiny",), baseline=tmp_path), "tiny") == "the baseline of tiny"


def test_a_large_model_on_a_cpu_is_measured_little(tmp_path):
    """Its size is read from the headers, so that nothing is loaded to decide it; a tier that is asked for wins."""
    folder = checkpoints.copy_of_tiny(tmp_path / "large")
    entry = {"dtype": "BF16", "shape": [40_000, 30_000], "data_offsets": [0, 2_400_000_000]}
    header = json.dumps({"model.embed_tokens.weight": entry}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with (folder / "model.safetensors").open("r+b") as stream:  # a sparse file, which takes no room
        stream.truncate(8 + len(header) + 2_400_000_000)

    assert tier_of(Settings(models=(str(folder),), device="cpu"), str(folder)) is SMOKE
    assert tier_of(Settings(models=(str(folder),), device="cpu", tier="full"), str(folder)) is FULL


def test_the_tier_of_a_run(tmp_path):
    """What was asked for, else what the baseline was measured in, else by size."""
    assert tier_of(Settings(models=("tiny",), tier="full"), "tiny") is FULL
    assert tier_of(Settings(models=("tiny",), device="cpu"), "tiny") is STANDARD
    (tmp_path / "tiny.json").write_text(json.dumps(sealed({"model": "tiny", "tier": "smoke", "measurements": []})))
    assert tier_of(Settings(models=("tiny",), baseline=tmp_path), "tiny") is SMOKE
