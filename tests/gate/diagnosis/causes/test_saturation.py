"""A super activation beyond the range of float16 that kernels cut off there: perplexity keeps, and the cause is told."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from swcheck import (
    Outcome,
    RobustnessError,
    assert_perplexity_within,
    assert_super_activations_preserved,
    assert_super_weights_preserved,
)
from swcheck.lens.tokens import token_windows
from swcheck.superweights.subject.as_subject import as_subject
from swcheck.testing.candidates import candidate
from swcheck.testing.damage.bases import with_larger_stream


@pytest.fixture(scope="module")
def ids(tiny):
    return token_windows(tiny.tokenizer, tiny.text, count=4, length=64)


def large(tiny, factor):
    """Tiny with a residual stream that is larger by a factor, which its norms divide by again."""
    return replace(tiny, model=with_larger_stream(tiny.model, factor), name=f"x{factor:g}", source="")


@pytest.mark.slow
def test_what_float16_cuts_off_is_named_where_perplexity_keeps(tiny, ids):
    """+101,584 becomes 65,504 in arithmetic that saturates: no nat is lost, and the super activation is not there."""
    reference = as_subject(large(tiny, 256.0), token_ids=ids)
    made = as_subject(candidate("float16 saturated", large(tiny, 256.0)), token_ids=ids)

    for check in (assert_super_activations_preserved, assert_super_weights_preserved):
        with pytest.raises(RobustnessError) as caught:
            check(made, reference)
        verdict = caught.value.verdict
        assert verdict.cause == "float16 ends at 65,504: the super activation of channel 97 at token 0 is cut off"
        assert verdict.cause_kind == "overflow"
        [proof] = [words for name, words in verdict.detail if name == "proof"]
        assert proof == "after layers 1 to 3 it is 65,504, the largest number of float16; the reference has 101,584"
        assert "bfloat16" in verdict.attempt
    assert assert_perplexity_within(made, reference).measured == pytest.approx(1, abs=0.01)


@pytest.mark.slow
def test_a_loss_beside_it_is_not_blamed_on_it_without_a_proof(tiny, ids):
    """Where the perplexity is red as well, float16 cannot hold what would have to be given back: that is said."""
    reference = as_subject(large(tiny, 256.0), token_ids=ids)
    spoilt = candidate("rounded", large(tiny, 256.0), 2)
    made = as_subject(candidate("float16 saturated", spoilt), token_ids=ids)

    with pytest.raises(RobustnessError) as caught:
        assert_perplexity_within(made, reference)

    assert caught.value.verdict.cause_kind != "overflow"
    assert "it cannot be given back in float16" in str(caught.value.verdict.detail)


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "words"), [(128.0, "; that is 78% of the range of float16"), (64.0, "")])
def test_what_comes_near_the_end_of_float16_is_pointed_out(tiny, ids, factor, words):
    """A green gate says so before it becomes infinite."""
    reference = as_subject(large(tiny, factor), token_ids=ids)
    halved = large(tiny, factor)
    made = as_subject(replace(halved, model=halved.model.half()), token_ids=ids)

    verdict = assert_super_activations_preserved(made, reference)

    assert verdict.outcome is Outcome.PASSED
    assert verdict.summary.endswith(f"n = 1 by causality{words}")
    assert verdict.facts["share_of_float16"] == pytest.approx(396.8 * factor / 65504, rel=0.01)


def test_other_dtypes_have_no_such_end(tiny, ids):
    """The same values in bfloat16 are within its range."""
    reference = as_subject(large(tiny, 256.0), token_ids=ids)
    loaded = large(tiny, 256.0)
    verdict = assert_super_activations_preserved(
        as_subject(replace(loaded, model=loaded.model.to(torch.bfloat16)), token_ids=ids), reference
    )
    assert verdict.facts["share_of_float16"] == 0
