"""torchao for real: every scheme passes the shared check, and its traps are what they are said to be."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import swcheck_torchao
import torch

import swcheck
from swcheck import EngineError, OptionError, Scheme, SuperWeight, anatomy, check_engine, effective_weight, plain_weight
from swcheck.testing.conformance import save_narrowed_tiny

WEIGHT = SuperWeight(1, 97, 301)
KEPT = {  # how much of tiny's super weight each grid keeps: integer grids of torchao end at max / 7.5 of four bits
    "int8-weight-only": 127 / 127.5,
    "int8-dynamic": 127 / 127.5,
    "fp8-weight-only": 1.0,
    "int4-weight-only": 7 / 7.5,
    "int4-weight-only,group=32": 7 / 7.5,
    "int3-weight-only": 3 / 3.5,
    "int2-weight-only": 1 / 1.5,
    "int4-int8-dynamic": 7 / 7.5,
}


def load(scheme, reference="tiny"):
    return swcheck_torchao.ENGINE.load(scheme, reference=reference, device="cpu", dtype=None)


def down(loaded):
    return anatomy(loaded.model).down_projections[1]


def test_every_scheme_is_tested():
    """The table above leaves none out."""
    assert {name.partition(",")[0] for name in KEPT} == set(swcheck_torchao.SCHEMES)


@pytest.mark.parametrize("scheme", KEPT)
def test_conformance(scheme):
    """The three readings agree, also on what the grid has cut off the super weight."""
    (reading,) = check_engine("torchao", [scheme])
    assert reading.dequantized == pytest.approx(2.625 * KEPT[scheme], rel=1e-3)
    assert reading.contribution == pytest.approx(2.625 * KEPT[scheme], rel=0.006)
    assert reading.saved == "equal"
    assert reading.skip == "kept"


def test_half_precision():
    """In bfloat16 as well."""
    check_engine("torchao", ["int8-dynamic", "int4-weight-only"], dtype="bfloat16")


# --- traps -------------------------------------------------------------------------------------------------------------


def test_inputs_of_eight_bits_blur_a_probe():
    """With dynamic inputs a one-hot reads 0.4 % beside the dequantized weight; without, the two are one."""
    for scheme, low, high in (("int8-dynamic", 1e-3, 0.01), ("int8-weight-only", 0.0, 1e-5)):
        module = down(load(scheme))
        own = float(module.weight.dequantize()[WEIGHT.row, WEIGHT.column])
        assert low <= abs(effective_weight(module, WEIGHT.row, WEIGHT.column) / own - 1) <= high


@pytest.mark.parametrize("scheme", KEPT)
def test_a_subclass_is_never_plain(scheme):
    """The module is an ordinary ``nn.Linear``, but its weight must not be written to: some subclasses ignore that."""
    module = down(load(scheme))
    assert type(module) is torch.nn.Linear
    assert plain_weight(module) is None


def test_a_group_that_does_not_divide_is_refused(tmp_path):
    """480 inputs have no groups of 128; the module is named, and the group that it offers works."""
    reference = save_narrowed_tiny(tmp_path, 480)
    with pytest.raises(
        EngineError, match=r"model\.layers\.0\.mlp\.down_proj has 480 inputs, no multiple of 128"
    ) as caught:
        load("int4-weight-only", reference)
    assert caught.value.attempt == "torchao:int4-weight-only,group=32"
    check_engine("torchao", ["int4-weight-only,group=32"], reference=reference, super_weights=[WEIGHT])


def test_a_layer_that_torchao_skips_is_named(tmp_path):
    """A prototype of torchao leaves such a layer unquantized without a word; the shared check says which."""
    from torchao.prototype.quantization.int4.inference_workflow import PrototypeInt4WeightOnlyConfig
    from torchao.quantization import quantize_

    class Opaque:
        name = "opaque"

        def load(self, spec, *, reference, device, dtype):
            if spec != "int4":
                raise EngineError(f"scheme {spec!r}", "known: int4")
            base = swcheck.load(reference, device=device, dtype=dtype)
            quantize_(base.model.model.layers, PrototypeInt4WeightOnlyConfig(group_size=128, set_inductor_config=False))
            return replace(base, scheme=Scheme("absmax", 4))

    reference = save_narrowed_tiny(tmp_path, 480)
    with pytest.raises(AssertionError, match="the quantizer skipped layers 0, 1, 2, 3, 4"):
        check_engine(Opaque(), ["int4"], reference=reference, super_weights=[WEIGHT])


def test_skip_keeps_what_is_named_and_the_head():
    """A list to skip replaces transformers' own, on which the head stands; it is put back."""
    model = load("int4-weight-only,skip=model.layers.1.mlp.down_proj+model.layers.3.self_attn").model
    packed = {name for name, module in model.named_modules() if hasattr(getattr(module, "weight", None), "qdata")}
    assert len(packed) == 35 - 1 - 4
    assert not any(name.startswith("model.layers.3.self_attn") for name in packed)
    assert plain_weight(model.lm_head) is not None


def test_what_is_skipped_needs_no_width(tmp_path):
    """Where every map that the group does not divide is skipped, there is nothing to refuse."""
    downs = "+".join(f"model.layers.{number}.mlp.down_proj" for number in range(5))
    loaded = load(f"int4-weight-only,skip={downs}", save_narrowed_tiny(tmp_path, 480))
    assert plain_weight(down(loaded)) is not None
    assert plain_weight(loaded.model.model.layers[1].mlp.up_proj) is None


# --- what it says ------------------------------------------------------------------------------------------------------


def test_an_unknown_scheme():
    """The schemes are listed."""
    with pytest.raises(EngineError, match="known: int8-weight-only, int8-dynamic"):
        load("int4wo")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("int8-dynamic,group=32", "with groups: int4-weight-only"),
        ("int4-weight-only,group=", "a number of inputs"),
        ("int4-weight-only,group=0", "a number of inputs"),
    ],
)
def test_a_group_that_makes_no_sense(spec, words):
    """Groups are for the schemes that have them, and hold inputs."""
    with pytest.raises(OptionError, match=words):
        load(spec)


@pytest.mark.parametrize(
    ("spec", "kind", "words"),
    [
        ("int5", EngineError, "scheme 'int5' of torchao\n  found: known: int8-weight-only"),
        ("int4-weight-only,grp=32", OptionError, "options here: group="),
        ("int8-dynamic,group=32", OptionError, "with groups: int4"),
        ("int8-dynamic,skip=", OptionError, "skip= without a module"),
    ],
)
def test_what_makes_no_sense_is_said_at_once(spec, kind, words):
    """Before anything is loaded, and in the words of a load."""
    for refuse in (swcheck_torchao.ENGINE.check, load):
        with pytest.raises(kind, match=words):
            refuse(spec)


def test_no_reference():
    """There is nothing to quantize."""
    with pytest.raises(OptionError, match="no reference"):
        load("int8-dynamic", None)


def test_without_the_package(monkeypatch):
    """The install line is given."""
    monkeypatch.setitem(sys.modules, "torchao", None)
    for refuse in (swcheck_torchao.ENGINE.check, load):
        with pytest.raises(EngineError, match=r"pip install 'torchao>="):
            refuse("int8-dynamic")


def test_a_red_directory_gets_its_fix_proven(tmp_path):
    """What torchao wrote says itself which engine and scheme made it; the fix is tried with these, and priced."""
    from swcheck import RobustnessError, assert_perplexity_within
    from swcheck.run.session import Session
    from swcheck.run.settings import Settings

    made = swcheck.load("torchao:int4-weight-only,group=64", reference="tiny", device="cpu")
    made.model.save_pretrained(tmp_path / "w4")
    made.tokenizer.save_pretrained(tmp_path / "w4")
    session = Session(Settings(models=("tiny",), candidates=(str(tmp_path / "w4"),), device="cpu"))
    reference, candidate = session.reference("tiny"), session.candidate()

    assert candidate.scheme.weight_bits == 4
    with pytest.raises(RobustnessError, match=r"^not the super weights") as caught:
        assert_perplexity_within(candidate, reference, ratio=1.001)

    verdict = caught.value.verdict
    assert "torchao modules_to_not_convert=" in verdict.attempt
    assert verdict.facts["fix"]["proven"]
    assert verdict.facts["fix"]["spec"].startswith("torchao:int4-weight-only,group=64,skip=")
    assert verdict.facts["fix"]["perplexity"] < verdict.facts["fix"]["before"]
    session.free()
