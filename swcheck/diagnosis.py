"""Why a candidate is red: the cause by name, proven before it is printed.

A super weight is to blame only if giving back what it lost brings at least half of the lost nats back. Else the order
goes on to what is usual: not the super weights, with the first layer whose error away from the sink stands out, and the
linear maps that answer fixed random inputs worst.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import torch

from swcheck.intervene import set_to
from swcheck.measure import token_nats

if TYPE_CHECKING:
    from swcheck.records import SuperWeight
    from swcheck.subject import Subject

PROVEN: Final = 0.5
"""The least share of the lost nats that has to return."""

WORST: Final = 5
ALIKE: Final = 0.1
"""Two weights within this share of each other count as the same one."""

Detail = tuple[tuple[str, str], ...]


def weight_cause(candidate: Subject, reference: Subject, weight: SuperWeight, ratio: float) -> str:
    """What became of a super weight that writes ``ratio`` of what it should."""
    place = f"super weight at layer {weight.layer} [{weight.row}, {weight.column}]"
    if not math.isfinite(ratio):
        return f"{place} is not finite"
    moved = _moved_to(candidate, reference, weight)
    if abs(ratio) < 0.25 and moved is not None:
        return f"{place} moved to column {moved}"
    if ratio < 0:
        return f"{place} has its sign flipped (x{ratio:.2f})"
    if ratio < 0.02:
        return f"{place} {'rounded away' if _on_a_grid(candidate, reference, weight) else 'zeroed'} (x{ratio:.2f})"
    if ratio < 1:
        how = "clipped or rounded down" if _on_a_grid(candidate, reference, weight) else "weakened"
        return f"{place} {how} (x{ratio:.2f})"
    return f"{place} amplified (x{ratio:.2f})"


def explain_loss(
    candidate: Subject, reference: Subject, weights: Sequence[SuperWeight], there: Sequence[SuperWeight]
) -> tuple[str, Detail, str]:
    """The cause of a loss of perplexity, its details, and what to try.

    ``weights`` are the reference's super weights, ``there`` the same in the candidate's coordinates.
    """
    if weights:
        share, restored = restoration(candidate, reference, weights, there)
        words = f"restored through a hook: perplexity x{restored:.3f}, {share:.0%} of the loss returns"
        if share >= PROVEN:
            names = ", ".join(f"layer {w.layer} [{w.row}, {w.column}]" for w in weights)
            return f"what the super weights write is lost ({names})", (("proof", words),), fix(weights)
        ruled_out: Detail = (("ruled out", f"the super weights ({words})"),)
    else:
        ruled_out = (("ruled out", "the super weights: the reference has none"),)
    if reference.module is None and not reference.remembers("probes"):
        detail = (*ruled_out, ("not known", "which layer and matrix: that needs the reference, not only its numbers"))
        return "not the super weights", detail, "run the gate once with the reference instead of its baseline"
    depths = candidate.portrait().layers, reference.portrait().layers
    if depths[0] != depths[1]:
        depth = f"{depths[0]} layers, where the reference has {depths[1]}: compared layer by layer they mean nothing"
        return (
            "not the super weights",
            (*ruled_out, ("depth", depth)),
            "heal a pruned depth by training, or raise the limit",
        )
    layer, rise = first_bad_layer(candidate, reference)
    detail = (*ruled_out, ("layers", f"the error away from the sink rises most in layer {layer} (to {rise:.1%})"))
    worst = [(f"layers.{name}", f"answers {error:.1%} off") for name, error in worst_maps(candidate, reference)]
    advice = f"keep {worst[0][0]} in higher precision first" if worst else "compare it layer by layer"
    return "not the super weights", (*detail, *worst), advice


def restoration(
    candidate: Subject, reference: Subject, weights: Sequence[SuperWeight], there: Sequence[SuperWeight]
) -> tuple[float, float]:
    """Give each super weight back what it lost, and look again.

    Returns the share of the lost nats that comes back, and the perplexity that is left over the reference's.
    """
    ids = reference.causal_ids()
    before = float(reference.causal_intact().mean())
    damaged = float(candidate.against(reference)[0][:, : ids.shape[1] - 1].mean())
    sinks = reference.sinks(weights, reference.prompt_ids())
    due = reference.written(weights)
    written = candidate.contributions(there, reference.prompt_ids(), sinks)
    values = zip(candidate.weights(there), reference.weights(weights), due, written, strict=True)
    targets = [replace(weight, value=_restoring(*numbers)) for weight, numbers in zip(there, values, strict=True)]
    with ExitStack() as stack:
        stack.enter_context(set_to(candidate.live, targets))
        restored = float(token_nats(candidate.live, ids).mean())
    lost = damaged - before
    share = (damaged - restored) / lost if lost > 0 and math.isfinite(restored) else 0.0
    return share, math.exp(min(700.0, restored - before)) if math.isfinite(restored) else math.inf


def _restoring(value: float, expected: float, due: float, written: float) -> float:
    """The weight that writes ``due`` at the input that now gives ``written``; the reference's own where that is 0."""
    if abs(written) < 1e-3 * abs(due) or value == 0:
        return expected
    return value * due / written


def fix(weights: Sequence[SuperWeight]) -> str:
    """What to paste for the tools that quantize: the matrices to leave alone."""
    names = sorted({f"model.layers.{weight.layer}.mlp.down_proj" for weight in weights})
    blocks = sorted({f"blk.{weight.layer}.ffn_down" for weight in weights})
    quoted = ", ".join(f'"{name}"' for name in names)
    return (
        f"leave these matrices unquantized: llm-compressor ignore=[{quoted}]; bitsandbytes "
        f"llm_int8_skip_modules=[{quoted}]; torchao and quanto modules_to_not_convert / exclude=[{quoted}]; "
        f"llama.cpp --tensor-type {' --tensor-type '.join(f'{block}=f16' for block in blocks)}"
    )


def first_bad_layer(candidate: Subject, reference: Subject) -> tuple[int, float]:
    """The layer after which the relative error of the residual stream, the sink left out, has risen most."""
    ours, theirs = candidate.residuals(), reference.residuals()
    sinks = theirs.abs().amax(2)
    keep = sinks <= 8 * sinks.median(1, keepdim=True).values
    errors = []
    for layer in range(len(theirs)):
        kept = keep[layer] if keep[layer].any() else torch.ones_like(keep[layer])
        difference = (ours[layer] - theirs[layer])[kept].norm()
        errors.append(float(difference / theirs[layer][kept].norm().clamp_min(1e-12)))
    rises = [now - before for before, now in zip([0.0, *errors], errors, strict=False)]
    layer = max(range(len(rises)), key=lambda number: rises[number])
    return layer, errors[layer]


def worst_maps(candidate: Subject, reference: Subject) -> list[tuple[str, float]]:
    """The linear maps whose answers to fixed random inputs differ most, relative to the reference's norm."""
    expected = reference.probes()
    answers = candidate.probed(expected)
    errors = {
        name: float((answer - expected[name][1]).norm() / expected[name][1].norm().clamp_min(1e-12))
        for name, answer in answers.items()
    }
    ranked = sorted(errors.items(), key=lambda item: -item[1])
    return [item for item in ranked[:WORST] if item[1] > 0]


def _moved_to(candidate: Subject, reference: Subject, weight: SuperWeight) -> int | None:
    """The column that now holds what stood at ``weight``, where it did not before."""
    before, after = reference.row(weight), candidate.row(weight)
    if before is None or after is None or not before[weight.column]:
        return None
    value = before[weight.column]
    new = ((after / value - 1).abs() < ALIKE) & ((before / value - 1).abs() >= ALIKE)
    return int(new.nonzero()[0]) if new.any() else None


def _on_a_grid(candidate: Subject, reference: Subject, weight: SuperWeight) -> bool:
    """Whether the candidate's row knows few values where the reference's knows many, as a rounded one does."""
    before, after = reference.row(weight), candidate.row(weight)
    if before is None or after is None:
        return True
    return len(torch.unique(after)) * 2 <= len(torch.unique(before))
