"""Checks a quantizer without a model: what it makes of super weights, on synthetic matrices, in milliseconds.

Each matrix ``(H, F)`` is ordinary weights with the outliers of one published ``down_proj`` in it: in their sizes and
signs, sharing rows and columns as they do, each at its place within a group. What the quantizer makes of it is a black
box, tensor or map: what an outlier writes is read from what the map does to an input as the model has it, ordinary
values and a spike at the outlier's column. B batch, H output channels (rows), F input channels (columns).

Published are the values, their places and their inputs. The rest is assumed. Other weights are normal with a standard
deviation of 0.02: Llama-7B's is close to that, by the 4-bit rounding errors that llama.cpp's pull request 729 lists for
it, and every other model is taken to be like it; for what is not, there is a ladder of 10 to 300 standard deviations.
Other inputs are standard normal. Rows and columns are taken modulo 256 and 512: the place in a group is kept, an
outlier's share of its matrix is not, so whatever spares or clips a fraction of all weights is milder here than there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import nn

from swcheck.base.errors import OptionError
from swcheck.base.limits import GIVEN, chosen_limit, is_given
from swcheck.base.records import Limit, Outcome, Verdict
from swcheck.gate.conclusion import conclude
from swcheck.lens.linear_maps import contributions, plain_weight
from swcheck.testing.geometries import COLUMNS, GEOMETRIES, ROWS, Geometry, Outlier

BLOCK: Final = 128
"""The neighbourhood that pays first: the usual size of a group."""

LOST: Final = 0.99
"""A matrix whose other weights are off by as much is lost: zeros in their place are off by 1.

A block of 128 that is lost is ordinary: 4 bits in groups of 128 zero it, and such models live. The paper's blocks of
512 x 512, which hold the matrices here twice over, cost Llama-7B 20 and Mistral-7B 37 points of accuracy (figure 7).
"""


def assert_outlier_survives(
    quantize: Callable[[torch.Tensor], Any],
    *,
    geometries: Iterable[Geometry] = GEOMETRIES,
    low: float = 0.75,
    high: float = 2.0,
    neighbours: float | None = None,
    others: float | None = LOST,
    seed: int = 0,
) -> Verdict:
    """Every outlier writes, through the quantized map, ``low`` to ``high`` of what it wrote before, sign included.

    ``quantize`` is given a weight, float32 ``(H, F)``, and leaves it as it is. It returns a tensor of that shape, its
    values dequantized, or a linear map ``(B, F) -> (B, H)``, module or function. What it raises passes, with the
    geometry in a note. A map that is not finite anywhere is red.

    Neighbours are the other weights of an outlier's block of 128, of its row, of the matrix. Told is their relative
    error, beside the one they have where the same matrix holds no outlier; the difference is the outlier's price.
    ``neighbours`` limits the price in the block; None limits nothing, since good quantizers lose a block of 128 whole.
    ``others`` limits the error in the matrix where it is smaller without the outlier: by default all of it must not be
    lost, in matrices as large as the published ones here; None limits nothing. Rows and matrices are larger in a model, so the price there is smaller.
    """
    limit, chosen = chosen_limit("contribution", low, high), tuple(geometries)
    if not callable(quantize):
        raise OptionError(f"quantize = {quantize!r}", "it cannot be called", "pass a function of a weight (H, F)")
    if not chosen:
        raise OptionError("geometries", "an empty set: nothing would be checked", "leave it out for all of them")
    if neighbours is not None and not 0 <= neighbours < math.inf:
        raise OptionError(f"neighbours = {neighbours}", "a price is a relative error", "for example 0.25")
    if others is not None and not 0 < others < math.inf:
        raise OptionError(f"others = {others}", "a relative error is a number above 0", f"by default {LOST}")
    found = []
    for geometry in chosen:
        try:
            found.append(_measure(quantize, geometry, seed))
        except Exception as error:
            error.add_note(f"  geometry: {geometry.name}, {geometry.rows} x {geometry.columns}")
            raise
    default = "zeros in their place would be as good; the paper's quantizers that lose so many cost 20 points and more"
    every = Limit(None, others, default if others == LOST else GIVEN)
    return conclude(_judge(_name(quantize), found, limit, Limit(None, neighbours, GIVEN), every))


@dataclass(frozen=True)
class _Found:
    """One geometry measured: the signed ratio of each outlier, and its neighbours' error (with it, without) by scope."""

    name: str
    ratios: dict[Outlier, float]
    errors: dict[str, tuple[float, float]]
    weights: int

    @property
    def price(self) -> float:
        there, bare = self.errors["block"]
        return there - bare

    def __str__(self) -> str:
        at, ratio = max(self.ratios.items(), key=lambda pair: _distance(pair[1]))
        errors = ", ".join(f"{scope} {there:.1%} ({bare:.1%})" for scope, (there, bare) in self.errors.items())
        return f"{_times(ratio)} at {at}; neighbours with it (without): {errors}"


def _measure(quantize: Callable[[torch.Tensor], Any], geometry: Geometry, seed: int) -> _Found:
    ordinary, weight, x = geometry.draw(seed)
    bare, there = _quantized(quantize, ordinary), _quantized(quantize, weight)
    errors = _errors(geometry, _matrix(there, weight) - weight, _matrix(bare, weight) - ordinary, ordinary)
    finite = all(math.isfinite(error) for error in errors["matrix"])
    before, after = (
        [float(contributions(one, x, at.row, [at.column])) for at in geometry.outliers]
        for one in (_linear(weight), there)
    )
    ratios = [one / other if finite else math.nan for one, other in zip(after, before, strict=True)]
    return _Found(geometry.name, dict(zip(geometry.outliers, ratios, strict=True)), errors, weight.numel())


def _errors(
    geometry: Geometry, there: torch.Tensor, bare: torch.Tensor, ordinary: torch.Tensor
) -> dict[str, tuple[float, float]]:
    """How far the outliers' neighbours are off, with the outliers and without: relative L2 errors by scope.

    The three, float32 ``(H, F)``, are used up: the outliers' own places are zeroed in them.
    """
    three = (there, bare, ordinary)
    rows = sorted({one.row for one in geometry.outliers})
    blocks = sorted({(one.row, one.column // BLOCK * BLOCK) for one in geometry.outliers})
    for each in three:
        each[[one.row for one in geometry.outliers], [one.column for one in geometry.outliers]] = 0
    scopes = {
        "block": [torch.cat([each[row, start : start + BLOCK] for row, start in blocks]) for each in three],
        "row": [each[rows] for each in three],
        "matrix": three,
    }
    sizes = {scope: [float(part.norm()) for part in parts] for scope, parts in scopes.items()}
    return {scope: (one / (whole or 1), other / (whole or 1)) for scope, (one, other, whole) in sizes.items()}


def _judge(name: str, found: Sequence[_Found], limit: Limit, price: Limit, others: Limit) -> Verdict:
    """What is red comes first: an outlier outside its limit, then a matrix that an outlier costs, then a block."""
    every = [(each, at, ratio) for each in found for at, ratio in each.ratios.items()]
    worst, outlier, ratio = max(every, key=lambda one: (not limit.holds(one[2]), _distance(one[2])))
    dearest = max(found, key=lambda each: each.price)
    there, bare = dearest.errors["block"]
    words = (
        f"worst of {len(every)} outliers: {_times(ratio)} at {outlier} of {worst.name}; most disturbed neighbours: "
        f"{there:.1%} off, {bare:.1%} without the outlier, in the block of {dearest.name}"
    )
    verdict = Verdict(
        "outlier survives", name, Outcome.PASSED, words, measured=ratio, limit=limit, unit="x",
        detail=tuple((each.name, str(each)) for each in found),
        facts={"geometries": [
            {"name": each.name, "ratios": list(each.ratios.values()), "neighbours": each.errors} for each in found
        ]},
    )  # fmt: skip
    if not math.isfinite(ratio):
        return _not_finite(verdict, found, f"outlier {outlier} of {worst.name} {_fate(ratio, outlier.sigmas)}")
    if not limit.holds(ratio):
        cause = f"outlier {outlier} of {worst.name} {_fate(ratio, outlier.sigmas)}"
        attempt = "scale each block by its largest value, or put the outlier back after rounding"
        return replace(verdict, outcome=Outcome.FAILED, cause=cause, attempt=attempt)
    for each in found:
        error, without = each.errors["matrix"]
        asked = each.weights >= ROWS * COLUMNS or is_given(others)
        if asked and not others.holds(error) and others.holds(without):
            cause = f"outliers of {each.name} ruin all of their matrix ({error:.1%} off, {without:.1%} without them)"
            attempt = "scale rows or groups on their own, or clip the outlier before rounding and put it back"
            lost = replace(verdict, measured=error, limit=others, unit="relative error")
            return replace(lost, outcome=Outcome.FAILED, cause=cause, attempt=attempt)
    if not price.holds(dearest.price):
        cause = f"outlier of {dearest.name} ruins its block ({there:.1%} off, {bare:.1%} without it)"
        attempt = "clip the outlier before rounding and put it back, or use smaller groups"
        judged = replace(verdict, measured=dearest.price, limit=price, unit="relative error")
        return replace(judged, outcome=Outcome.FAILED, cause=cause, attempt=attempt)
    return verdict


def _not_finite(verdict: Verdict, found: Sequence[_Found], cause: str) -> Verdict:
    """Red for NaN or infinity: which matrices, without a table of them."""
    bad = [each.name for each in found if not all(math.isfinite(one) for one in each.ratios.values())]
    words = f"NaN or infinity comes back for {len(bad)} of {len(found)} matrices: {', '.join(bad)}"
    attempt = "look for a scale that is 0, or a division by it"
    return replace(verdict, outcome=Outcome.FAILED, summary=words, cause=cause, attempt=attempt, detail=())


def _fate(ratio: float, sigmas: float) -> str:
    """What became of an outlier; zeroed is one of which no more is left than an ordinary weight."""
    if not math.isfinite(ratio):
        return "is not finite"
    if abs(ratio * sigmas) < 1:
        return f"is zeroed ({_times(ratio)})"
    if ratio < 0:
        return f"has its sign flipped ({_times(ratio)})"
    return f"is {'clipped' if ratio < 1 else 'amplified'} ({_times(ratio)})"


def _distance(ratio: float) -> float:
    """How far a ratio is from 1, either way; ratios that differ in the fourth digit only are alike."""
    return round(abs(math.log(ratio)), 3) if 0 < ratio < math.inf else math.inf


def _times(ratio: float) -> str:
    return f"x{round(ratio, 3) + 0.0:.3f}"


class _Map(nn.Module):
    """A map that came back, module or function, fed in the float and on the device of its own tensors."""

    def __init__(self, function: Callable[[torch.Tensor], Any], asked: str, rows: int) -> None:
        super().__init__()
        self.function, self.asked, self.rows = function, asked, rows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        floats = (t for t in (*self.parameters(), *self.buffers()) if t.is_floating_point() and t.element_size() > 1)
        out = self.function(x.to(next(floats, x)))
        out = out[0] if isinstance(out, tuple) else out
        if not isinstance(out, torch.Tensor) or out.shape != (len(x), self.rows):
            raise OptionError(self.asked, f"its map gives {_told(out)} for x {tuple(x.shape)}", f"(B, {self.rows})")
        return out.detach().dequantize().float().cpu()


def _quantized(quantize: Callable[[torch.Tensor], Any], weight: torch.Tensor) -> nn.Module:
    """What ``quantize`` makes of ``weight``, as a linear map: a plain layer where it returns a tensor."""
    given = weight.clone()
    result, asked = quantize(given), f"quantize = {_name(quantize)}"
    if not torch.equal(given, weight):
        raise OptionError(asked, "it wrote into the weight it was given", "let it work on weight.clone()")
    if isinstance(result, torch.Tensor):
        if result.shape != weight.shape or not (result.is_floating_point() or result.is_quantized):
            raise OptionError(asked, f"it returned {_told(result)}", f"dequantized values {tuple(weight.shape)}")
        return _linear(result.detach().dequantize().float().cpu())
    if not callable(result):
        raise OptionError(asked, f"it returned {_told(result)}", "a tensor, a module, or a function of x (B, F)")
    return _Map(result, asked, len(weight))


def _linear(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def _matrix(module: nn.Module, like: torch.Tensor) -> torch.Tensor:
    """The matrix ``(H, F)`` of a linear map: read where it lies plain, else probed, one input channel after the other."""
    weight = plain_weight(module)
    if weight is not None:
        return weight
    with torch.no_grad():
        out: torch.Tensor = module(torch.eye(like.shape[1] + 1, like.shape[1], dtype=torch.float32))
    return (out[:-1] - out[-1]).T


def _name(quantize: Callable[[torch.Tensor], Any]) -> str:
    function = getattr(quantize, "func", quantize)  # of a functools.partial
    return str(getattr(function, "__name__", type(function).__name__))


def _told(thing: Any) -> str:
    return f"{thing.dtype} {tuple(thing.shape)}" if isinstance(thing, torch.Tensor) else type(thing).__name__
