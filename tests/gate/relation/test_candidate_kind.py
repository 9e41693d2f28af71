"""What was done to a candidate, told by its scheme or by a sample of its weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from swcheck.base.limits import DEFAULTS, limits_for_kind
from swcheck.base.records import Scheme
from swcheck.gate.baseline import packing
from swcheck.gate.relation.candidate_kind import (
    kind_from_scheme,
    kind_from_weights,
    merge_words,
    reversed_share,
    sample_weights,
)
from swcheck.lens.architecture.anatomy import anatomy
from swcheck.quantizers import rounding
from swcheck.testing.damage import bases as relatives


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def edited(model, edit, only=""):
    """A copy with ``edit`` done to every linear map of its layers whose name ends so."""
    copied = copy.deepcopy(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, module in copied.model.layers.named_modules():
            if isinstance(module, nn.Linear) and name.endswith(only):
                edit(module.weight)
    return copied


def noise(level):
    return lambda weight: weight.add_(torch.randn_like(weight) * weight.std() * level)


def low_rank(weight):
    """What a merged LoRA adds, two ranks of it, a twentieth of the weights' size."""
    delta = torch.randn(len(weight), 2) @ torch.randn(2, weight.shape[1])
    weight.add_(delta / delta.std() * weight.std() * 0.05)


def rounded(bits, block):
    return lambda weight: weight.copy_(rounding.minmax(weight, bits, block=block, reading="code"))


def symmetric(weight):
    """Eight bits in blocks, stored in bfloat16."""
    weight.copy_(rounding.absmax(weight, 8, block=64).bfloat16())


def pruned(share):
    def edit(weight):
        weight[weight.abs() <= weight.abs().flatten().kthvalue(int(share * weight.numel())).values] = 0

    return edit


def told(candidate, reference):
    return kind_from_weights(sample_weights(anatomy(candidate)), sample_weights(anatomy(reference)))


@pytest.mark.parametrize(
    ("edit", "only", "name"),
    [
        (noise(0.1), "", "finetuned"),
        (noise(0.02), "", "finetuned"),
        (low_rank, "q_proj", "finetuned"),
        (rounded(8, 128), "", "quantized"),
        (rounded(6, 64), "", "quantized"),
        (rounded(4, 32), "", "quantized"),
        (rounded(3, None), "", "quantized"),
        (rounded(2, 128), "", "quantized"),
        (symmetric, "", "quantized"),
        (pruned(0.5), "", "pruned"),
        (pruned(0.3), "", "pruned"),
        (pruned(0.05), "", "quantized"),
        (nn.Parameter.zero_, "", "quantized"),
    ],
    ids=["tuned", "tuned-lightly", "lora", "8", "6", "4", "3", "2", "absmax-bfloat16", "half", "third", "few", "nothing"],
)  # fmt: skip
def test_plain_weights_tell_what_was_done(model, edit, only, name):
    """Rounding leaves few levels or the order of the values, pruning zeros, training neither; what is unclear is held strictly."""
    assert told(edited(model, edit, only), model).name == name


@pytest.mark.parametrize("edit", [noise(0.5), pruned(0.5), rounded(4, 32)], ids=["noise", "zeros", "grid"])
def test_an_edit_of_one_layer_is_no_training(model, edit):
    """One damaged matrix keeps a candidate under the limits of quantization, whatever was done to it."""
    assert told(edited(model, edit, "1.mlp.down_proj"), model).name == "quantized"


@pytest.mark.parametrize(
    "change", [copy.deepcopy, relatives.permuted, relatives.rotated, lambda m: copy.deepcopy(m).bfloat16()]
)
def test_other_clothes_are_no_training(model, change):
    """A copy, another dtype and another basis are held as an unknown scheme is."""
    found = told(change(model), model)
    assert found.name == "quantized"
    assert "unknown scheme" in found.why


def test_another_depth_or_width_is_pruned(model):
    """Fewer layers or narrower matrices are seen, and said."""
    short, narrow = copy.deepcopy(model), copy.deepcopy(model)
    del short.model.layers[3:]
    for layer in narrow.model.layers:
        layer.mlp.up_proj.weight = nn.Parameter(layer.mlp.up_proj.weight[:200])
    assert told(short, model).name == "pruned"
    assert told(short, model).why == "3 layers where the reference has 4"
    assert told(model, short).name == "finetuned"
    assert told(narrow, model).name == "pruned"


@pytest.mark.parametrize(
    ("scheme", "name"),
    [
        (Scheme("lora", 32, 32), "finetuned"),
        (Scheme("ia3", 16), "finetuned"),
        (Scheme("pruned", 16), "pruned"),
        (Scheme("nf4", 4), "quantized"),
        (Scheme("float", 16), "quantized"),
    ],
)
def test_a_scheme_says_what_was_done(scheme, name):
    """An adapter is a fine-tune, a stored format a quantization, and both are sure."""
    found = kind_from_scheme(scheme)
    assert (found.name, found.sure) == (name, True)


def test_order_is_kept_by_rounding_alone():
    """A monotone map swaps no neighbours, a reversed one all of them, ties do not count."""
    values = torch.randn(3, 96, generator=torch.Generator().manual_seed(0))
    assert reversed_share((values * 4).round() / 4, values) == 0
    assert reversed_share(-values, values) == 1
    assert reversed_share(values, torch.zeros(3, 96)) == 0


def test_a_baseline_tells_the_same(model):
    """The sample survives the file, so that the reference's weights are not needed."""
    before = sample_weights(anatomy(model))
    again = packing.Unpacker().unpack(packing.pack(before), "it")
    for edit in (noise(0.1), pruned(0.5), rounded(4, 32)):
        candidate = sample_weights(anatomy(edited(model, edit)))
        assert kind_from_weights(candidate, again) == kind_from_weights(candidate, before)
    assert kind_from_weights(before, again).name == "quantized"


def test_limits_of_a_kind():
    """What is fine-tuned has a wider activation, and no limit of quantization; a guess keeps one against collapse."""
    asked, guessed = limits_for_kind("finetuned"), limits_for_kind("pruned", sure=False)
    assert (asked["activation"].low, asked["activation"].high) == (0.5, 2.0)
    assert {asked[name].high for name in ("perplexity", "kl")} == {None}
    assert asked["contribution"] == DEFAULTS["contribution"]
    assert guessed["perplexity"].high == 1.5
    assert "--swcheck-kind=pruned lifts it" in guessed["perplexity"].source
    sparse, merged = limits_for_kind("pruned", sure=False, pattern="2:4"), limits_for_kind("merged", sure=False)
    assert sparse["perplexity"].high == 2.2
    assert sparse["perplexity"].source.startswith("2:4 sparsity: Wanda and SparseGPT")
    assert "--swcheck-kind=pruned lifts it" in sparse["perplexity"].source
    assert (merged["perplexity"].high, merged["activation"].low) == (1.5, 0.5)
    assert "merged by its files, which nobody declared" in merged["perplexity"].source


@pytest.mark.parametrize(("kept", "width", "pattern"), [(2, 4, "2:4"), (4, 8, "4:8"), (8, 16, ""), (1, 4, "2:4")])
def test_sparsity_in_a_pattern_is_recognised(model, kept, width, pattern):
    """Of so many neighbours so many are left, by any score: the narrowest pattern is told; half of 16 is none."""

    def prune(weight):
        groups = weight.abs().reshape(len(weight), -1, width)
        weight.masked_fill_((groups < groups.topk(kept, dim=2).values[..., -1:]).reshape(weight.shape), 0)

    found = told(edited(model, prune), model)
    assert (found.name, found.pattern, found.sure) == ("pruned", pattern, False)
    assert (f", {pattern} sparsity" in found.why) == bool(pattern)
    assert told(edited(model, prune), edited(model, prune)).pattern == ""


def test_a_merge_is_told_by_its_file(tmp_path):
    """The file that mergekit leaves, with its method; another folder, a hub id and none at all are no merge."""
    assert merge_words("") == merge_words("owner/name") == merge_words(str(tmp_path)) == ""
    (tmp_path / "mergekit_config.yml").write_text("models: []\nmerge_method: 'slerp'\n")
    assert merge_words(str(tmp_path)) == "mergekit merged it (slerp), as its mergekit_config.yml says"
    (tmp_path / "mergekit_config.yml").write_text("nothing of use")
    assert merge_words(str(tmp_path)) == "mergekit merged it, as its mergekit_config.yml says"
