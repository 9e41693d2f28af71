"""Several differences at once are named together; one that returns nothing is left out; a baseline serves as well."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import swcheck
from swcheck import Loaded, RobustnessError, assert_perplexity_within, load
from swcheck.gate.baseline.file import baseline_text, read_baseline
from swcheck.gate.baseline.measure import measure_for_candidates
from swcheck.superweights.subject.as_subject import as_subject
from swcheck.testing.candidates import candidate

PACKAGE = Path(swcheck.__file__).parent


def red(made, reference):
    with pytest.raises(RobustnessError) as caught:
        assert_perplexity_within(made, reference)
    return caught.value.verdict


def rows(verdict, name):
    return [text for key, text in verdict.detail if key == name]


@pytest.mark.slow
def test_three_faults_are_named_together(tiny):
    """A configuration, a norm and a head: each alone returns little, together all of the loss."""
    made = candidate("head rolled", candidate("final norm scaled", candidate("rope theta", tiny), 3.0), 1)

    verdict = red(made, tiny)

    assert set(verdict.cause.split("; ")) == {
        "configuration: rope_theta 50 for 10,000",
        "norm model.norm is scaled x3",
        "head lm_head has its rows rolled by 1",
    }
    assert rows(verdict, "proof") == ["all of it given back: perplexity x1.000, 100% of the loss returns"]
    assert len(rows(verdict, "given back")) == 3


@pytest.mark.slow
def test_a_difference_without_effect_is_left_out(tiny):
    """A factor of 1.1 on one of many norms costs nothing beside a rolled head."""
    made = candidate("head rolled", candidate("norm scaled", tiny, 1.1), 1)

    assert red(made, tiny).cause == "head lm_head has its rows rolled by 1"


@pytest.mark.slow
def test_nothing_beside_the_linear_maps_differs(tiny):
    """Then that is ruled out in words, and the cause is sought on."""
    made = load("rtn:bits=2,block=128", reference="tiny", device="cpu")
    with pytest.raises(RobustnessError) as caught:
        assert_perplexity_within(made, tiny, ratio=1.1)
    said = rows(caught.value.verdict, "ruled out")
    assert "the configuration, the order of the layers, norms, embedding and head (none differs)" in said


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rope theta", "head shuffled", "layers exchanged", "query negated", "rounded"])
def test_a_baseline_finds_the_same(tiny, name):
    """With a baseline and the reference's own files the same cause is named as beside the reference."""
    reference = as_subject(tiny)
    measure_for_candidates(reference)
    baseline, _ = read_baseline(baseline_text(reference, {}), "here")
    baseline.source = tiny.source
    made = candidate(name, tiny)

    with_reference, with_baseline = red(made, tiny), red(made, baseline)

    assert with_baseline.cause == with_reference.cause
    assert with_baseline.cause_kind == with_reference.cause_kind


@pytest.mark.slow
def test_without_the_reference_s_files_what_is_not_known_is_said(tiny):
    """A baseline alone has no tensors: no cause is claimed that was not proven."""
    reference = as_subject(tiny)
    measure_for_candidates(reference)
    baseline, _ = read_baseline(baseline_text(reference, {}), "here")

    assert red(candidate("rope theta", tiny), baseline).cause == "configuration: rope_theta 50 for 10,000"
    assert red(candidate("head rolled", tiny), baseline).cause_kind == "unknown"


@pytest.mark.slow
def test_a_quantized_candidate_gets_its_configuration_back_with_its_packed_maps(tiny):
    """The linear maps of a quantizer stay as they are while the configuration is another one."""
    made = load("rtn:bits=4,block=128", reference="tiny", device="cpu")
    bent = candidate("rope theta", Loaded(made.model, made.tokenizer, "bent", tiny.text))

    verdict = red(bent, tiny)

    assert verdict.cause == "configuration: rope_theta 50 for 10,000"


def test_every_kind_of_cause_is_documented():
    """``cause_kind`` is stable: each that the code names has a row in the table, and each row is named in the code."""
    code = "\n".join(file.read_text(encoding="utf-8") for file in (PACKAGE / "gate").rglob("*.py"))
    named = set(re.findall(r'(?:cause_)?kind="(\w+)"|"cause_kind": "(\w+)"', code))
    kinds = {one or other for one, other in named} - {"same", "auto"}
    page = (PACKAGE.parent / "docs" / "causes.md").read_text(encoding="utf-8")
    documented = {
        name for row in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", page, re.M) for name in re.findall(r"\w+", row)
    }
    assert kinds <= documented
    assert documented <= {*re.findall(r'"(\w+)"', code)}
