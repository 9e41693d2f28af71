"""The assertions: each goes red on a damaged model, with its cause in the first line, before its green counts."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import replace

import pytest
import torch
from transformers import LlamaForCausalLM

import swcheck
from swcheck import (
    Loaded,
    Outcome,
    RobustnessError,
    SuperWeight,
    assert_collapses_when_zeroed,
    assert_perplexity_within,
    assert_predictions_preserved,
    assert_super_activations_preserved,
    assert_super_weights_located,
    assert_super_weights_preserved,
    assert_survives_pruning,
    scaled,
    zeroed,
)
from swcheck.base.errors import CoordinateError, NotFiniteError, OptionError, TextError
from swcheck.base.records import Limit, Verdict
from swcheck.base.statistics import capped_collapse, collapse_ratio
from swcheck.gate.conclusion import conclude
from swcheck.gate.verdict_message import message_rows, verdict_message
from swcheck.lens.tokens import token_windows
from swcheck.superweights.measurements.contributions import contributions_on_default_prompt, largest_input_columns
from swcheck.superweights.measurements.inputs import prompt_ids
from swcheck.superweights.measurements.prompt_readings import readings
from swcheck.superweights.measurements.residual_stream import answers_finite, super_activations
from swcheck.superweights.measurements.scores import intact_scores
from swcheck.superweights.subject.as_subject import as_subject
from swcheck.superweights.subject.held_model import HeldModel
from swcheck.superweights.subject.memory import Memory
from swcheck.superweights.subject.subject import Subject
from tests import damage
from tests.planted import Packed


@pytest.fixture(scope="module")
def ids(tiny):
    """A few windows: enough to see a collapse, little enough to be quick."""
    return token_windows(tiny.tokenizer, tiny.text, count=6, length=128)


def first_line(caught) -> str:
    return str(caught.value).splitlines()[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edit", "cause", "ratio"),
    [
        (damage.zero, "zeroed", 0.0),
        (damage.halve, "weakened", 0.5),
        (damage.move, "moved to column 17", 0.0),
        (damage.flip, "sign flipped", -1.0),
        (damage.amplify, "amplified", 3.0),
        (damage.clip, "clipped or rounded down", 0.066),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_damaged_super_weight_is_red_with_its_cause(tiny, edit, cause, ratio):
    """Whatever was done to the super weight, the first line names it and the verdict holds the signed ratio."""
    with pytest.raises(RobustnessError, match="super weight at layer 1") as caught:
        assert_super_weights_preserved(damage.damaged(tiny, edit), tiny)

    verdict = caught.value.verdict
    assert cause in first_line(caught)
    assert verdict.outcome is Outcome.FAILED
    assert verdict.measured == pytest.approx(ratio, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edit", "cause"),
    [(damage.zero, "lost"), (damage.halve, "weakened"), (damage.flip, "sign flipped"), (damage.amplify, "amplified")],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_damaged_super_activation_is_red_with_its_cause(tiny, edit, cause):
    """The activation is read at the reference's own place, and the first line says what became of it."""
    with pytest.raises(RobustnessError, match="super activation of channel 97") as caught:
        assert_super_activations_preserved(damage.damaged(tiny, edit), tiny, prompts=["Hello.", "def f(x):"])

    assert cause in first_line(caught)


@pytest.mark.slow
def test_what_is_nearly_nothing_has_no_sign(tiny):
    """A super weight of a millionth of its value with the other sign is zeroed, not flipped, and no minus is shown."""

    def almost(matrix):
        matrix[damage.ROW, damage.COLUMN] *= -1e-6

    candidate = damage.damaged(tiny, almost)
    with pytest.raises(RobustnessError, match=r"zeroed \(x0.00\)") as caught:
        assert_super_weights_preserved(candidate, tiny)
    assert "x-0.00" not in str(caught.value)


@pytest.mark.slow
def test_a_dead_candidate_has_nothing_left_to_collapse(tiny):
    """A candidate that is worse than guessing before anything is zeroed keeps no share of the collapse, in words."""
    with pytest.raises(RobustnessError, match="nothing is left to collapse") as caught:
        assert_collapses_when_zeroed(damage.damaged(tiny, damage.zero), tiny)
    assert caught.value.verdict.measured == 0
    assert "nothing is left to collapse: intact it has " in caught.value.verdict.summary


@pytest.mark.slow
def test_a_reference_that_is_worse_than_guessing_has_no_dependence_to_keep(tiny):
    """A reference whose logits are ten times too large has no collapse to hold a candidate against, and it is to blame."""
    model = copy.deepcopy(tiny.model)
    with torch.no_grad():
        model.lm_head.weight.mul_(10)
    sick = Loaded(model, tiny.tokenizer, "sick", tiny.text)
    with pytest.raises(RobustnessError, match="the reference is sick") as caught:
        assert_collapses_when_zeroed(tiny, sick)
    assert caught.value.verdict.outcome is Outcome.INCONCLUSIVE


@pytest.mark.slow
def test_an_activation_in_another_channel_has_moved(tiny):
    """A candidate whose channels 97 and 5 of the writing matrix are swapped has its activation moved, not lost."""

    def swap(matrix):
        matrix[[97, 5]] = matrix[[5, 97]]

    with pytest.raises(RobustnessError, match="moved to channel 5"):
        assert_super_activations_preserved(damage.damaged(tiny, swap), tiny)


@pytest.mark.slow
def test_harmless_rounding_is_green(tiny):
    """A copy with the 1,000 next-largest weights rounded to 8 bits passes every comparison."""
    candidate = damage.damaged(tiny, damage.round_next_largest)

    assert assert_super_weights_preserved(candidate, tiny).outcome is Outcome.PASSED
    assert assert_super_activations_preserved(candidate, tiny).outcome is Outcome.PASSED
    assert assert_perplexity_within(candidate, tiny).outcome is Outcome.PASSED
    assert assert_collapses_when_zeroed(candidate, tiny).outcome is Outcome.PASSED


@pytest.mark.slow
def test_limits_are_the_callers(tiny):
    """The same candidate is green or red as the caller's own limits say."""
    candidate = damage.damaged(tiny, damage.halve)

    assert assert_super_weights_preserved(candidate, tiny, low=0.4).measured == pytest.approx(0.5)
    with pytest.raises(RobustnessError, match="limit 0.75"):
        assert_super_weights_preserved(candidate, tiny)


@pytest.mark.slow
def test_perplexity_is_paired_and_bounded(tiny, ids):
    """A damaged candidate exceeds the ratio; the verdict holds both perplexities and the paired standard error."""
    with pytest.raises(
        RobustnessError, match=r"^what the super weights write is lost .*: perplexity of .*\n  perplexity .*: x"
    ) as caught:
        assert_perplexity_within(damage.damaged(tiny, damage.clip), tiny, token_ids=ids)

    facts = caught.value.verdict.facts
    assert facts["perplexity"] / facts["reference_perplexity"] == pytest.approx(caught.value.verdict.measured, rel=1e-4)
    assert 0 < facts["standard_error"] < 1

    with pytest.raises(RobustnessError) as caught:
        assert_perplexity_within(damage.damaged(tiny, damage.zero), tiny, token_ids=ids)
    assert f"perplexity {caught.value.verdict.facts['perplexity']:,.0f} for " in str(caught.value)
    assert ": x1.0000 +- 0.0000 on " in assert_perplexity_within(tiny, tiny, token_ids=ids).summary


@pytest.mark.slow
def test_perplexity_within_noise_of_its_limit_is_near(tiny, ids):
    """A ratio under the limit by less than three of its standard errors is near, and not red."""
    candidate = damage.damaged(tiny, damage.flip)
    measured = assert_perplexity_within(candidate, tiny, token_ids=ids, ratio=9.0).measured

    verdict = assert_perplexity_within(candidate, tiny, token_ids=ids, ratio=measured * 1.0001)

    assert verdict.outcome is Outcome.NEAR


def test_perplexity_of_one_model_is_bounded_by_guessing_or_by_the_caller(tiny, ids):
    """Without a reference the vocabulary is the limit, or at_most is."""
    assert assert_perplexity_within(tiny, token_ids=ids).limit.high == 1024
    with pytest.raises(RobustnessError, match="perplexity too high"):
        assert_perplexity_within(tiny, token_ids=ids, at_most=2.0)
    with (
        zeroed(tiny.model, [damage.WEIGHT]),
        pytest.raises(RobustnessError, match="worse than guessing"),
    ):
        assert_perplexity_within(tiny, token_ids=ids)


@pytest.mark.slow
def test_perplexity_at_most_holds_for_a_candidate_too(tiny, ids):
    """With a reference, at_most takes the place of the ratio."""
    value = assert_perplexity_within(tiny, tiny, token_ids=ids).facts["perplexity"]

    assert assert_perplexity_within(tiny, tiny, token_ids=ids, at_most=value + 0.1).limit.high > 1
    with pytest.raises(RobustnessError):
        assert_perplexity_within(tiny, tiny, token_ids=ids, at_most=value - 0.1)


def test_tiny_collapses_without_its_super_weight(tiny, ids):
    """Zeroed, tiny's perplexity rises by x1,000 or more, which is critical."""
    verdict = assert_collapses_when_zeroed(tiny, token_ids=ids)

    assert verdict.measured > 1000
    assert verdict.facts["kind"] == "critical"
    tokens = 6 * 63  # of each of the six windows the first 64 tokens, of which the first is given
    assert verdict.facts["tokens"] == tokens
    assert f"nats) on {tokens} tokens, critical" in verdict.summary


def test_a_model_that_does_not_hang_on_a_weight_is_red(tiny, ids):
    """Zeroing an ordinary weight is no collapse, and the message says what the set is instead."""
    with pytest.raises(RobustnessError, match="does not hang on its super weights .*inert"):
        assert_collapses_when_zeroed(tiny, super_weights=[SuperWeight(2, 3, 4)], token_ids=ids)


def test_several_weights_are_zeroed_together_and_shown_one_by_one(tiny, ids):
    """The set is judged, each member reported beside it."""
    verdict = assert_collapses_when_zeroed(tiny, super_weights=[damage.WEIGHT, SuperWeight(2, 3, 4)], token_ids=ids)

    together, alone = verdict.measured, verdict.facts["alone"]
    assert alone[0] == pytest.approx(together, rel=0.05)
    assert alone[1] == pytest.approx(1, abs=0.01)


def test_a_candidate_that_lost_its_dependence_is_red(tiny, ids):
    """A candidate whose super weight is gone already loses nothing more when it is zeroed."""
    with pytest.raises(RobustnessError, match="down_proj is all zeros"):
        assert_collapses_when_zeroed(damage.damaged(tiny, damage.round_away), tiny, token_ids=ids)


def test_dependence_is_asked_of_critical_sets_only(tiny, ids):
    """For a set that is inert in the reference the verdict is not applicable, and not red."""
    verdict = assert_collapses_when_zeroed(tiny, tiny, super_weights=[SuperWeight(2, 3, 4)], token_ids=ids)

    assert verdict.outcome is Outcome.NOT_APPLICABLE
    assert "inert" in verdict.summary


def test_the_nulls_of_tiny_hold(tiny, ids):
    """Zeroing matched weights, or the largest others of every matrix, leaves tiny as it is."""
    assert assert_survives_pruning(tiny, token_ids=ids).measured < 1.01
    assert assert_survives_pruning(tiny, token_ids=ids, null="largest").measured < 1.30


def test_a_null_that_fails_is_inconclusive(tiny, ids):
    """Told the wrong super weight, the largest others hold the right one: that is no fault of a candidate."""
    with pytest.raises(RobustnessError, match="inconclusive") as caught:
        assert_survives_pruning(tiny, super_weights=[SuperWeight(1, 3, 4)], null="largest", token_ids=ids)

    assert caught.value.verdict.outcome is Outcome.INCONCLUSIVE
    assert "incomplete" in str(caught.value)


def test_a_model_without_super_weights_is_not_applicable_in_words(random_llama):
    """None found is an honest outcome of every check that needs one, never a pass."""
    ids = torch.randint(1, 64, (4, 32), generator=torch.Generator().manual_seed(0))
    verdicts = [
        assert_super_weights_located(random_llama, token_ids=ids),
        assert_super_weights_preserved(random_llama, random_llama, token_ids=ids),
        assert_super_activations_preserved(random_llama, random_llama, token_ids=ids),
        assert_collapses_when_zeroed(random_llama, token_ids=ids),
        assert_collapses_when_zeroed(random_llama, random_llama, token_ids=ids),
        assert_survives_pruning(random_llama, token_ids=ids),
        assert_survives_pruning(random_llama, null="largest", token_ids=ids),
    ]

    assert {verdict.outcome for verdict in verdicts} == {Outcome.NOT_APPLICABLE}
    assert all("no super weight: the largest value" in verdict.summary for verdict in verdicts)


def test_super_weights_are_located_and_named(tiny):
    """The verdict counts them and its facts hold their coordinates."""
    verdict = assert_super_weights_located(tiny)

    assert verdict.measured == 1
    assert verdict.facts["super_weights"][0]["row"] == damage.ROW


@pytest.mark.parametrize(
    "check",
    [
        assert_super_weights_preserved,
        assert_super_activations_preserved,
        assert_perplexity_within,
        assert_collapses_when_zeroed,
    ],
)
def test_nan_in_the_candidate_is_named_first(tiny, ids, check):
    """A candidate that answers NaN is red in every comparison, as not finite."""
    with pytest.raises(RobustnessError, match=r"^not finite"):
        check(damage.damaged(tiny, damage.poison), tiny, token_ids=ids)


def test_a_sick_reference_is_inconclusive(tiny, ids):
    """NaN in the reference is never the candidate's fault."""
    with pytest.raises(RobustnessError, match=r"^the reference is sick") as caught:
        assert_perplexity_within(tiny, damage.damaged(tiny, damage.poison), token_ids=ids)

    assert caught.value.verdict.outcome is Outcome.INCONCLUSIVE


def test_nan_without_a_reference_is_red_or_a_worded_error(tiny, ids):
    """A single model that answers NaN is red as not finite, and cannot be asked for a collapse."""
    sick = damage.damaged(tiny, damage.poison)

    with pytest.raises(RobustnessError, match=r"^not finite"):
        assert_perplexity_within(sick, token_ids=ids)
    with pytest.raises(NotFiniteError, match="intact perplexity of poison"):
        assert_collapses_when_zeroed(sick, super_weights=[damage.WEIGHT], token_ids=ids)


@pytest.mark.slow
def test_another_tokenizer_is_named(tiny, ids):
    """A candidate whose tokenizer adds no BOS is told so before its numbers are looked at."""
    other = copy.deepcopy(tiny.tokenizer)
    other.backend_tokenizer.post_processor = None

    with pytest.raises(RobustnessError, match=r"^tokenizer or BOS policy differs"):
        assert_perplexity_within(Loaded(tiny.model, other, "no-bos", tiny.text), tiny)


def test_another_base_model_is_named(tiny, random_llama, ids):
    """Other shapes, and other embeddings of the same shape, are a wrong base model."""
    torch.manual_seed(1)
    stranger = LlamaForCausalLM(tiny.model.config).eval()

    for candidate in (random_llama, stranger):
        with pytest.raises(RobustnessError, match=r"^wrong base model"):
            assert_super_weights_preserved(candidate, tiny, token_ids=ids)


@pytest.mark.slow
def test_bare_modules_need_a_tokenizer_or_token_ids(tiny, ids):
    """A torch module is taken as it is, with token_ids or a tokenizer; without both the error says so."""
    model = tiny.model

    assert assert_super_weights_preserved(model, model, token_ids=ids).outcome is Outcome.PASSED
    assert assert_super_activations_preserved(
        model, model, tokenizer=tiny.tokenizer, prompts=["a b"]
    ).outcome is Outcome.PASSED  # fmt: skip
    with pytest.raises(OptionError, match=r"pass tokenizer= or token_ids="):
        assert_perplexity_within(model)
    with pytest.raises(OptionError, match="prompts"):
        assert_super_activations_preserved(model, model, token_ids=ids, prompts=["a"])


@pytest.mark.slow
@pytest.mark.parametrize("check", [assert_super_weights_preserved, assert_super_activations_preserved, assert_perplexity_within])  # fmt: skip
def test_a_red_bare_module_is_asked_what_its_reference_was(tiny, check):
    """A candidate without a tokenizer of its own is judged, and its cause found, on the reference's tokens."""
    with pytest.raises(RobustnessError, match="super"):
        check(damage.damaged(tiny, damage.zero).model, tiny)


def test_what_is_no_model_is_refused(tiny):
    """A string in place of a model is a worded error, not an attribute error from the depths."""
    with pytest.raises(OptionError, match="candidate: what load"):
        assert_perplexity_within("tiny")
    with pytest.raises(OptionError, match="reference: what load"):
        assert_perplexity_within(tiny, "tiny")


def test_what_a_verb_is_given_is_checked(tiny, ids):
    """What ``load`` returns in place of its module, a tuple for a super weight, a text for a list of prompts: all worded."""
    for verb in (
        lambda: swcheck.locate(tiny),
        lambda: swcheck.perplexity(tiny, ids),
        lambda: zeroed(tiny, [damage.WEIGHT]).__enter__(),
    ):
        with pytest.raises(OptionError, match=r"a torch module\n  found: Loaded\n  try: its \.model"):
            verb()
    with pytest.raises(OptionError, match=r"a SuperWeight\n  found: \(1, 97, 301\)"):
        zeroed(tiny.model, [(1, 97, 301)]).__enter__()
    with pytest.raises(OptionError, match=r"a SuperWeight\n  found: \(1, 97, 301\)"):
        assert_super_weights_preserved(tiny, tiny, super_weights=[(1, 97, 301)])
    with pytest.raises(OptionError, match=r"a single text\n  try: a list: prompts=\['Hello'\]"):
        assert_super_activations_preserved(tiny, tiny, prompts="Hello")
    with pytest.raises(OptionError, match=r"a prompt\n  found: 3"):
        assert_super_activations_preserved(tiny, tiny, prompts=[3])
    with pytest.raises(TextError, match=r"int64 \(B, T\)"):
        assert_perplexity_within(tiny, tiny, token_ids=ids[0])
    with pytest.raises(TextError, match=r"int64 \(B, T\)"):
        assert_super_weights_preserved(tiny.model, tiny.model, token_ids=ids[0])


def test_a_bare_module_from_a_folder_called_like_a_known_model_is_not_that_model(tiny, tmp_path):
    """Nobody said that it is that model: it keeps its whole path, and no published coordinates are held against it."""
    model = copy.deepcopy(tiny.model)
    for name, short in {
        "/somewhere/mistral-7b": "/somewhere/mistral-7b",
        "mistralai/Mistral-7B-v0.1": "Mistral-7B-v0.1",
        "/somewhere/mine/": "mine",
    }.items():
        model.config.name_or_path = name
        assert as_subject(model).name == short
    model.config.name_or_path = "/somewhere/mistral-7b"
    assert assert_super_weights_located(model, tokenizer=tiny.tokenizer).outcome is Outcome.PASSED


def test_a_check_that_could_prove_nothing_is_refused(tiny, ids):
    """Zero super weights, zero draws, zero prompts and an unknown null are errors, not passes."""
    with pytest.raises(OptionError, match="empty set"):
        assert_collapses_when_zeroed(tiny, super_weights=[], token_ids=ids)
    with pytest.raises(OptionError, match="empty set"):
        assert_super_weights_preserved(tiny, tiny, super_weights=[])
    with pytest.raises(OptionError, match="without a draw"):
        assert_survives_pruning(tiny, draws=0, token_ids=ids)
    with pytest.raises(OptionError, match="known: matched, largest"):
        assert_survives_pruning(tiny, null="random", token_ids=ids)
    with pytest.raises(OptionError, match="empty list"):
        assert_super_activations_preserved(tiny, tiny, prompts=[])
    with pytest.raises(CoordinateError, match="row 999 was asked for"):
        assert_collapses_when_zeroed(tiny, super_weights=[SuperWeight(1, 999, 0)], token_ids=ids)
    with pytest.raises(TextError, match="ids from 5000"):
        assert_perplexity_within(tiny, token_ids=torch.full((1, 8), 5000))


def test_prompts_without_a_token_are_refused(tiny):
    """A list of prompts of which none has a token cannot be checked."""
    bare = copy.deepcopy(tiny.tokenizer)
    bare.backend_tokenizer.post_processor = None

    with pytest.raises(OptionError, match="no prompt of them has a token"):
        assert_super_activations_preserved(
            tiny.model, tiny.model, super_weights=[damage.WEIGHT], tokenizer=bare, prompts=["", ""]
        )


def test_a_prompt_counts_only_where_the_reference_carries_its_activation(tiny):
    """Prompts without BOS carry no activation in tiny; with none that counts, the check is inconclusive."""
    bare = copy.deepcopy(tiny.tokenizer)
    bare.backend_tokenizer.post_processor = None
    place = super_activations(Subject("tiny", HeldModel(tiny.model), tiny.tokenizer), [damage.WEIGHT])
    reference = Subject("no-bos", HeldModel(tiny.model), bare, memory=Memory({("places", (damage.WEIGHT,)): place}))

    with pytest.raises(RobustnessError, match="on none of 1 prompts"):
        assert_super_activations_preserved(
            Loaded(tiny.model, bare, "no-bos"), reference, super_weights=[damage.WEIGHT], prompts=["Hello there."]
        )


@pytest.mark.slow
def test_scaled_in_place_is_seen_at_once(tiny):
    """Nothing is remembered of a plain model: what is changed in place is measured as it is now."""
    assert_super_weights_preserved(tiny, tiny)
    reference = Loaded(copy.deepcopy(tiny.model), tiny.tokenizer, "copy", tiny.text)

    with scaled(tiny.model, [damage.WEIGHT], 0.6), pytest.raises(RobustnessError, match="weakened"):
        assert_super_weights_preserved(tiny, reference)


def test_a_subject_of_a_run_remembers_until_its_model_is_taken(tiny, ids):
    """Each number is computed once, and never again trusted once somebody holds the module."""
    subject = Subject("tiny", HeldModel(tiny.model), tiny.tokenizer, ids, memory=Memory())
    assert intact_scores(subject) is intact_scores(subject)

    assert subject.model is tiny.model
    assert intact_scores(subject) is not intact_scores(subject)


def test_collapse_is_capped_at_guessing():
    """A collapse counts up to ln(vocabulary) minus the intact loss; what is not finite counts as that cap."""
    intact = torch.full((2, 8), 2.0, dtype=torch.float64)
    cap = math.log(1024) - 2.0

    assert capped_collapse(intact, intact + 1, 1024) == pytest.approx(1.0)
    assert capped_collapse(intact, intact + 50, 1024) == pytest.approx(cap)
    assert capped_collapse(intact, intact * math.nan, 1024) == pytest.approx(cap)
    assert capped_collapse(intact + 50, intact + 51, 1024) == 0
    assert collapse_ratio(intact, intact + 800) == math.inf


def test_a_message_for_a_terminal_is_folded():
    """Whatever its width, no line is too wide but those to paste; the words are those of the exception."""
    cause, advice = (
        "what the super weights write is lost (layer 1 [97, 301])",
        "leave these unquantized: a x=[1, 2]; b " + "y" * 150,
    )
    detail = (("proof", "returns " * 20), ("layers.0.self_attn.k_proj", "77 % off"))
    limit = Limit(None, 1.05, "as for a good 4-bit quantization; the candidate's own scheme is unknown")
    verdict = Verdict(
        "perplexity", "ref", Outcome.FAILED, "x9 " * 40, "cand", measured=9.0, limit=limit, unit="x",
        cause=cause, attempt=advice, detail=detail,
    )  # fmt: skip
    for width in (50, 80, 100):
        lines = verdict_message(verdict, width=width).splitlines()
        assert [line for line in lines if len(line) > width] == [f"    b {'y' * 150}"]
        assert " ".join(lines).split() == verdict_message(verdict).split()
    assert verdict_message(verdict, width=80).splitlines()[:2] == [f"{cause}: perplexity of cand", "  against ref"]


def test_a_message_stands_alone_in_its_first_line():
    """Cause, check and models stand in the first line; details, limit and what to try follow."""
    verdict = Verdict(
        "perplexity", "ref", Outcome.FAILED, "x9 on 10 tokens", "cand", 9.0, Limit(None, 1.05, "why"), "x",
        cause="perplexity x9", attempt="less", detail=(("a", "b"),),
    )  # fmt: skip

    lines = verdict_message(verdict).splitlines()

    assert lines[0] == "perplexity x9: perplexity of cand against ref"
    assert lines[1:] == ["  x9 on 10 tokens", "  a  b", "  limit <= 1.05 (why)", "  try: less"]


def test_a_message_points_to_what_was_said():
    """Rows that stand elsewhere already give way to one pointer, if that saves a line; a proof is always said."""
    detail = (("proof", "x1"), ("ruled out", "this"), ("fix", "none"))
    verdict = Verdict("perplexity", "ref", Outcome.FAILED, "x9", cause="bad", attempt="less", detail=detail)

    some = verdict_message(
        verdict, {("ruled out", "this"): "test_a", ("fix", "none"): "test_b", ("proof", "x1"): "test_a"}
    )
    assert some.splitlines()[2:] == [
        "  proof  x1",
        "  try: less",
        "  as under test_a: ruled out",
        "  as under test_b: fix",
    ]
    assert (
        verdict_message(verdict, {("fix", "none"): "test_b"})
        == verdict_message(verdict, {})
        == verdict_message(verdict)
    )
    again = verdict_message(replace(verdict, detail=()), {("found", "x9"): "test_a", ("try", "less"): "test_a"})
    assert again.splitlines() == ["bad: perplexity of ref", "  as under test_a: found, try"]
    worst = (("layers", "most in 1"), ("layers.1.mlp.down_proj", "9% off"), ("layers.0.mlp.up_proj", "8% off"))
    layers = verdict_message(replace(verdict, detail=worst), dict.fromkeys(worst, "test_a"))
    assert layers.splitlines()[2:] == ["  try: less", "  as under test_a: layers"]


def test_a_brief_message_says_the_rest_is_elsewhere():
    """What was ruled out is named, not shown; a cause that was shown, and the source of a limit, are not said again."""
    detail = (("proof", "x1"), ("ruled out", "this"), ("ruled out", "that"), ("layers.1.mlp", "9% off"), ("fix", "y1"))
    limit = Limit(None, 1.05, "what published ones keep")
    verdict = Verdict("perplexity", "ref", Outcome.FAILED, "x9", "cand", 9.0, limit, "x", "bad", "less", detail=detail)

    lines = verdict_message(verdict, brief=True).splitlines()
    assert lines == [
        "bad: perplexity of cand against ref", "  x9", "  proof  x1", "  fix    y1",
        "  limit <= 1.05 (what published ones keep)", "  try: less", "  more with -v: ruled out, layers",
    ]  # fmt: skip

    shown = dict.fromkeys(message_rows(verdict), "test_a")
    other = replace(verdict, check="predictions", measured=0.5, unit="nats", detail=(("fix", "y1, not enough yet"),))
    assert verdict_message(other, shown, brief=True).splitlines() == [
        "the same cause as under test_a: predictions of cand against ref",
        "  0.5 nats, limit <= 1.05; that fix is not enough",
    ]
    scaled = replace(other, cause="worse", limit=replace(limit, source="what published ones keep, scaled"))
    assert "  limit <= 1.05 (scaled)" in verdict_message(scaled, shown, brief=True).splitlines()


def test_a_robustness_error_survives_another_process(tiny):
    """It can be pickled with its verdict, as parallel test runners do."""
    verdict = Verdict("perplexity", "ref", Outcome.FAILED, "words")
    with pytest.raises(RobustnessError) as caught:
        conclude(verdict)

    again = pickle.loads(pickle.dumps(caught.value))

    assert again.verdict == verdict
    assert str(again) == str(caught.value)


def test_a_subject_is_measured_on_the_tokens_that_are_given(tiny, ids):
    """A subject of a run that is asked on other tokens gives their number, and keeps its own."""
    subject = as_subject(tiny, token_ids=ids[:2])

    assert assert_perplexity_within(subject, token_ids=ids).facts["tokens"] == ids.shape[0] * (ids.shape[1] - 1)
    assert assert_perplexity_within(subject).facts["tokens"] == 2 * (ids.shape[1] - 1)


@pytest.mark.slow
def test_a_candidate_remembers_each_reference_apart(tiny, ids):
    """What was measured against one reference is not handed out against another of the same name and tokens."""
    model = copy.deepcopy(tiny.model)
    with torch.no_grad():
        model.model.layers[3].mlp.gate_proj.weight.mul_(0.9)
    candidate, one, other = (as_subject(thing, token_ids=ids) for thing in (model, tiny.model, copy.deepcopy(model)))

    assert one.name == other.name
    assert assert_predictions_preserved(candidate, one, kl=9, top1=0).measured > 1e-3
    assert assert_predictions_preserved(candidate, other).measured < 1e-6


def test_a_null_that_cannot_be_drawn_is_not_applicable_in_words(tiny, ids):
    """Packed matrices, and such as wait elsewhere, have no ranked magnitudes: no error, and no pass either."""
    packed, waiting = (copy.deepcopy(tiny.model) for _ in range(2))
    for model, change in ((packed, Packed), (waiting, lambda down: waits(copy.deepcopy(down)))):
        for layer in model.model.layers:
            for part, name in ((layer.mlp, "gate_proj"), (layer.mlp, "up_proj"), (layer.mlp, "down_proj"),
                               *((layer.self_attn, f"{letter}_proj") for letter in "qkvo")):  # fmt: skip
                setattr(part, name, change(getattr(part, name)))

    for model, words in ((packed, "keeps them packed"), (waiting, "wait elsewhere")):
        matched = assert_survives_pruning(model, super_weights=[damage.WEIGHT], token_ids=ids)
        assert (matched.outcome, words in matched.summary) == (Outcome.NOT_APPLICABLE, True)
        largest = assert_survives_pruning(model, super_weights=[damage.WEIGHT], token_ids=ids, null="largest")
        assert (largest.outcome, "no layer keeps a plain one" in largest.summary) == (Outcome.NOT_APPLICABLE, True)


def waits(linear):
    """A linear map whose weight waits elsewhere and is handed over for each pass, as accelerate offloads it."""
    kept = linear.weight.data
    linear.weight = torch.nn.Parameter(kept.to("meta"), requires_grad=False)
    linear.forward = lambda x: torch.nn.functional.linear(x, kept)
    return linear


def test_one_pass_over_a_prompt_serves_all_who_ask(tiny, ids):
    """Finite, sinks, contributions, loudest neurons, places and their readings: the layers run once."""
    subject, passes = as_subject(tiny, token_ids=ids), []
    prompt = prompt_ids(subject)
    hook = tiny.model.model.layers[0].register_forward_pre_hook(lambda *_: passes.append(1))
    try:
        assert answers_finite(subject, prompt)
        contributions_on_default_prompt(subject, [damage.WEIGHT])
        largest_input_columns(subject, damage.WEIGHT, prompt, 0)
        place = super_activations(subject, [damage.WEIGHT])[0]
        (reading,) = readings(subject, place, prompt, [prompt.shape[1]])
    finally:
        hook.remove()

    assert (len(passes), reading.value) == (1, place.value)
