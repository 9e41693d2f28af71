"""Baselines: small, faithful, refused where they do not belong."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers.processors import ByteLevel

from swcheck import (
    Outcome,
    RobustnessError,
    SuperWeight,
    assert_collapses_when_zeroed,
    assert_perplexity_within,
    assert_predictions_preserved,
    assert_super_activations_preserved,
    assert_super_weights_preserved,
    baseline,
)
from swcheck.drift import Predictions
from swcheck.errors import CheckpointError, CoordinateError, OptionError, WrongModelError
from swcheck.files import write_atomically
from swcheck.kinship import Portrait
from swcheck.location import Located
from swcheck.subject import Subject
from swcheck.tiny import CHECKPOINT
from tests import damage, relatives

PROMPTS = ["Hello, world.", "def spam(eggs):\n    return eggs"]
COMPARISONS = (
    assert_super_weights_preserved,
    lambda candidate, reference: assert_super_activations_preserved(candidate, reference, prompts=PROMPTS),
    assert_perplexity_within,
    assert_predictions_preserved,
    assert_collapses_when_zeroed,
)


@pytest.fixture(scope="module")
def live(tiny):
    """The reference, measured for comparison."""
    subject = Subject("tiny", tiny.model, tiny.tokenizer, text=tiny.text, memo={})
    baseline.complete(subject, PROMPTS)
    return subject


@pytest.fixture(scope="module")
def text(live):
    return baseline.dumps(live, {"weights": "abc", "device": "cpu"})


@pytest.fixture
def recorded(text):
    """The reference as its baseline has it: without weights."""
    return baseline.loads(text, "tiny.json")[0]


def verdict_of(check, candidate, reference):
    try:
        return check(candidate, reference)
    except RobustnessError as error:
        return error.verdict


@pytest.mark.parametrize("check", COMPARISONS)
@pytest.mark.parametrize(
    "edit", [damage.zero, damage.clip, damage.flip, damage.round_next_largest], ids=lambda edit: edit.__name__
)
def test_a_baseline_gives_the_verdict_of_its_reference(tiny, live, recorded, edit, check):
    """Outcome and cause are the same as with the reference at hand, and the number nearly."""
    candidate = damage.damaged(tiny, edit)
    with_reference, without = (verdict_of(check, candidate, reference) for reference in (live, recorded))

    assert without.outcome is with_reference.outcome
    assert without.cause.split("(")[0] == with_reference.cause.split("(")[0]
    assert without.measured == pytest.approx(with_reference.measured, rel=2e-3, abs=2e-3)


def test_a_permuted_candidate_is_followed_from_a_baseline(tiny, recorded):
    """The portrait in the file is enough to map permuted channels."""
    candidate = damage.Loaded(relatives.permuted(tiny.model), tiny.tokenizer, "permuted")

    assert assert_super_weights_preserved(candidate, recorded).outcome is Outcome.PASSED


def test_it_is_small(text):
    """A baseline of tiny is some hundred kilobytes, the same text twice, and plain JSON."""
    assert len(text) < 300_000
    assert json.loads(text)["super_weights"][0]["row"] == damage.ROW


def test_writing_is_deterministic(live, text):
    """The same measurements give the same file, so that a diff shows a change."""
    assert baseline.dumps(live, {"weights": "abc", "device": "cpu"}) == text


def test_what_only_explains_needs_the_reference(tiny, recorded):
    """A loss that is not the super weights' is named, and what the file cannot say is said."""
    model = relatives.rescaled(tiny.model)
    with torch.no_grad():
        model.model.layers[3].mlp.gate_proj.weight.mul_(-1)

    verdict = verdict_of(assert_perplexity_within, damage.Loaded(model, tiny.tokenizer, "odd"), recorded)

    assert verdict.cause.startswith("not the super weights")
    assert "needs the reference" in dict(verdict.detail)["not known"]


def test_a_new_measurement_without_weights_is_a_worded_error(recorded):
    """A number the file does not hold cannot be taken, and the error says why."""
    with pytest.raises(OptionError, match="its weights were freed"):
        recorded.causal_nats([])


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("{", "no baseline of swcheck"),
        ("[]", "no baseline of swcheck"),
        ('{"schema": 99}', "schema 99, this is 1"),
        ('{"schema": 1, "model": "x", "measurements": [[1, {"tensor": "int32", "shape": [1], "data": "!"}]]}', "no baseline"),
        ('{"schema": 1, "model": "x", "measurements": [[1, {"tensor": "int3", "shape": [1], "data": ""}]]}', "no baseline"),
        ('{"schema": 1, "measurements": []}', "no baseline"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_baseline_is_refused(broken, words):
    """Malformed JSON, another schema and broken arrays are worded errors."""
    with pytest.raises(CheckpointError, match=words):
        baseline.loads(broken, "x.json")


def test_other_weights_are_refused_and_other_conditions_noted():
    """Other weights, text or tokenizer is an error; another device or version is a note; unknown is neither."""
    facts = {"weights": "a", "text": "b", "device": "cpu", "torch": "2.13"}

    assert baseline.check_identity(facts, {"weights": "a", "device": "cpu"}, "x.json") == []
    assert "device cpu" in baseline.check_identity(facts, {"device": "cuda"}, "x.json")[0]
    with pytest.raises(WrongModelError, match="for these weights"):
        baseline.check_identity(facts, {"weights": "z"}, "x.json")


def test_the_identity_of_weights_is_that_of_their_bytes(tmp_path):
    """One changed byte in a sampled place is other weights; a folder without weights has none."""
    data = bytearray((CHECKPOINT / "model.safetensors").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(data)

    assert baseline.weights_identity(tmp_path) == baseline.weights_identity(CHECKPOINT)
    data[len(data) // 2 + 7] ^= 1
    (tmp_path / "model.safetensors").write_bytes(data)
    assert baseline.weights_identity(tmp_path) != baseline.weights_identity(CHECKPOINT)
    assert baseline.weights_identity(tmp_path / "nowhere") is None


def test_a_baseline_that_would_be_too_large_is_refused(live, monkeypatch):
    """At most 1 MB is written."""
    monkeypatch.setattr(baseline, "LARGEST", 1000)
    with pytest.raises(OptionError, match="measure on fewer windows"):
        baseline.dumps(live, {})


def test_what_has_no_place_in_a_file_is_refused(live):
    """A value of an unknown kind is an error of ours, never a pickle."""
    odd = Subject("odd", None, memo={**live.memo, "thing": object()})
    with pytest.raises(TypeError, match="has no place in a baseline"):
        baseline.dumps(odd, {})


def test_it_is_written_whole(tmp_path, text):
    """Writing makes the folder, replaces what was there, and leaves no part behind."""
    path = tmp_path / "baselines" / "tiny.json"
    write_atomically(path, "old")
    write_atomically(path, text)

    assert path.read_text() == text
    assert [child.name for child in path.parent.iterdir()] == ["tiny.json"]


def test_numbers_survive_the_file():
    """Records, tensors, infinities and nested tuples come back as they went, whatever they are."""
    for value in (None, 3, -1.5, "x", True, float("inf"), (1, ("a", None)), damage.WEIGHT, torch.arange(5)):
        again = baseline._unpack(json.loads(json.dumps(baseline._pack(value))))
        assert torch.equal(again, value) if isinstance(value, torch.Tensor) else again == value


def test_the_largest_models_stay_under_a_megabyte():
    """With the sizes of a model of 70 billion parameters and six super weights the file is at most 1 MB."""
    chance = torch.Generator().manual_seed(0)
    width, inner, weights = 8192, 28672, [SuperWeight(2, row, 7 * row, 1.0) for row in range(6)]
    sites = torch.arange(1024)
    logs = torch.randn(1024, 32, generator=chance)
    nats = torch.rand(32, 511, generator=chance, dtype=torch.float64)
    memo = {
        "windows": torch.randint(0, 128_000, (32, 512), generator=chance),
        "intact": (nats, Predictions(sites, torch.randint(0, 128_000, (1024, 32), generator=chance), logs)),
        "portrait": Portrait(80, width, inner, torch.arange(256), torch.randn(256, width, generator=chance)),
        "located": Located(tuple(weights), (1.0,) * 6, (), (), "six"),
        **{("row", weight): torch.randn(inner, generator=chance) for weight in weights},
        **{("causal", weight): nats[:, :127] for weight in weights},
    }
    text = baseline.dumps(Subject("large", None, memo=memo), {})

    assert len(text) < baseline.LARGEST
    again = baseline.loads(text, "large.json")[0]
    assert again.portrait().rows.shape == (16, width)
    assert [again.row(weight) is None for weight in weights] == [False] * 4 + [True] * 2


def test_another_bos_policy_is_another_tokenizer(tiny):
    """Ids decide, not files: without its BOS a tokenizer is another one, saved again it is the same."""
    import copy

    other = copy.deepcopy(tiny.tokenizer)
    same = baseline.tokenizer_identity(other)
    assert same == baseline.tokenizer_identity(tiny.tokenizer)
    other.backend_tokenizer.post_processor = ByteLevel()
    assert baseline.tokenizer_identity(other) != same
    assert baseline.tokenizer_identity(None) is None
    with pytest.raises(WrongModelError, match="for this tokenizer"):
        baseline.check_identity({"tokenizer": same}, {"tokenizer": baseline.tokenizer_identity(other)}, "x.json")


def test_a_snapshot_has_a_revision(tmp_path):
    """A folder of the hub's cache says which revision it is; another is a note, not a refusal."""
    assert baseline.revision_of(tmp_path / "snapshots" / "abc") == "abc"
    assert baseline.revision_of(tmp_path) is None
    assert baseline.check_identity({"revision": "abc"}, {"revision": "abd"}, "x.json") == [
        "the baseline was measured with revision abc, this run has abd"
    ]


def test_the_order_of_measuring_does_not_matter(live, text):
    """The same numbers taken in another order give the same file."""
    turned = Subject(live.name, None, memo=dict(reversed(live.memo.items())))
    assert baseline.dumps(turned, {"weights": "abc", "device": "cpu"}) == text


def test_named_super_weights_need_no_reference(tiny, recorded):
    """A caller's coordinates are checked by the sizes in the file, and judged where it holds their numbers."""
    assert assert_super_weights_preserved(tiny, recorded, super_weights=[damage.WEIGHT]).measured == pytest.approx(1)
    with pytest.raises(CoordinateError, match="layer 5 was asked for"):
        assert_super_weights_preserved(tiny, recorded, super_weights=[SuperWeight(5, 0, 0)])
