"""What the stored weights of a candidate in another program are in torch, beside what that program computes with them.

The two differ by the program's kernels alone: what they round, and what is wrong with them. B windows, T tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from swcheck.base.errors import SwcheckError
from swcheck.base.formatting import format_ratio
from swcheck.base.statistics import STANDARD_ERRORS, factor_of, perplexity_of, standard_error
from swcheck.superweights.measurements.scores import noise_of_two_runs, scores_against
from swcheck.superweights.subject.as_subject import as_subject
from swcheck.superweights.subject.measurement import measurement
from swcheck.superweights.subject.memory import Cost, InBaseline
from swcheck.superweights.subject.subject import Subject


def load_twin(candidate: Subject, reference: Subject) -> Subject:
    """Return the weights that the candidate's program runs, loaded in torch; the caller discards it.

    Raises what the engine does that ``Runtime.twin`` names.
    """
    loaded = candidate.remake(candidate.runtime.twin, reference.source)
    return replace(as_subject(loaded), name=candidate.name, kind=candidate.kind)


@measurement("in torch", Cost.DIAGNOSIS, in_baseline=InBaseline.NO)
def in_torch(candidate: Subject, reference: Subject) -> dict[str, Any] | str:
    """Return the ``perplexity`` and ``kl`` of the stored weights in torch, on the reference's windows, and what the kernels add.

    ``kernels`` is the mean of the paired nats per token that the program loses against torch, ``noise`` what that number
    may be by chance. Words that say why, where the weights are not loaded in torch.
    """
    if not candidate.is_runtime or not candidate.runtime.twin:
        return "no engine loads these weights in torch" if candidate.is_runtime else "it runs in torch"
    ours, run_noise = (
        scores_against(candidate, reference)[0],
        noise_of_two_runs(candidate, reference),
    )  # before it is freed
    try:
        twin = load_twin(candidate, reference)
    except SwcheckError as error:
        return f"{error.asked}: {error.found}"
    try:
        theirs, drift = scores_against(twin, reference)
    finally:
        twin.discard()
    more = ours - theirs
    return {
        "perplexity": perplexity_of(theirs),
        "kl": drift.mean,
        "kernels": float(more.mean()),
        "noise": max(run_noise, STANDARD_ERRORS * standard_error(more)),
    }


def in_torch_words(found: dict[str, Any] | str, reference_perplexity: float) -> str:
    """Return words for the end of a summary: the number in torch, and whether the kernels differ beyond the noise."""
    if isinstance(found, str):
        return f"; not compared with torch: {found}"
    kernels, noise = found["kernels"], found["noise"]
    ratio = _ratio(factor_of(kernels))
    words = (
        "the kernels add no more than the noise" if abs(kernels) <= noise else f"the kernels make it {ratio} of that"
    )
    return (
        f"; the same weights in torch {_ratio(found['perplexity'] / reference_perplexity)}, KL {found['kl']:.4f} nats: "
        f"{words} ({kernels:+.1g} nats, noise {noise:.1g})"
    )


def _ratio(value: float) -> str:
    """Return a ratio with as many places as two sides that nearly agree need."""
    return f"x{value:.4f}" if value < 1000 else format_ratio(value)
