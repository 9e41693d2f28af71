"""bitsandbytes for real: every scheme passes the shared check, and its traps are what they are said to be."""

from __future__ import annotations

import sys

import pytest
import swcheck_bitsandbytes
import torch

import swcheck
from swcheck import (
    EngineError,
    OptionError,
    SuperWeight,
    SwcheckError,
    anatomy,
    check_engine,
    contributions,
    effective_weight,
    observe,
    plain_weight,
    zeroed,
)
from swcheck.testing.conformance import save_narrowed_tiny

WEIGHT = SuperWeight(1, 97, 301)
IDS = torch.tensor([[0, 5, 9, 33, 2, 77, 130]])
FOUR_BITS = ["nf4", "fp4", "nf4-double"]


def load(scheme, reference="tiny"):
    return swcheck_bitsandbytes.ENGINE.load(scheme, reference=reference, device="cpu", dtype=None)


def down(loaded):
    return anatomy(loaded.model).down_projections[1]


def dequantized(module):
    """The weight as bitsandbytes' own functions give it."""
    from bitsandbytes.functional import dequantize_4bit

    weight = module.weight
    if getattr(weight, "quant_state", None) is not None:
        return dequantize_4bit(weight.data, weight.quant_state)
    scale = module.state.SCB if weight.SCB is None else weight.SCB
    return weight.data * scale[:, None] / 127


@pytest.mark.parametrize("scheme", swcheck_bitsandbytes.SCHEMES)
def test_conformance(scheme):
    """The largest of a block or a row is exact, so all three readings give tiny's own super weight."""
    (reading,) = check_engine("bitsandbytes", [scheme], dequantize=dequantized)
    assert reading.contribution == pytest.approx(2.625, rel=1e-3)
    assert reading.dequantized == pytest.approx(2.625, rel=1e-3)
    assert reading.saved == "equal"
    assert reading.skip == "kept"


def test_half_precision():
    """In bfloat16 as well."""
    check_engine("bitsandbytes", ["int8", "nf4"], dtype="bfloat16", dequantize=dequantized)


# --- traps -------------------------------------------------------------------------------------------------------------


def test_without_the_switch_a_pass_repacks_the_weights():
    """Where the CPU can, one pass makes bitsandbytes' own dequantization wrong; contributions and zeroing stay right."""
    loaded = load("nf4")
    module = down(loaded)
    for part in loaded.model.modules():
        if type(part) is type(module):
            part.support_avx512bf16_for_cpu = type(module)(1, 1).support_avx512bf16_for_cpu
    before = float(dequantized(module)[WEIGHT.row, WEIGHT.column])
    with torch.no_grad(), observe(loaded.model, inputs=[1], outputs=[1]) as sight:
        loaded.model(IDS)
    x, written = sight.inputs[1][0, 0], float(sight.outputs[1][0, 0, WEIGHT.row])
    assert before == pytest.approx(2.625, rel=1e-3)
    if not getattr(module.weight.quant_state, "packing_format_for_cpu", False):
        pytest.skip("this CPU has no AVX512-BF16: nothing is repacked")
    assert abs(float(dequantized(module)[WEIGHT.row, WEIGHT.column])) < 0.5
    share = float(contributions(module, x, WEIGHT.row, [WEIGHT.column])[0])
    assert share / float(x[WEIGHT.column]) == pytest.approx(2.625, rel=0.01)
    assert effective_weight(module, WEIGHT.row, WEIGHT.column) == pytest.approx(2.625, rel=0.01)
    with torch.no_grad(), zeroed(loaded.model, [WEIGHT]), observe(loaded.model, outputs=[1]) as sight:
        loaded.model(IDS)
    assert float(sight.outputs[1][0, 0, WEIGHT.row]) == pytest.approx(written - share, abs=0.02 * abs(share))


@pytest.mark.parametrize("scheme", FOUR_BITS)
def test_the_switch_is_off_in_every_layer(scheme):
    """No linear map of a candidate repacks, and the weights are the same bytes after a pass."""
    loaded = load(scheme)
    packed = down(loaded).weight.data.clone()
    flags = [m.support_avx512bf16_for_cpu for m in loaded.model.modules() if hasattr(m, "support_avx512bf16_for_cpu")]
    assert len(flags) == 35
    assert not any(flags)
    with torch.no_grad():
        loaded.model(IDS)
    assert torch.equal(down(loaded).weight.data, packed)


@pytest.mark.parametrize("scheme", swcheck_bitsandbytes.SCHEMES)
def test_widths_that_the_fast_kernel_cannot_take(tmp_path, scheme):
    """480 inputs are no multiple of 64: the repacked kernel would raise in the first pass, this one answers."""
    check_engine("bitsandbytes", [scheme], reference=save_narrowed_tiny(tmp_path, 480), super_weights=[WEIGHT])


def test_packed_weights_are_never_plain():
    """Codes in a uint8 parameter are no weight to edit."""
    assert plain_weight(down(load("nf4"))) is None
    assert plain_weight(down(load("int8"))) is None


def test_a_pass_is_silent(capfd, caplog, recwarn):
    """LLM.int8() has a word for each layer and pass otherwise."""
    loaded = load("int8")
    caplog.clear()
    recwarn.clear()
    capfd.readouterr()
    with torch.no_grad():
        loaded.model(IDS)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert not recwarn.list


def test_skip_keeps_what_is_named_and_the_head():
    """A list to skip replaces bitsandbytes' own, on which the head stands; it is put back."""
    from bitsandbytes.nn import Linear4bit

    model = load("nf4,skip=model.layers.1.mlp.down_proj+model.layers.3.self_attn").model
    packed = {name for name, module in model.named_modules() if isinstance(module, Linear4bit)}
    assert len(packed) == 35 - 1 - 4
    assert not any(name.startswith("model.layers.3.self_attn") for name in packed)
    assert type(model.lm_head) is torch.nn.Linear
    assert "model.layers.1.mlp.down_proj" in model.config.quantization_config.llm_int8_skip_modules


# --- what it says ------------------------------------------------------------------------------------------------------


def test_an_unknown_scheme():
    """The schemes are listed."""
    with pytest.raises(EngineError, match="known: int8, nf4, fp4, nf4-double"):
        load("nf5")


@pytest.mark.parametrize(
    ("spec", "kind", "words"),
    [
        ("nf5", EngineError, "known: int8, nf4, fp4, nf4-double\n  try: bitsandbytes:nf4"),
        ("nf4,double", OptionError, "options here: skip="),
        ("nf4,skip=", OptionError, "skip= without a module"),
    ],
)
def test_what_makes_no_sense_is_said_at_once(spec, kind, words):
    """Before anything is loaded, and in the words of a load."""
    for refuse in (swcheck_bitsandbytes.ENGINE.check, load):
        with pytest.raises(kind, match=words):
            refuse(spec)


def test_no_reference():
    """There is nothing to quantize."""
    with pytest.raises(OptionError, match="no reference"):
        load("nf4", None)


def test_a_reference_that_is_not_there():
    """The reference's own error comes through."""
    with pytest.raises(SwcheckError, match="no such path"):
        load("nf4", "./nowhere")


def test_without_the_package(monkeypatch):
    """The install line is given."""
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for refuse in (swcheck_bitsandbytes.ENGINE.check, load):
        with pytest.raises(EngineError, match=r"pip install 'bitsandbytes>="):
            refuse("nf4")


def test_through_the_front_door():
    """The entry point leads here, and the record says what was made."""
    loaded = swcheck.load("bitsandbytes:fp4", reference="tiny", device="cpu")
    assert (loaded.name, loaded.scheme.method, loaded.scheme.weight_bits) == ("bitsandbytes:fp4", "fp4", 4)
