"""Tiers: how many windows of how many tokens, which one by default, and what is told of the cost before the work."""

from __future__ import annotations

import json

import pytest
import torch

from swcheck import Outcome, assert_collapses_when_zeroed, causal, load, tiny
from swcheck.errors import OptionError
from swcheck.settings import Settings, estimate, sized, tier_of
from swcheck.subject import Subject
from swcheck.tiers import (
    CAUSAL_WINDOWS,
    FULL,
    LARGE,
    SMOKE,
    STANDARD,
    TIERS,
    Weights,
    default_tier,
    megabytes,
    passes,
    rate_of,
    seconds,
    spoken,
    tier_named,
    weights_in,
)
from tests import checkpoints, planted

TEXT = " ".join(str(number) for number in range(40_000))


@pytest.mark.parametrize(
    ("tier", "context", "shape"),
    [
        (STANDARD, None, (16, 512)),
        (STANDARD, 4096, (16, 512)),
        (STANDARD, 256, (32, 256)),
        (STANDARD, 300, (28, 300)),
        (SMOKE, 4096, (8, 512)),
        (SMOKE, 64, (64, 64)),
        (FULL, 131072, (32, 2048)),
        (FULL, 1024, (64, 1024)),
    ],
)
def test_a_short_context_gets_more_windows(tier, context, shape):
    """The tokens of a tier stay what they are, whatever a model can take at once."""
    assert tier.shape(context) == shape


def test_names():
    """Three tiers go by their names, another one is refused with the three."""
    assert [tier_named(name) for name in TIERS] == [SMOKE, STANDARD, FULL]
    with pytest.raises(OptionError, match="known: smoke, standard, full"):
        tier_named("quick")


@pytest.mark.parametrize(
    ("parameters", "device", "tier"),
    [(LARGE, "cpu", STANDARD), (LARGE + 1, "cpu", SMOKE), (70 * LARGE, "cuda", STANDARD), (0, "cpu", STANDARD)],
)
def test_the_default(parameters, device, tier):
    """Above a billion parameters a CPU measures little unless it is told to."""
    assert default_tier(parameters, device) is tier


def reference(tier, context=1024):
    """A planted model that takes ``context`` tokens at once."""
    model = planted.plant([planted.SINK], vocabulary=1024)
    model.config.max_position_embeddings = context
    return Subject("m", model, planted.tokenizer(), text=TEXT, tier=tier, memo={})


def test_a_causal_check_has_windows_enough():
    """Fewer windows than 32 are made up from between them; the smoke tier needs none; more are left as they are."""
    standard, smoke, short = reference(STANDARD), reference(SMOKE), reference(STANDARD, 64)

    ids = causal.starts(standard)
    assert standard.windows().shape == (16, 512)
    assert ids.shape == (CAUSAL_WINDOWS, 128)
    assert torch.equal(ids[:16], standard.windows()[:, :128])
    assert len({tuple(row.tolist()) for row in ids}) == CAUSAL_WINDOWS
    assert causal.starts(smoke).shape == (8, 128)
    assert causal.starts(short).shape == (128, 64)


def test_the_intact_nats_of_a_causal_check_are_those_of_a_pass():
    """Known from the windows or scored anew, for the model itself and for a candidate, they are what a pass gives."""
    one, other = reference(STANDARD), reference(STANDARD)
    with torch.no_grad():
        other.live.lm_head.weight.mul_(0.9)
    other.memo = {}

    for nats, subject in ((causal.intact(one), one), (causal.against(other, one), other)):
        expected = causal.without(subject, [], causal.starts(one))
        assert nats.shape == (CAUSAL_WINDOWS, 127)
        assert torch.allclose(nats, expected, atol=1e-3)
    assert causal.against(one, one) is not None


def test_a_planted_collapse_is_measured_on_both_kinds_of_windows():
    """With windows from between, the verdict on one model is finite and has a kind."""
    verdict = assert_collapses_when_zeroed(reference(STANDARD), factor=0.01)
    assert verdict.outcome is Outcome.PASSED
    assert verdict.facts["tier"] == "standard"


def test_what_a_checkpoint_holds(tmp_path):
    """Parameters and bytes of tiny are those of its file, in one shard or two; without weights there is nothing to say."""
    weights = weights_in(tiny.CHECKPOINT)
    model = load("tiny", device="cpu").model

    assert weights.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert weights.size == (tiny.CHECKPOINT / "model.safetensors").stat().st_size
    assert (weights.largest, weights.dtype, weights.context) == ((1024, 256), "float32", 256)
    sharded = checkpoints.copy_of_tiny(tmp_path / "sharded", checkpoints.sharded)
    assert weights_in(sharded).parameters == weights.parameters
    assert weights_in(tmp_path) is None


def test_a_config_that_cannot_be_read_is_no_obstacle(tmp_path):
    """The dtype is then the stored one, and the context unknown."""
    folder = checkpoints.copy_of_tiny(tmp_path / "broken", checkpoints.text("config.json", "{"))
    assert (weights_in(folder).dtype, weights_in(folder).context) == ("bfloat16", None)


def test_passes_and_time():
    """Smoke scores the tokens once, standard a quarter more for each causal measurement; twice the rate, half the time."""
    weights = Weights(0, 1_000_000, (64, 64), "float32")

    assert passes(SMOKE) == 1
    assert passes(STANDARD) == 2.25
    assert passes(STANDARD, references=0, candidates=2) == 2.5
    assert seconds(weights, FULL, 1e9) > seconds(weights, STANDARD, 1e9) > seconds(weights, SMOKE, 1e9) > 0
    assert seconds(weights, SMOKE, 2e9) == seconds(weights, SMOKE, 1e9) / 2
    assert rate_of(weights, "cpu") > 0
    assert rate_of(weights, "cpu", "bfloat16") > 0


@pytest.mark.parametrize(
    ("span", "words"), [(0.01, "~1 s"), (3.4, "~3 s"), (89, "~89 s"), (240, "~4 min"), (7200, "~2 h")]
)
def test_times_are_spoken(span, words):
    """Seconds, minutes, hours, never more digits than are known."""
    assert spoken(span) == words


@pytest.mark.parametrize(("size", "words"), [(6_957_592, "7 MB"), (1000, "1 MB"), (13_476_000_000, "13.5 GB")])
def test_sizes_are_spoken(size, words):
    """Megabytes and gigabytes."""
    assert megabytes(size) == words


def test_the_estimate(tmp_path):
    """Tier, windows, passes and a time for what is loaded; nothing where nothing is known."""
    settings = Settings(models=("tiny",), candidates=(str(tmp_path), "rtn:bits=4"), device="cpu")

    assert estimate(settings, "tiny", ["tiny"]).startswith(
        "standard tier: 32 windows of 256 tokens, about 2.2 passes, ~"
    )
    assert "about 3.5 passes" in estimate(settings, "tiny", ["tiny", "rtn:bits=4"])
    assert "full tier: 256 windows" in estimate(Settings(models=("tiny",), tier="full"), "tiny", ["tiny"])
    assert estimate(settings, str(tmp_path), ["x"]) == ""
    assert [sized(settings, spec) for spec in settings.specs] == ["tiny (7 MB)", str(tmp_path), "rtn:bits=4"]
    assert sized(Settings(models=("tiny",), baseline=tmp_path), "tiny") == "the baseline of tiny"


def test_a_large_model_on_a_cpu_is_measured_little(tmp_path):
    """Its size is read from the headers, so that nothing is loaded to decide it; a tier that is asked for wins."""
    folder = checkpoints.copy_of_tiny(tmp_path / "large")
    entry = {"dtype": "BF16", "shape": [40_000, 30_000], "data_offsets": [0, 2_400_000_000]}
    header = json.dumps({"model.embed_tokens.weight": entry}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)

    assert tier_of(Settings(models=(str(folder),), device="cpu"), str(folder)) is SMOKE
    assert tier_of(Settings(models=(str(folder),), device="cpu", tier="full"), str(folder)) is FULL


def test_the_tier_of_a_run(tmp_path):
    """What was asked for, else what the baseline was measured in, else by size."""
    assert tier_of(Settings(models=("tiny",), tier="full"), "tiny") is FULL
    assert tier_of(Settings(models=("tiny",), device="cpu"), "tiny") is STANDARD
    (tmp_path / "tiny.json").write_text('{"tier": "smoke"}')
    assert tier_of(Settings(models=("tiny",), baseline=tmp_path), "tiny") is SMOKE
