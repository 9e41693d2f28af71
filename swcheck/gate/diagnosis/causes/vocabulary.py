"""The cause: rows of the head beyond the reference's vocabulary take probability. Proven by leaving them out."""

from __future__ import annotations

from functools import partial

from swcheck.gate.diagnosis.evidence.damaged_candidate import PROVEN, DamagedCandidate
from swcheck.gate.diagnosis.evidence.finding import Detail, Finding, ruled_out
from swcheck.lens.replace import vocabulary_limited
from swcheck.superweights.measurements.inputs import vocabulary_size


def find(damaged: DamagedCandidate) -> Finding | Detail:
    """Leave out the rows of the head that the reference does not have."""
    ours, theirs = vocabulary_size(damaged.candidate), vocabulary_size(damaged.reference)
    if ours <= theirs or damaged.candidate.module.get_output_embeddings() is None:  # type: ignore[operator]
        return ()
    share, words = damaged.recovered(partial(vocabulary_limited, count=theirs))
    rows = f"{ours - theirs:,} rows of the head beyond the reference's {theirs:,}"
    if share < PROVEN:
        return ruled_out(f"a larger vocabulary ({rows} left out: {words})")
    advice = f"cut the head to {theirs:,} rows, or fill the others so that no text is likely to continue with them"
    return Finding(
        f"the vocabulary: {rows} take probability", (("proof", f"left out: {words}"),), (), advice, kind="vocabulary"
    )
