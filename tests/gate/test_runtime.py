"""A candidate that runs in another program is judged by what that shows, and its cause is named."""

from __future__ import annotations

import pytest
import torch

import swcheck
from swcheck import (
    Capability,
    CheckpointError,
    OptionError,
    Outcome,
    RobustnessError,
    Scheme,
    assert_collapses_when_zeroed,
    assert_perplexity_within,
    assert_predictions_preserved,
    assert_super_activations_preserved,
    assert_super_weights_located,
    assert_super_weights_preserved,
)
from swcheck.lens.linear_maps import linear_maps
from swcheck.lens.replace import rounded_in_one_range
from swcheck.loading import engines
from swcheck.superweights.subject.as_subject import as_subject
from tests.in_process_runtime import InProcess, candidate

IDS = torch.randint(1, 1000, (3, 48), generator=torch.Generator().manual_seed(0))
IDS[:, 0] = 0
FLOAT = Scheme("float", 16)
NOTHING = frozenset()
ONE_WAY = frozenset(Capability) - {Capability.CHUNKS, Capability.BATCHES}
CHECKS = {
    "super weights": assert_super_weights_preserved,
    "super activations": assert_super_activations_preserved,
    "perplexity": assert_perplexity_within,
    "predictions": assert_predictions_preserved,
    "dependence": assert_collapses_when_zeroed,
}


@pytest.fixture(scope="module")
def reference():
    """tiny, measured on a few windows of its own text."""
    from swcheck.superweights.measurements.inputs import windows

    whole = as_subject(swcheck.load("tiny", device="cpu"))
    return as_subject(whole, token_ids=windows(whole)[:4, :96])


def judge(check, ours, reference):
    """The verdict of a check, red or not."""
    try:
        return CHECKS[check](ours, reference)
    except RobustnessError as error:
        return error.verdict


def zero_super_weight(module):
    module.model.layers[1].mlp.down_proj.weight[97, 301] = 0


def halve_super_weight(module):
    module.model.layers[1].mlp.down_proj.weight[97, 301] /= 2


def take_away(module):
    """A twin of the super weight's inner neuron writes nine tenths of the opposite."""
    mlp = module.model.layers[1].mlp
    for name in ("gate_proj", "up_proj"):
        getattr(mlp, name).weight[17] = getattr(mlp, name).weight[301]
    mlp.down_proj.weight[:, 17] = 0
    mlp.down_proj.weight[97, 17] = -0.9 * mlp.down_proj.weight[97, 301]


def scale_norm(module):
    module.model.layers[2].post_attention_layernorm.weight.mul_(3)


def scale_own_norm(module):
    module.model.layers[1].post_attention_layernorm.weight.mul_(0.3)


@pytest.fixture(scope="module")
def healthy():
    """A candidate that computes what its reference does, and shows everything."""
    return candidate(scheme=FLOAT)


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_the_same_numbers_pass(check, healthy, reference):
    """A healthy candidate passes every check, with the numbers of its own program."""
    verdict = judge(check, healthy, reference)
    assert verdict.outcome in {Outcome.PASSED, Outcome.NEAR}
    assert verdict.measured == pytest.approx(0 if check == "predictions" else 1, abs=1e-4)
    assert verdict.facts["runtime"] == "a runtime of the tests"
    assert "is computed by a runtime of the tests" in verdict.facts["notes"][0]


@pytest.mark.parametrize(
    ("check", "lacking", "words"),
    [
        ("super weights", Capability.VALUES, "the values of tensors inside a pass"),
        ("super activations", Capability.VALUES, "the values of tensors inside a pass"),
        ("dependence", Capability.OVERRIDE, "a pass with a weight overridden"),
    ],
)
def test_what_is_not_shown_is_not_applicable(check, lacking, words, reference):
    """A check whose capability is missing says so, and is never green."""
    verdict = judge(check, candidate(shows=frozenset(Capability) - {lacking}), reference)
    assert verdict.outcome is Outcome.NOT_APPLICABLE
    assert verdict.summary == f"this runtime does not show {words} (a runtime of the tests)"


class CouldShowMore(InProcess):
    advice = "start it with --all"


def test_how_a_program_would_show_more_is_said(reference, monkeypatch):
    """Beside what it does not show."""
    monkeypatch.setattr("tests.in_process_runtime.InProcess", CouldShowMore)
    ours = candidate(shows=())
    verdict = judge("super weights", ours, reference)
    assert verdict.summary.endswith("(a runtime of the tests); start it with --all")
    assert ours.model.not_shown(Capability.VALUES).attempt == "start it with --all"


@pytest.mark.slow
@pytest.mark.parametrize("check", ["perplexity", "predictions"])
def test_log_probabilities_alone_are_judged(check, reference):
    """Perplexity, KL and top-1 work in every runtime, red on a damaged one and green on a good one."""
    assert not judge(check, candidate(shows=NOTHING), reference).red
    bad = judge(check, candidate(zero_super_weight, shows=NOTHING), reference)
    assert bad.outcome is Outcome.FAILED
    assert ("not known", "which layer: a runtime of the tests shows none") in bad.detail


@pytest.mark.slow
def test_the_likeliest_tokens_are_enough(reference):
    """Where a server tells only the likeliest tokens, KL is a lower bound, zero for the same model."""
    whole = judge("predictions", candidate(scale_norm, shows=NOTHING), reference)
    few = judge("predictions", candidate(scale_norm, shows=NOTHING, told=8), reference)
    assert 0.5 * whole.measured < few.measured <= whole.measured + 1e-9
    assert judge("predictions", candidate(shows=NOTHING, told=8), reference).measured < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_a_lost_super_weight_is_named_in_every_check(check, reference):
    """It is restored in the program itself, and the nats return."""
    verdict = judge(check, candidate(zero_super_weight), reference)
    assert verdict.outcome is Outcome.FAILED
    assert verdict.cause_kind == "super_weight"
    assert any(name == "proof" and "100% of the loss returns" in words for name, words in verdict.detail)
    assert "layers.1.mlp.down_proj" in verdict.attempt


@pytest.mark.slow
def test_a_weakened_super_weight_is_told_from_a_changed_input(reference):
    """Half of its value is stored, and that is what the verdict says."""
    with pytest.raises(RobustnessError, match=r"^super weight at layer 1 \[97, 301\] weakened \(x0\.50\)"):
        assert_super_weights_preserved(candidate(halve_super_weight, scheme=FLOAT), reference)


@pytest.mark.slow
def test_an_activation_lost_beside_a_kept_super_weight_is_no_fault_of_the_weight(reference):
    """What takes it away is not seen in a program without modules, and no weight is blamed for it."""
    verdict = judge("super activations", candidate(take_away), reference)
    assert verdict.outcome is Outcome.FAILED
    assert verdict.measured == pytest.approx(0.1, abs=0.02)
    assert verdict.cause_kind not in {"super_weight", "super_activation"}
    assert any("what the super weights write (x1.000" in words for _, words in verdict.detail)


@pytest.mark.slow
def test_what_a_kept_super_weight_writes_is_no_fault_of_the_weight(reference):
    """Its input has changed: no weight is named. Where one of two was zeroed, that one is, though the other is as it was."""
    with pytest.raises(RobustnessError) as caught:
        assert_super_weights_preserved(candidate(scale_own_norm), reference)
    assert caught.value.verdict.cause_kind != "super_weight"
    two = [swcheck.SuperWeight(1, 97, 301), swcheck.SuperWeight(2, 3, 4)]
    with pytest.raises(RobustnessError, match=r"layer 1 \[97, 301\] rounded away"):
        assert_super_weights_preserved(candidate(zero_super_weight), reference, super_weights=two)


@pytest.mark.parametrize(
    ("ids", "cause"),
    [
        (lambda text, plain: plain(text)[1:], "tokenizer or BOS policy differs"),
        (lambda text, plain: [9 if one == 300 else one for one in plain(text)], "tokenizer"),
    ],
    ids=["no BOS", "a lost merge"],
)
def test_its_own_tokenizer_is_compared(ids, cause, reference):
    """BOS on the sample texts, and every other id on the text that is measured on."""
    plain = swcheck.load("tiny", device="cpu").tokenizer
    ours = candidate(ids=lambda text: ids(text, lambda one: plain(one)["input_ids"]))
    verdict = judge("perplexity", ours, reference)
    assert verdict.cause.startswith(cause)
    assert verdict.cause_kind == "tokenizer"


@pytest.mark.slow
def test_kernels_are_blamed_if_the_stored_weights_are_fine(reference):
    """The twin in torch keeps what the program loses."""
    verdict = judge("perplexity", candidate(tail=40, twin="tiny", shows=ONE_WAY), reference)
    assert verdict.cause_kind == "kernels"
    assert "loses what the same stored weights keep in torch" in verdict.cause
    assert any(name == "proof" and "in torch" in words for name, words in verdict.detail)


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "kind"), [(FLOAT, "conversion"), (Scheme("absmax", 8), "tensor")])
def test_stored_weights_are_blamed_if_they_lose_as_much(scheme, kind, reference, monkeypatch):
    """The cause is found in torch; of floats it is a conversion, which has not quantized anything."""
    ours, plain = candidate(scale_norm, scheme=scheme, twin="twin"), swcheck.load("tiny", device="cpu")
    with torch.no_grad():
        scale_norm(plain.model)
    monkeypatch.setattr(engines, "load", lambda *_args, **_options: plain)
    verdict = judge("perplexity", ours, reference)
    assert verdict.cause_kind == kind
    assert "norm model.layers.2.post_attention_layernorm is scaled x3" in verdict.cause
    assert verdict.cause.startswith("conversion, not quantization") is (kind == "conversion")
    if kind == "conversion":
        assert verdict.detail[0][1].startswith("the residual stream departs first in layer 2")


def test_without_a_twin_the_first_layer_is_named(reference):
    """What is known is said: floats, so no quantization, and where the stream departs."""
    verdict = judge("perplexity", candidate(scale_norm, scheme=FLOAT), reference)
    assert (verdict.cause_kind, verdict.cause) == (
        "conversion",
        "conversion or kernels, not quantization: its weights are floats",
    )
    assert verdict.detail[0] == ("layers", verdict.detail[0][1])
    assert "departs first in layer 2" in verdict.detail[0][1]


class Lossy(InProcess):
    """Kernels that lose a little of the probability of every token."""

    def log_probabilities(self, ids):
        return super().log_probabilities(ids) - 0.005


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "words"), [(InProcess, "add no more than the noise"), (Lossy, "the kernels make it x1.0050 of that")]
)
def test_of_a_green_candidate_the_same_weights_in_torch_stand_beside_it(kind, words, reference, monkeypatch):
    """If it is asked for: what the kernels add to the loss of what is stored, and whether that is noise."""
    monkeypatch.setattr("tests.in_process_runtime.InProcess", kind)
    ours = as_subject(candidate(scheme=FLOAT, twin="tiny"))
    assert "in torch" not in judge("perplexity", ours, reference).summary
    ours.score_in_torch = True
    verdict = judge("perplexity", ours, reference)
    assert verdict.outcome is Outcome.PASSED
    assert "the same weights in torch x1.0000, KL 0.0000 nats" in verdict.summary
    assert words in verdict.summary
    assert verdict.facts["in_torch"]["kl"] < 1e-9


@pytest.mark.parametrize(
    ("twin", "words"),
    [("", "no engine loads these weights in torch"), ("rtn:bits=99", "'bits=99' in rtn:bits=99: no value")],
)
def test_why_the_same_weights_are_not_scored_in_torch(twin, words, reference):
    """Where no engine loads them, or one refuses to."""
    ours = as_subject(candidate(scheme=FLOAT, twin=twin))
    ours.score_in_torch = True
    assert f"not compared with torch: {words}" in judge("perplexity", ours, reference).summary


class WrongTail(InProcess):
    """A kernel that computes whole blocks of 32 tokens right, and what is left over wrong."""

    def log_probabilities(self, ids):
        logs, left = super().log_probabilities(ids), len(ids) % 32
        return torch.cat([logs[: len(logs) - left], logs[len(logs) - left :].roll(1, -1)]) if left else logs


def test_a_wrong_tail_of_a_kernel_is_red_though_whole_windows_pass(reference, monkeypatch):
    """Lengths around multiples of 32 are scored alone; the worst is named."""
    monkeypatch.setattr("tests.in_process_runtime.InProcess", WrongTail)
    ours = candidate(scheme=FLOAT)
    verdict = judge("perplexity", ours, reference)
    assert verdict.outcome is Outcome.FAILED
    assert verdict.cause_kind == "kernels"
    assert verdict.cause.startswith("the kernels of this candidate depend on the shape: 63 tokens alone x")


class WrongChunks(InProcess):
    """What stands in the cache is read wrongly by every chunk that does not begin at a multiple of 32."""

    caches = ("q8_0", "q1_0")

    def chunked_log_probabilities(self, ids, *, cuts, cache=""):
        logs = super().chunked_log_probabilities(ids, cuts=cuts, cache=cache)
        if cache == "q1_0":
            raise OptionError("a q1_0 cache", "this build has none", "another one")
        odd = [start for start in cuts if start % 32] if cache else []
        for start in odd:
            logs[start:] = logs[start:].roll(1, -1)
        return logs


@pytest.mark.slow
def test_a_type_of_cache_of_a_runtime_is_red_by_its_name(reference, monkeypatch):
    """Its own type gives what whole windows have; one that it does not have is said."""
    monkeypatch.setattr("tests.in_process_runtime.InProcess", WrongChunks)
    verdict = judge("perplexity", candidate(scheme=FLOAT), reference)
    assert verdict.cause.startswith("the kernels of this candidate depend on the shape: ")
    assert ", q8_0 KV cache x" in verdict.cause
    assert verdict.facts["shapes"]["lacking"] == ["chunks, q1_0 KV cache (this build has none)"]


class WrongRows(InProcess):
    """The second and further windows of a batch are computed wrongly."""

    def batched_log_probabilities(self, rows):
        first, *others = super().batched_log_probabilities(rows)
        return [first, *(one.roll(1, -1) for one in others)]


@pytest.mark.slow
@pytest.mark.parametrize("shows", [ONE_WAY | {Capability.BATCHES}, ONE_WAY], ids=["batches", "alone"])
def test_further_windows_of_a_batch_are_red_where_they_are_shown(shows, reference, monkeypatch):
    """A runtime that shows no batches says so beside its green perplexity."""
    monkeypatch.setattr("tests.in_process_runtime.InProcess", WrongRows)
    verdict = judge("perplexity", candidate(scheme=FLOAT, shows=shows), reference)
    if Capability.BATCHES in shows:
        assert " tokens in a batch of 3 x" in verdict.cause
    else:
        assert verdict.outcome is Outcome.PASSED
        assert "not in other shapes: a window in chunks and several windows at once (not shown)" in verdict.summary


class WrongRequests(InProcess):
    """What waits beside another request is computed wrongly."""

    def concurrent_log_probabilities(self, rows):
        first, *others = super().concurrent_log_probabilities(rows)
        return [first, *(one.roll(1, -1) for one in others)]


class OneAtATime(InProcess):
    """It takes no second request."""

    def concurrent_log_probabilities(self, rows):
        raise CheckpointError("the tests", "it answers 429", "ask later")


@pytest.mark.slow
@pytest.mark.parametrize("runtime", [WrongRequests, OneAtATime])
def test_requests_at_once_are_red_where_they_are_wrong_and_not_where_they_are_refused(runtime, reference, monkeypatch):
    """A program that takes one request after another has no fault; the report says that the shape was not scored."""
    monkeypatch.setattr("tests.in_process_runtime.InProcess", runtime)
    verdict = judge("perplexity", candidate(scheme=FLOAT), reference)
    if runtime is WrongRequests:
        assert " tokens in 3 requests at once x" in verdict.cause
    else:
        assert verdict.outcome is Outcome.PASSED
        assert "33 tokens in 3 requests at once (it answers 429)" in verdict.facts["shapes"]["lacking"]


class Unsteady(InProcess):
    """Another rounding in every run."""

    runs = 0

    def log_probabilities(self, ids):
        self.runs += 1
        return super().log_probabilities(ids) - 1e-3 * self.runs


@pytest.mark.slow
def test_two_runs_of_a_runtime_are_its_noise(reference, healthy, monkeypatch):
    """What differs between them is the noise that stands in the report."""
    monkeypatch.setattr("tests.in_process_runtime.InProcess", Unsteady)
    verdict = judge("perplexity", candidate(scheme=FLOAT), reference)
    assert verdict.facts["noise"] > 1e-3
    assert judge("perplexity", healthy, reference).facts["noise"] < 1e-4


def test_of_a_quantized_one_the_layer_that_departs_most_is_named(reference):
    """Where nothing is proven the cause is unknown, and says so."""
    verdict = judge("perplexity", candidate(scale_norm), reference)
    assert (verdict.cause_kind, verdict.cause) == ("unknown", "not the super weights")
    assert "departs most in layer 2" in verdict.detail[0][1]


def test_of_one_that_shows_nothing_no_cause_is_claimed(reference):
    """A zeroed super weight behind log-probabilities alone is not said to be something else."""
    verdict = judge("perplexity", candidate(zero_super_weight, shows=()), reference)
    assert verdict.cause_kind == "unknown"
    assert verdict.cause.startswith("the cause is not known")
    assert "not the super weights" not in str(verdict)


def round_inputs(module):
    """As a program that quantizes activations in one range a pass; it is never undone."""
    for one in linear_maps(module):
        one.module.register_forward_pre_hook(lambda _, args: (rounded_in_one_range(args[0], 8),))


@pytest.mark.slow
@pytest.mark.parametrize(("edit", "kind"), [(round_inputs, "rounded_inputs"), (scale_norm, "unknown")])
def test_rounded_inputs_are_the_cause_only_where_the_reference_loses_as_much_by_them(edit, kind, reference):
    """The super weight's own input makes its range so wide that little is left of the others: its map is to be spared."""
    verdict = judge("predictions", candidate(edit, scheme=Scheme("int8", 8, 8)), reference)

    assert verdict.cause_kind == kind
    if kind == "rounded_inputs":
        assert verdict.cause.startswith("the input of model.layers.1.mlp.down_proj is rounded to 8 bits, in a range")
        assert "model.layers.1.mlp.down_proj" in verdict.attempt
    else:
        assert any("inputs of linear maps in 8 bits" in text for name, text in verdict.detail if name == "ruled out")


def test_a_runtime_is_no_reference():
    """What needs modules is refused in words."""
    with pytest.raises(OptionError, match="which has no torch modules"):
        assert_super_weights_located(candidate())


def test_a_freed_runtime_is_closed():
    """Freeing a candidate closes its program, and it is still known to be one."""
    from swcheck.superweights.subject.held_model import HeldModel

    runtime = candidate().model
    held = HeldModel(runtime, reload=lambda: runtime)
    held.free_until_needed()
    assert (runtime.closed, held.in_memory, held.is_runtime) == (1, False, True)
    assert held.obtain() is runtime
    held.discard()
    assert (runtime.closed, held.is_obtainable) == (2, False)
