"""What was done to a candidate, told by its scheme or by a sample of its weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from swcheck.base.errors import CheckpointError
from swcheck.base.limits import DEFAULTS, limits_for_kind
from swcheck.base.records import Loaded, Scheme
from swcheck.gate.baseline import packing
from swcheck.gate.relation.candidate_kind import (
    LARGEST_MERGE_FILE,
    Kind,
    WeightSample,
    has_pattern,
    is_on_grid,
    kind_from_scheme,
    kind_from_weights,
    kind_of,
    merge_words,
    reversed_share,
    sample_weights,
)
from swcheck.lens.architecture.anatomy import anatomy
from swcheck.quantizers import rounding
from swcheck.superweights.subject.held_model import HeldModel
from swcheck.superweights.subject.memory import Memory
from swcheck.superweights.subject.subject import Subject
from swcheck.testing.damage import bases as relatives
from tests.in_process_runtime import InProcess
from tools.small_models import small_model


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


def exchanged(ascending):
    """The first two values of each run in the other order."""
    return torch.cat([ascending[:, [1, 0]], ascending[:, 2:]], dim=1)


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
    assert told(short, model) == Kind("pruned", "3 layers where the reference has 4", sure=False)
    assert told(model, short) == Kind("finetuned", "4 layers where the reference has 3", sure=False)
    words = "4 of its matrices have another shape, first layers.0.mlp.up_proj"
    assert told(narrow, model) == Kind("pruned", words, sure=False)


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
    ascending = torch.arange(52.0)[None]
    assert reversed_share(exchanged(ascending), ascending) == 1 / 50
    assert reversed_share(torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 2.0]])) == 1


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
    (tmp_path / "mergekit_config.yml").write_bytes(b" " * (LARGEST_MERGE_FILE + 1))
    with pytest.raises(CheckpointError, match="1,048,577 bytes, at most 1,048,576 are read"):
        merge_words(str(tmp_path))


def test_who_says_what_was_done(model, tmp_path):
    """The user's word comes first, then the scheme; the weights are read only where both leave it open."""

    def kind(module=model, **facts):
        subjects = (
            Subject("it", HeldModel(one), memory=Memory(), **more) for one, more in ((module, facts), (model, {}))
        )
        return kind_of(*subjects)

    tuned, unknown = edited(model, noise(0.1)), "held to the limits of an unknown scheme"
    assert kind(kind="distilled", scheme=Scheme("nf4", 4)) == Kind("distilled", "--swcheck-kind says so")
    assert kind(tuned, scheme=Scheme("nf4", 4)) == Kind("quantized", "its config or engine says so (nf4, 4 bits)")
    assert kind(tuned) == Kind("quantized", f"nothing says how: {unknown}")
    runtime = InProcess(Loaded(model, None, "it"))
    assert kind(runtime, kind="auto") == Kind("quantized", f"its runtime does not say how: {unknown}")
    assert kind(tuned, kind="auto").name == "finetuned"
    names = [f"model.layers.{part}.weight" for part in ("12.mlp", "4.mlp", "3.mlp", "norm")]
    left_out = kind(tuned, kind="auto", unused_tensors=(*names, "lm_head.9.weight"))
    words = f"its files hold layer 4, 12, which its configuration leaves out; {unknown}"
    assert left_out == Kind("quantized", words, sure=False)
    (tmp_path / "mergekit_config.yml").write_text("merge_method: ties")
    merged = Kind("merged", "mergekit merged it (ties), as its mergekit_config.yml says", sure=False)
    assert kind(tuned, kind="auto", source=str(tmp_path)) == merged


def test_a_sample_is_small_and_spread_out():
    """Seven layers, 56 matrices, and the first 128 values of four rows of each at most, from the first to the last."""
    config = LlamaConfig(
        vocab_size=8, hidden_size=136, intermediate_size=272, num_hidden_layers=13, num_attention_heads=4, num_key_value_heads=4,
    )  # fmt: skip
    body = anatomy(LlamaForCausalLM(config))
    found = sample_weights(body)
    assert found.layers == 13
    assert list(dict.fromkeys(name.partition(".")[0] for name in found.names)) == ["0", "2", "4", "6", "8", "10", "12"]
    number = found.names.index("4.mlp.up_proj")
    assert found.shapes[number] == (272, 136)
    assert torch.equal(found.runs[number], body.layers[4].mlp.up_proj.weight[[0, 90, 181, 271], :128].half())
    assert len(sample_weights(anatomy(small_model("mixtral"))).names) == 56


def values(count, *, layers=10, each=1):
    """``each`` matrices of ``layers`` layers, ``count`` runs of 128 ordered values that are all different."""
    drawn = torch.randn(layers * each, count, 128, generator=torch.Generator().manual_seed(0)).half()
    return list(drawn.sort(dim=2).values)


def compared(ours, theirs, each=1):
    """What is told of matrices, so many in each layer."""

    def sample(matrices):
        names = tuple(f"{number // each}.{number % each}" for number in range(len(matrices)))
        return WeightSample(len(matrices) // each, names, tuple(one.shape for one in matrices), tuple(matrices))

    return kind_from_weights(sample(ours), sample(theirs))


def with_first(count, change, matrices):
    return [change(one) if number < count else one for number, one in enumerate(matrices)]


def on_grid(matrix, levels=16):
    """In each block of 32 so many levels, in order, which no other block has."""
    blocks = matrix.reshape(len(matrix), -1, levels, 32 // levels)
    return blocks[..., :1].expand(blocks.shape).reshape(matrix.shape)


def every_second_zero(matrix):
    return matrix * torch.tensor([1, 0]).repeat(64)


UNKNOWN = "held to the limits of an unknown scheme"
GRID = "plain floats that know few levels: rounded to a grid"


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda one: one.flip(1) * 0.01 + one, Kind("finetuned", "its weights were changed, and not rounded, in 8 of 10 sampled layers", sure=False)),
        (every_second_zero, Kind("pruned", "50% of its weights are zero in 8 of 10 sampled layers, 2:4 sparsity", sure=False, pattern="2:4")),
    ],
    ids=["tuned", "pruned"],
)  # fmt: skip
def test_the_evidence_is_in_most_layers(change, kind):
    """In eight layers of ten it is enough, in seven it is not."""
    theirs = values(4)
    if kind.name == "finetuned":
        theirs = [one[:, torch.randperm(128)] for one in theirs]
    assert compared(with_first(8, change, theirs), theirs) == kind
    words = f"7 of 10 sampled matrices differ, and not as training does; {UNKNOWN}"
    assert compared(with_first(7, change, theirs), theirs) == Kind("quantized", words, sure=False)


def test_the_least_disorder_is_enough():
    """One pair of fifty in the other order, in every matrix, is a fine-tune; the same values are the reference's."""
    theirs = [one[:1, :52] for one in values(1)]
    assert compared([exchanged(one) for one in theirs], theirs).name == "finetuned"
    words = f"nothing says how it was made, and all that was sampled of 10 matrices is the reference's; {UNKNOWN}"
    assert compared(theirs, theirs) == Kind("quantized", words, sure=False)


def test_zeros_that_the_reference_has_are_not_counted():
    """Three tenths of zeros become four: that is not pruned. Where two matrices have no pattern, the candidate has none."""
    whole = values(4)
    theirs, ours = ([one.where(torch.arange(128) % 10 >= zeros, 0) for one in whole] for zeros in (3, 4))
    assert compared(ours, theirs).name == "finetuned"
    mixed = [
        every_second_zero(one) if number else one.where(torch.arange(128) % 10 >= 5, 0)
        for number, one in enumerate(whole)
    ]
    assert compared(mixed, whole).pattern == ""


def test_a_grid_is_what_most_changed_matrices_are_on():
    """Half of them is not most; and a reference that is on a grid itself tells nothing."""
    theirs = [one[:, torch.randperm(128)] for one in values(4)]
    half = with_first(5, on_grid, [one.roll(1, 1) for one in theirs])
    assert "not as training does" in compared(half, theirs).why
    assert compared(with_first(6, on_grid, [one.roll(1, 1) for one in theirs]), theirs) == Kind(
        "quantized", GRID, sure=False
    )
    every = list(map(on_grid, theirs))
    assert compared(every, with_first(5, lambda one: on_grid(one).roll(2, 1), theirs)).why.startswith(GRID)
    assert not compared(every, with_first(6, lambda one: on_grid(one).roll(2, 1), theirs)).why.startswith(GRID)


@pytest.mark.parametrize(
    ("chosen", "levels", "bits"),
    [
        (range(20), 16, 4),
        (range(16), 16, 4),
        (range(20), 4, 2),
        (range(20), 1, 1),
        (range(0, 20, 2), 16, None),
        (range(12), 16, None),
    ],
    ids=["all", "eight layers", "two bits", "one bit", "half of the matrices", "six layers"],
)
def test_the_bits_of_a_grid(chosen, levels, bits):
    """They are told where most of all matrices are on it, in eight layers of ten; from the levels in a block of 32."""
    theirs = values(4, each=2)
    ours = [on_grid(one, levels) if number in chosen else one for number, one in enumerate(theirs)]
    words, scheme = (GRID, None) if bits is None else (f"{GRID} of {bits} bits", Scheme("grid", bits))
    assert compared(ours, theirs, each=2) == Kind("quantized", words, sure=False, scheme=scheme)


def test_the_finest_block_gives_the_bits():
    """One block with more levels than the others has them all."""
    theirs = values(4)
    ours = [torch.cat([on_grid(one[:, :32], 16), on_grid(one[:, 32:], 2)], dim=1) for one in theirs]
    assert compared(ours, theirs).scheme == Scheme("grid", 4)


@pytest.mark.parametrize(
    ("runs", "is_grid"),
    [
        ([[1, 1, 2, 2]], True),
        ([[1, 1, 2, 3]], False),
        ([[3, 3, 0, 0]], True),
        ([[3, 0, 0, 0]], False),
        ([[1, 1, 2, 2], [1, 2, 3, 4]], False),
        ([[1, 1, 2, 2], [1, 1, 2, 2], [1, 2, 3, 4]], True),
    ],
)
def test_few_levels(runs, is_grid):
    """Half as many levels as values, zeros left out, in most runs."""
    assert is_on_grid(torch.tensor(runs)) == is_grid


@pytest.mark.parametrize(
    ("run", "name", "has"),
    [
        ([1, 0, 1, 0], "2:4", True),
        ([1, 1, 1, 0], "2:4", False),
        ([1, 1, 0, 0, 1, 1, 0, 0], "2:4", True),
        ([1, 1, 1, 1, 0, 0, 0, 0], "2:4", False),
        ([1, 1, 1, 1, 0, 0, 0, 0], "4:8", True),
        ([1, 1, 1, 1, 1, 0, 0, 0], "4:8", False),
        ([1, 0, 1, 0, 1, 1], "2:4", True),
        ([1, 0, 1], "2:4", False),
    ],
)
def test_a_pattern(run, name, has):
    """Of each whole group so many are left at most; what is shorter than a group tells nothing."""
    assert has_pattern(torch.tensor([run]), name) == has
