"""Candidates of known faults: the gate is red where it should be, and its first line names the fault that was made."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from swcheck import Loaded
from swcheck.base.errors import OptionError
from swcheck.superweights.subject.as_subject import as_subject
from swcheck.testing.candidates import CANDIDATES, candidate
from tests.gated import first_red

QUICK = ("head rolled", "up projection scaled", "embedding row not finite", "rounded")

OF_OTHER_MODELS = (
    "experts lost", "experts drawn again", "experts exchanged", "halves of gate and up exchanged",
    "float16 saturated", "vocabulary cut",
)  # fmt: skip
"""Kinds that tiny has no part for; those of experts are shown in ``tests/gate/test_experts.py``, the last two in
``tests/gate/diagnosis/causes``."""


@pytest.fixture(scope="module")
def reference(tiny):
    """Measured once for all candidates."""
    return as_subject(tiny)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in CANDIDATES if n not in OF_OTHER_MODELS],
)
def test_a_red_gate_names_what_was_done(tiny, reference, name):
    """At the greatest strength, harmful and harmless kinds alike: no cause that was not made, none for a healthy one."""
    kind = CANDIDATES[name]
    strengths = [s for s in kind.strengths if not (name == "rounded" and s < 3)][-1:]
    for strength in strengths:
        verdict = first_red(candidate(name, tiny, strength), reference)
        assert (verdict is None) if not kind.causes else (verdict is None or verdict.cause_kind in kind.causes)
    if kind.causes and name not in {"rounded", "super weights scaled"}:
        assert verdict is not None


@pytest.mark.slow
def test_another_candidate_in_between_changes_no_verdict(tiny, reference):
    """The same candidate, gated before and after others against one reference, gets the same verdict to the bit."""
    made = candidate("up projection scaled", tiny)
    verdicts = [first_red(one, reference) for one in (made, candidate("head rolled", tiny), made)]
    assert verdicts[0] == verdicts[2] != verdicts[1]


def test_the_reference_is_left_as_it_is(tiny):
    """A candidate is a copy: the leak detector of this run watches every bit of the reference."""
    for name in ("head rolled", "layers exchanged", "rope theta"):
        assert candidate(name, tiny).model is not tiny.model


def test_a_candidate_is_the_same_every_time(tiny):
    """What is drawn at random is drawn from a seed."""
    one, other = (candidate("noise", tiny).model.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_unknown_kind_is_refused(tiny):
    """The message lists the kinds."""
    with pytest.raises(OptionError, match=r"no such kind[\s\S]*rope theta"):
        candidate("bit rot", tiny)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("head rolled", "tied"),
        ("vocabulary cut", "as many"),
        ("float16 saturated", "beyond 65,504"),
        ("channels permuted", "a head of its own"),
        ("super weights moved", "with super weights"),
        ("query transposed", "square"),
        ("group scales rolled", "groups of 32 columns in mlp.down_proj"),
    ],
)
def test_a_part_that_is_not_there_is_said(tiny, name, match):
    """A tied head, a model without super weights, a matrix that is not square: an error in words."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=1024, head_dim=16, tie_word_embeddings=True, **sizes)
    with pytest.raises(OptionError, match=match):
        candidate(name, Loaded(LlamaForCausalLM(config).eval(), tiny.tokenizer, "small"))
