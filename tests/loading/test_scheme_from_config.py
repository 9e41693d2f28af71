"""What checkpoints say of their own quantization, read as the quantizers write it."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swcheck import load
from swcheck.base.errors import EngineError
from swcheck.base.limits import limits_for_scheme, scaled_to_confidence, scheme_class
from swcheck.base.records import Limit, Scheme
from swcheck.loading.scheme_from_config import PACKAGES, READERS, is_installed, missing_packages, scheme_of
from tests import checkpoints

INTX = {
    "default": {
        "_type": "IntxWeightOnlyConfig",
        "_data": {
            "granularity": {"_data": {"group_size": 64}, "_type": "PerGroup", "_version": 1},
            "intx_packing_format": {"_data": "UNPACKED_TO_INT8", "_type": "IntxPackingFormat"},
            "weight_dtype": {"_data": "int4", "_type": "torch.dtype"},
        },
    }
}
"""As torchao 0.18 writes it: four bits, each in a byte of its own."""

CONFIGS = [
    ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, Scheme("nf4", 4), "plain 4-bit"),
    ({"quant_method": "bitsandbytes", "load_in_8bit": True}, Scheme("int8", 8, 8), "8-bit weights and activations"),
    ({"quant_method": "gptq", "bits": 4}, Scheme("gptq", 4, calibrated=True), "good 4-bit"),
    ({"quant_method": "gptq", "bits": 3}, Scheme("gptq", 3, calibrated=True), "3-bit"),
    ({"quant_method": "awq", "bits": 4}, Scheme("awq", 4, calibrated=True), "good 4-bit"),
    ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}}, Scheme("rtn", 8), "8-bit weights"),
    ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8DynamicActivationInt8WeightConfig"}}}, Scheme("rtn", 8, 8), "8-bit weights and activations"),
    ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Float8WeightOnlyConfig"}}}, Scheme("fp8", 8), "8-bit weights and activations"),
    ({"quant_method": "torchao", "quant_type": INTX}, Scheme("rtn", 4), "plain 4-bit"),
    ({"quant_method": "torchao", "quant_type": {"default": {"_type": "IntxWeightOnlyConfig", "_data": {"weight_dtype": {"_type": "torch.dtype", "_data": "int4"}, "intx_packing_format": {"_data": "UNPACKED_TO_INT8"}}}}}, Scheme("rtn", 4), "plain 4-bit"),
    ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8DynamicActivationIntxWeightConfig", "_data": {"weight_dtype": {"_type": "torch.dtype", "_data": "int4"}}}}}, Scheme("rtn", 4, 8), "4-bit weights and activations"),
    ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Float8DynamicActivationInt4WeightConfig"}}}, Scheme("rtn", 4, 8), "4-bit weights and activations"),
    ({"quant_method": "torchao", "quant_type": "int4_weight_only"}, Scheme("rtn", 4), "plain 4-bit"),
    ({"quant_method": "auto-round", "bits": 4}, Scheme("auto-round", 4, calibrated=True), "good 4-bit"),
    ({"quant_method": "auto-round", "bits": 4, "iters": 0}, Scheme("rtn", 4), "plain 4-bit"),
    ({"quant_method": "auto-round", "iters": 1}, Scheme("auto-round", 4, calibrated=True), "good 4-bit"),
    ({"quant_method": "auto-round", "enable_quanted_input": False}, Scheme("rtn", 4), "plain 4-bit"),
    ({"quant_method": "auto-round", "enable_quanted_input": True}, Scheme("auto-round", 4, calibrated=True), "good 4-bit"),
    ({"quant_method": "gptq"}, Scheme("gptq", 4, calibrated=True), "good 4-bit"),
    ({"quant_method": "gptq", "bits": 1}, Scheme("gptq", 1, calibrated=True), "2-bit"),
    ({"quant_method": "awq", "w_bit": 3}, Scheme("awq", 3, calibrated=True), "3-bit"),
    ({"quant_method": "torchao", "quant_type": "fp8_weight_only"}, Scheme("fp8", 8), "8-bit weights and activations"),
    ({"quant_method": "quanto", "weights": "int4"}, Scheme("rtn", 4), "plain 4-bit"),
    ({"quant_method": "quanto", "weights": "float8", "activations": "float8"}, Scheme("fp8", 8, 8), "8-bit weights and activations"),
    ({"quant_method": "quanto", "weights": "qint"}, Scheme("rtn", 8), "8-bit weights"),
    ({"quant_method": "quanto", "weights": "int2"}, Scheme("rtn", 2), "2-bit"),
    ({"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4}}}, Scheme("hqq", 4, calibrated=True), "good 4-bit"),
    ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}}}}, Scheme("rtn", 4), "plain 4-bit"),
    ({"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 8, "type": "float"}, "input_activations": {"num_bits": 8}}}}, Scheme("fp8", 8, 8), "8-bit weights and activations"),
    ({"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 4, "type": "float"}, "input_activations": {"num_bits": 4}}}}, Scheme("nvfp4", 4, 4), "4-bit weights and activations"),
    ({"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 4}, "input_activations": {"num_bits": 1}}}}, Scheme("rtn", 4, 1), "4-bit weights and activations"),
    ({"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": None}}}, Scheme("rtn", 16), "8-bit weights"),
    ({"quant_method": "fp8"}, Scheme("fp8", 8, 8), "8-bit weights and activations"),
    ({"quant_method": "fbgemm_fp8"}, Scheme("fp8", 8, 8), "8-bit weights and activations"),
    ({"quant_method": "mxfp4"}, Scheme("mxfp4", 4), "4-bit weights and activations"),
    ({"quant_method": "bitnet"}, Scheme("bitnet", 1.58, 8), "2-bit"),
    ({"quant_method": "hqq"}, Scheme("hqq", 4, calibrated=True), "good 4-bit"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "scheme", "kind"), CONFIGS, ids=lambda value: getattr(value, "method", None))
def test_a_config_is_read_as_its_quantizer_wrote_it(config, scheme, kind):
    """Method, bits and activation bits are found, and they decide which limits hold."""
    assert scheme_of({"quantization_config": config}) == scheme
    assert scheme_class(scheme) == kind


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"quantization_config": None},
        {"quantization_config": {"quant_method": "newest"}},
        {"quantization_config": {}},
        {"quantization_config": {"quant_method": "torchao", "quant_type": "newest"}},
        {"quantization_config": {"quant_method": "gptq", "bits": 65}},
        {"quantization_config": {"quant_method": "gptq", "bits": 0}},
    ],
)
def test_what_nobody_can_tell_is_none(config):
    """A model that is not quantized, or by an unknown method, has no scheme and the limits of an unknown one."""
    assert scheme_of(config) is None
    assert scheme_class(None) is None


@given(
    st.sampled_from(sorted(READERS)),
    st.dictionaries(st.text(max_size=12), st.one_of(st.none(), st.integers(), st.text(), st.lists(st.integers()))),
)
def test_a_malformed_config_is_never_an_exception(method, rest):
    """Whatever stands in the file, the answer is a scheme or None."""
    found = scheme_of({"quantization_config": {**rest, "quant_method": method}})

    assert found is None or isinstance(found, Scheme)


def test_limits_follow_the_scheme():
    """8-bit is held tighter than 4-bit, that than 3-bit; that than 2-bit; fine-tuned is reported only."""
    highs = [limits_for_scheme(Scheme("rtn", bits))["perplexity"].high for bits in (8, 4, 3, 2)]

    assert highs == sorted(highs)
    assert "q2_K" in limits_for_scheme(Scheme("rtn", 2))["perplexity"].source
    assert limits_for_scheme(Scheme("lora", 16))["kl"].high is None
    assert limits_for_scheme(None)["perplexity"].high == 1.05


def test_a_small_model_is_held_to_plain_limits():
    """Under three billion parameters a calibrated 4-bit scheme has the limits of a plain one."""
    scheme = Scheme("gptq", 4, calibrated=True)

    assert scheme_class(scheme, 7_000_000_000) == "good 4-bit"
    assert scheme_class(scheme, 1_000_000) == "plain 4-bit"


@given(st.floats(0.05, 1.0))
def test_the_top1_limit_gives_way_with_confidence(confidence):
    """A less confident reference flips more; a confident one is held to the limit itself."""
    limit = scaled_to_confidence(Limit(0.9, None, "x"), confidence)

    assert 0 <= limit.low <= 0.9
    assert (limit.low == 0.9) == (confidence >= 0.6)
    assert scaled_to_confidence(Limit(None, None, "x"), confidence).low is None


INSTALLS = {
    "aqlm": "pip install 'aqlm[gpu,cpu]' 'accelerate>=1.1.0'",
    "auto-round": "pip install 'auto-round>=0.5'",
    "awq": "pip install gptqmodel 'accelerate>=1.1.0'",
    "bitnet": "pip install 'accelerate>=1.1.0'",
    "bitsandbytes": "pip install 'bitsandbytes>=0.46.1' 'accelerate>=1.1.0'",
    "compressed-tensors": "pip install 'compressed-tensors>=0.15.0'",
    "eetq": "pip install kernels 'accelerate>=1.1.0'",
    "fbgemm_fp8": "pip install fbgemm-gpu 'accelerate>=1.1.0'",
    "fp8": "pip install 'accelerate>=1.1.0'",
    "gptq": "pip install gptqmodel optimum",
    "higgs": "pip install 'flute-kernel>=0.3.0' fast_hadamard_transform 'accelerate>=1.1.0'",
    "hqq": "pip install hqq",
    "intel/auto-round": "pip install 'auto-round>=0.5'",
    "mxfp4": "pip install 'accelerate>=1.1.0'",
    "quanto": "pip install optimum-quanto 'accelerate>=1.1.0'",
    "quark": "pip install amd-quark",
    "sinq": "pip install sinq",
    "spqr": "pip install 'spqr_quant[gpu]' 'accelerate>=1.1.0'",
    "torchao": "pip install torchao",
    "vptq": "pip install 'vptq>=0.0.4' 'accelerate>=1.1.0'",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoints.micro(tmp_path_factory.mktemp("models") / "quantized")


@pytest.mark.parametrize("method", PACKAGES)
def test_a_missing_package_is_named_with_its_install_line(folder, monkeypatch, method):
    """A directory of this method, none of its packages there, is refused at once with the exact line."""
    for module, _ in PACKAGES[method]:
        monkeypatch.setitem(sys.modules, module, None)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": method}}))

    with pytest.raises(EngineError, match=f"quantized by {method}") as caught:
        load(str(folder))

    assert caught.value.attempt == INSTALLS[method]


def test_only_what_is_missing_is_asked_for(monkeypatch):
    """A package that is there is not in the line, a plain model needs none, and nothing is imported to find out."""
    config = {"quantization_config": {"quant_method": "GPTQ"}}
    monkeypatch.setitem(PACKAGES, "gptq", (("json", "json"), ("xml.dom", "no_such>=1"), ("no_such.thing", "thing>=1")))
    assert missing_packages(config) == ("gptq", (("no_such.thing", "thing>=1"),))
    monkeypatch.setitem(sys.modules, "without_a_spec", ModuleType("without_a_spec"))
    assert (is_installed("without_a_spec"), is_installed("json.no_such"), is_installed("json.tool")) == (
        False,
        False,
        True,
    )
    assert missing_packages({}) == ("", ())
    assert missing_packages({"quantization_config": {"quant_method": "newest"}}) == ("newest", ())
