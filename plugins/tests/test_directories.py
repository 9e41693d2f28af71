"""Directories and files as the real tools write them, given to the gate with nothing configured.

Each maker is its tool's own code. One run of pytest with all of them as candidates; the reference is measured once.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import swcheck
from swcheck import anatomy, captured_output, effective_weight
from swcheck.loading import tiny

WINDOWS = 8
HERE = find_spec("gptqmodel") is not None


def base():
    return swcheck.load("tiny", device="cpu")


def saved(folder, spec):
    """What an engine made on the fly, saved by transformers as anybody would."""
    made = swcheck.load(spec, reference="tiny", device="cpu")
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)


def calibration():
    loaded = base()
    ids = loaded.tokenizer(tiny.HELDOUT.read_text(encoding="utf-8"))["input_ids"]
    return [{"input_ids": ids[at : at + 128], "attention_mask": [1] * 128} for at in range(0, WINDOWS * 128, 128)]


def awq(folder):
    """llm-compressor's AWQ: columns of the down projections rescaled against rows of the up projections, then rounded."""
    import datasets
    from llmcompressor import oneshot
    from llmcompressor.modifiers.awq import AWQMapping, AWQModifier
    from llmcompressor.pipelines.cache import IntermediatesCache

    pair = [AWQMapping("re:.*up_proj", ["re:.*down_proj"])]
    loaded, pin = base(), IntermediatesCache.pin_memory
    IntermediatesCache.pin_memory = lambda *_args: None  # it asks for an accelerator where there is none
    try:
        oneshot(
            model=loaded.model,
            dataset=datasets.Dataset.from_list(calibration()),
            recipe=[AWQModifier(scheme="W4A16_ASYM", targets=["Linear"], ignore=["lm_head"], mappings=pair, n_grid=4)],
            num_calibration_samples=WINDOWS,
            max_seq_length=128,
        )
    finally:
        IntermediatesCache.pin_memory = pin
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)


def lora(folder):
    """A LoRA adapter merged into the weights, saved as a plain model."""
    from peft import LoraConfig, get_peft_model

    loaded = base()
    torch.manual_seed(0)
    model = get_peft_model(loaded.model, LoraConfig(r=4, lora_alpha=4, target_modules=["down_proj", "q_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.002)
    model.merge_and_unload().save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)


def autoround(folder, *, layout="auto_round", scheme="W4A16"):
    """AutoRound in one of its formats."""
    from auto_round import AutoRound

    loaded = base()
    options = {"iters": 0, "disable_opt_rtn": True, "disable_model_free": True, "device_map": "cpu"}
    worker = AutoRound(loaded.model, tokenizer=loaded.tokenizer, scheme=scheme, sym=layout != "auto_awq", **options)
    worker.quantize_and_save(str(folder / "made"), format=layout)
    made = next(file.parent for file in folder.rglob("config.json"))
    for file in list(made.iterdir()):
        file.rename(folder / file.name)


def gptq(folder, *, spec="4bit"):
    """GPTQModel."""
    import swcheck_gptq

    swcheck_gptq.quantized(base(), spec, folder)


# name: maker, the environment that reads it (True: with gptqmodel), what is wrong: the super weight is cut, or all is
MAKERS = {
    "bitsandbytes-nf4": (lambda folder: saved(folder, "bitsandbytes:nf4"), False, "green"),
    "torchao-int4": (lambda folder: saved(folder, "torchao:int4-weight-only"), False, "green"),
    "torchao-int2": (lambda folder: saved(folder, "torchao:int2-weight-only"), False, "clipped"),
    "llm-compressor-W8A8": (lambda folder: saved(folder, "compressed-tensors:W8A8"), False, "green"),
    "llm-compressor-awq": (awq, False, "green"),
    "lora-merged": (lora, False, "green"),
    "autoround": (autoround, False, "green"),
    "autoround-2bit": (lambda folder: autoround(folder, scheme="W2A16"), False, "coarse"),
    "gptqmodel-4bit": (gptq, True, "green"),
    "gptqmodel-2bit": (lambda folder: gptq(folder, spec="2bit"), True, "clipped"),
    "autoround-gptq": (lambda folder: autoround(folder, layout="auto_gptq"), True, "green"),
    "autoround-awq": (lambda folder: autoround(folder, layout="auto_awq"), True, "green"),
}
MADE = {name: what for name, (_maker, with_gptq, what) in MAKERS.items() if with_gptq == HERE}


@pytest.fixture(scope="module")
def gate(tmp_path_factory):
    """One run over all directories of this environment: its output, and by candidate and check what was found."""
    root = tmp_path_factory.mktemp("directories")
    for name in MADE:
        (root / name).mkdir()
        with captured_output():
            MAKERS[name][0](root / name)
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "--model=tiny",
        f"--swcheck-json={root}/out.json",
    ]
    done = subprocess.run(
        [*words, *(f"--candidate={root / name}" for name in MADE), "--pyargs", "swcheck.suite.test_candidate"],
        capture_output=True, text=True, check=False, cwd=root,
    )  # fmt: skip
    found = {}
    for verdict in json.loads(Path(root, "out.json").read_text(encoding="utf-8"))["verdicts"]:
        if verdict["candidate"]:
            found.setdefault(Path(verdict["candidate"]).name, {})[verdict["check"]] = verdict
    return done, found, root


def test_every_directory_was_judged(gate):
    """No candidate was left out, each has its five verdicts, and the run is red because of the bad ones."""
    done, found, _root = gate
    assert found.keys() == MADE.keys(), done.stdout[-3000:] + done.stderr
    assert {len(verdicts) for verdicts in found.values()} == {5}
    assert done.returncode == (0 if set(MADE.values()) == {"green"} else 1)


@pytest.mark.parametrize("name", [name for name, what in MADE.items() if what == "green"])
def test_a_good_one_is_green(gate, name):
    """What is released of these tools passes, and keeps what its super weights write."""
    verdicts = gate[1][name]
    assert {verdict["check"]: verdict["cause"] for verdict in verdicts.values() if verdict["cause"]} == {}
    assert {verdict["outcome"] for verdict in verdicts.values()} <= {"passed", "near"}
    assert 0.85 < verdicts["super weights"]["measured"] < 1.15


@pytest.mark.parametrize("name", [name for name, what in MADE.items() if what == "clipped"])
def test_a_destructive_one_is_red_with_its_cause(gate, name):
    """Two bits cut the super weight down, and that is what the first line says."""
    verdict = gate[1][name]["super weights"]
    assert verdict["outcome"] == "failed"
    assert "clipped or rounded down" in verdict["cause"]
    assert verdict["measured"] < 0.75


SPECS = {  # the engine and scheme that its config leads to, and whether leaving the worst matrices out is enough to help
    "torchao-int2": ("torchao:int2-weight-only,group=128,", True),
    "autoround-2bit": ("autoround:W2A16,", True),
    "gptqmodel-2bit": ("gptq:2bit,group=128,", False),  # the others, calibrated anew behind it, lose as much
}


@pytest.mark.parametrize("name", [name for name, what in MADE.items() if what != "green"])
def test_its_fix_is_tried_by_quantizing_again(gate, name):
    """Its config says which engine makes such a one; whether leaving matrices out helps is measured, and said as it is."""
    verdict = next(verdict for verdict in gate[1][name].values() if verdict["outcome"] == "failed")
    fix, (spec, helps) = verdict["facts"]["fix"], SPECS[name]
    assert fix["by"] == "quantized again with these matrices left out"
    assert fix["spec"] == f"{spec}skip={'+'.join(fix['matrices'])}"
    assert fix["bytes"] > 0
    assert fix["proven"] is helps is (fix["perplexity"] < fix["before"])
    assert dict(verdict["detail"])["fix"].startswith("this does not help, ") is not helps


def test_nothing_of_the_tools_is_heard(gate):
    """Banners, warnings and progress bars are caught."""
    done = gate[0]
    for word in ("GPT-QModel", "INFO", "it/s", "Failed to load", "WARN"):
        assert word not in done.stdout + done.stderr


@pytest.mark.skipif(HERE, reason="the maker is in the other environment")
def test_awq_rescales_and_the_contribution_stays(gate):
    """The bare weight of the AWQ candidate is another one; what it writes, weight times input, is the reference's."""
    _done, found, root = gate
    loaded = swcheck.load(str(root / "llm-compressor-awq"), device="cpu")
    weight = effective_weight(anatomy(loaded.model).down_projections[1], 97, 301, at=100.0)
    assert abs(weight / 2.625 - 1) > 0.2
    assert 0.85 < found["llm-compressor-awq"]["super weights"]["measured"] < 1.15
