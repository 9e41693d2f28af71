"""What a subject scores on its windows: nats of every token, predictions, and the noise under both. B batch, T time."""

from __future__ import annotations

import torch

from swcheck.lens.anatomy import device_of
from swcheck.lens.kl_divergence import Drift, Predictions, compare, predict
from swcheck.lens.likelihood import evaluating, token_nats
from swcheck.lens.observe import observe
from swcheck.superweights.measurements.inputs import prompt_ids, windows
from swcheck.superweights.measurements.residual_stream import residual_stream
from swcheck.superweights.subject.measurement import measurement
from swcheck.superweights.subject.memory import Cost, InBaseline
from swcheck.superweights.subject.subject import Subject


@measurement("intact", Cost.WINDOWS, in_baseline=InBaseline.HALF)
def intact_scores(subject: Subject) -> tuple[torch.Tensor, Predictions]:
    """Return the nats of every token of the windows, float64 ``(B, T - 1)``, and the likeliest tokens."""
    return predict(subject.module, windows(subject))


@measurement("against", Cost.WINDOWS, in_baseline=InBaseline.NO)
def scores_against(subject: Subject, reference: Subject) -> tuple[torch.Tensor, Drift]:
    """Return the subject's nats on the windows of ``reference``, and how far its predictions drift from the reference's."""
    ids, expected = windows(reference), intact_scores(reference)[1]  # first: they may need the reference in memory
    return compare(subject.module, ids, expected)


@measurement("noise", Cost.PROMPT)
def noise_floor(subject: Subject) -> tuple[float, float]:
    """Return the noise of the mean nats per token, and of a value of the residual stream relative to it.

    The first is a window scored alone against the same window in its batch; the second is a prompt alone against three
    copies in a batch, and at least the precision of the dtype it is computed in.
    """
    model, ids, prompt = subject.module, windows(subject), prompt_ids(subject)
    alone, among = token_nats(model, ids[:1])[0], intact_scores(subject)[0][0]
    last, single = len(subject.anatomy.layers) - 1, residual_stream(subject, prompt)[-1].double()
    with evaluating(model), observe(model, residual=[last], stop=True) as sight:
        model(prompt.repeat(3, 1).to(device_of(model)), use_cache=False)
    several, step = sight.residual[last][0].cpu().double(), torch.finfo(sight.residual[last].dtype).eps
    moved = float((several - single).norm() / single.norm().clamp_min(1e-30))
    return abs(float(alone.mean() - among.mean())), max(step, moved)
