"""The cause: the reference itself is worse than guessing. Then nothing can be said about a candidate."""

from __future__ import annotations

from swcheck.base.statistics import perplexity_of
from swcheck.gate.diagnosis.evidence.damaged_candidate import DamagedCandidate
from swcheck.gate.diagnosis.evidence.finding import Detail, Finding, not_known, ruled_out
from swcheck.superweights.measurements.inputs import vocabulary_size
from swcheck.superweights.measurements.scores import intact_scores


def find(damaged: DamagedCandidate) -> Finding | Detail:
    """Compare the reference's perplexity with guessing; the rows also name what ``gate.checks.confounds`` ruled out."""
    value, guessing = perplexity_of(intact_scores(damaged.reference)[0]), vocabulary_size(damaged.reference)
    if not value <= guessing:
        words = f"its own perplexity is {value:.4g}, guessing has {guessing:,}"
        return Finding(
            "the reference is sick",
            (("reference", words),),
            (),
            "check its dtype and weights",
            "reference",
            kind="reference",
        )
    return (
        *ruled_out(f"a sick reference (perplexity {value:.4g}, guessing has {guessing:,})"),
        *ruled_out("another tokenizer or BOS policy (the same ids for two texts)"),
        *(not_known if damaged.relation.kind == "unknown" else ruled_out)(
            f"another base model or basis ({damaged.relation.words})"
        ),
    )
