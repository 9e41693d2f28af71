"""Checks a quantizer without a model: whether super weights in synthetic matrices survive it. It takes milliseconds.

Each matrix ``(H, F)`` holds ordinary weights and the outliers of one published ``down_proj``: with their values and
signs, sharing rows and columns as they do, each at its place within a group. The quantizer is a black box that returns
a tensor or a map. What an outlier writes is measured from the output of the map for an input as the model has it:
ordinary values, and a spike at the outlier's column. B batch, H output channels (rows), F input channels (columns).

The outliers' values, places and inputs are published; the rest is assumed. Other weights are normal with a standard
deviation of 0.02. That is close to Llama-7B's, by the 4-bit rounding errors that llama.cpp's pull request 729 lists for
it, and assumed for every other model; for models unlike that there is a ladder of 10 to 300 standard deviations. Other
inputs are standard normal. Rows and columns are taken modulo 256 and 512. That keeps the place within a group but not
an outlier's share of its matrix, so a quantizer that spares or clips a fraction of all weights does less harm here.
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
from swcheck.lens.architecture.storage import plain_weight
from swcheck.lens.linear_maps import contributions
from swcheck.testing.geometries import COLUMNS, GEOMETRIES, ROWS, Geometry, Outlier

BLOCK: Final = 128
"""The neighbourhood that is damaged first: the usual size of a group."""

LOST: Final = 0.99
"""A matrix whose other weights have this relative error is lost: zeros in their place have an error of 1.

A lost block of 128 is ordinary: 4 bits in groups of 128 zero it, and such models live. The paper's blocks of 512 x 512,
which hold the matrices here twice over, cost Llama-7B 20 and Mistral-7B 37 points of accuracy (figure 7).
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
    """Check that every outlier writes, through the quantized map, ``low`` to ``high`` of what it wrote before, signed.

    ``quantize`` gets a weight, float32 ``(H, F)``, and must not write into it. It returns a tensor of that shape with
    dequantized values, or a linear map ``(B, F) -> (B, H)``, module or function. An error it raises passes through,
    with the geometry in a note. Any value that is not finite fails.

    Neighbours are the other weights of an outlier's block of 128, of its row, and of the matrix. Reported is their
    relative error with the outlier and without it; the difference is the price of the outlier. ``neighbours`` limits
    the price in the block; None sets no limit, because good quantizers lose a block of 128 whole. ``others`` limits the
    error of the matrix if the error without the outlier is within the limit: by default the matrix must not be lost,
    where it is as large as the published ones here. None sets no limit. In a real model rows and matrices are larger,
    and the price there is smaller. Raises ``RobustnessError`` for a failure, ``OptionError`` for an argument that
    cannot be used.
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
    results = []
    for geometry in chosen:
        try:
            results.append(_measure_geometry(quantize, geometry, seed))
        except Exception as error:
            error.add_note(f"  geometry: {geometry.name}, {geometry.rows} x {geometry.columns}")
            raise
    default = "zeros in their place would be as good; the paper's quantizers that lose so many cost 20 points and more"
    matrix_limit = Limit(None, others, default if others == LOST else GIVEN)
    return conclude(_judge(_quantizer_name(quantize), results, limit, Limit(None, neighbours, GIVEN), matrix_limit))


@dataclass(frozen=True)
class _GeometryResult:
    """One geometry measured: the signed ratio of each outlier, its neighbours' error (with it, without) by scope."""

    name: str
    ratios: dict[Outlier, float]
    errors: dict[str, tuple[float, float]]
    weights: int

    @property
    def price(self) -> float:
        error, without = self.errors["block"]
        return error - without

    def __str__(self) -> str:
        outlier, ratio = max(self.ratios.items(), key=lambda pair: _distance_from_one(pair[1]))
        errors = ", ".join(f"{scope} {error:.1%} ({without:.1%})" for scope, (error, without) in self.errors.items())
        return f"{_ratio_text(ratio)} at {outlier}; neighbours with it (without): {errors}"


def _measure_geometry(quantize: Callable[[torch.Tensor], Any], geometry: Geometry, seed: int) -> _GeometryResult:
    ordinary, weight, x = geometry.draw(seed)
    map_without, map_with = _quantized_map(quantize, ordinary), _quantized_map(quantize, weight)
    errors = _neighbour_errors(
        geometry, _matrix_of(map_with, weight) - weight, _matrix_of(map_without, weight) - ordinary, ordinary
    )
    finite = all(math.isfinite(error) for error in errors["matrix"])
    before, after = (
        [float(contributions(linear_map, x, outlier.row, [outlier.column])) for outlier in geometry.outliers]
        for linear_map in (_linear_layer(weight), map_with)
    )
    ratios = [new / old if finite else math.nan for new, old in zip(after, before, strict=True)]
    return _GeometryResult(geometry.name, dict(zip(geometry.outliers, ratios, strict=True)), errors, weight.numel())


def _neighbour_errors(
    geometry: Geometry, error_with: torch.Tensor, error_without: torch.Tensor, ordinary: torch.Tensor
) -> dict[str, tuple[float, float]]:
    """Return the relative L2 error of the outliers' neighbours, with the outliers and without, by scope.

    The three tensors, float32 ``(H, F)``, are overwritten: the outliers' own places are zeroed in them.
    """
    tensors = (error_with, error_without, ordinary)
    rows = sorted({outlier.row for outlier in geometry.outliers})
    blocks = sorted({(outlier.row, outlier.column // BLOCK * BLOCK) for outlier in geometry.outliers})
    for tensor in tensors:
        tensor[[outlier.row for outlier in geometry.outliers], [outlier.column for outlier in geometry.outliers]] = 0
    scopes = {
        "block": [torch.cat([tensor[row, start : start + BLOCK] for row, start in blocks]) for tensor in tensors],
        "row": [tensor[rows] for tensor in tensors],
        "matrix": tensors,
    }
    norms = {scope: [float(part.norm()) for part in parts] for scope, parts in scopes.items()}
    return {scope: (error / (size or 1), bare / (size or 1)) for scope, (error, bare, size) in norms.items()}


def _judge(name: str, results: Sequence[_GeometryResult], limit: Limit, price: Limit, others: Limit) -> Verdict:
    """Return the verdict. Tested in order: an outlier outside its limit, a lost matrix, the price in a block."""
    outliers = [(result, place, ratio) for result in results for place, ratio in result.ratios.items()]
    worst, outlier, ratio = max(outliers, key=lambda entry: (not limit.holds(entry[2]), _distance_from_one(entry[2])))
    costliest = max(results, key=lambda result: result.price)
    block_error, block_error_without = costliest.errors["block"]
    summary = (
        f"worst of {len(outliers)} outliers: {_ratio_text(ratio)} at {outlier} of {worst.name}; most disturbed neighbours: "
        f"{block_error:.1%} off, {block_error_without:.1%} without the outlier, in the block of {costliest.name}"
    )
    verdict = Verdict(
        "outlier survives", name, Outcome.PASSED, summary, measured=ratio, limit=limit, unit="x",
        detail=tuple((result.name, str(result)) for result in results),
        facts={"geometries": [
            {"name": result.name, "ratios": list(result.ratios.values()), "neighbours": result.errors} for result in results
        ]},
    )  # fmt: skip
    if not math.isfinite(ratio):
        return _not_finite_verdict(
            verdict, results, f"outlier {outlier} of {worst.name} {_damage_words(ratio, outlier.sigmas)}"
        )
    if not limit.holds(ratio):
        cause = f"outlier {outlier} of {worst.name} {_damage_words(ratio, outlier.sigmas)}"
        attempt = "scale each block by its largest value, or put the outlier back after rounding"
        return replace(verdict, outcome=Outcome.FAILED, cause=cause, attempt=attempt)
    for result in results:
        error, without = result.errors["matrix"]
        applies = result.weights >= ROWS * COLUMNS or is_given(others)
        if applies and not others.holds(error) and others.holds(without):
            cause = f"outliers of {result.name} ruin all of their matrix ({error:.1%} off, {without:.1%} without them)"
            attempt = "scale rows or groups on their own, or clip the outlier before rounding and put it back"
            failed = replace(verdict, measured=error, limit=others, unit="relative error")
            return replace(failed, outcome=Outcome.FAILED, cause=cause, attempt=attempt)
    if not price.holds(costliest.price):
        cause = (
            f"outlier of {costliest.name} ruins its block ({block_error:.1%} off, {block_error_without:.1%} without it)"
        )
        attempt = "clip the outlier before rounding and put it back, or use smaller groups"
        failed = replace(verdict, measured=costliest.price, limit=price, unit="relative error")
        return replace(failed, outcome=Outcome.FAILED, cause=cause, attempt=attempt)
    return verdict


def _not_finite_verdict(verdict: Verdict, results: Sequence[_GeometryResult], cause: str) -> Verdict:
    """Return the failed verdict for NaN or infinity: it names the matrices, without a table of them."""
    bad = [result.name for result in results if not all(math.isfinite(ratio) for ratio in result.ratios.values())]
    summary = f"NaN or infinity comes back for {len(bad)} of {len(results)} matrices: {', '.join(bad)}"
    attempt = "look for a scale that is 0, or a division by it"
    return replace(verdict, outcome=Outcome.FAILED, summary=summary, cause=cause, attempt=attempt, detail=())


def _damage_words(ratio: float, sigmas: float) -> str:
    """Say what happened to an outlier. It counts as zeroed if no more of it is left than an ordinary weight."""
    if not math.isfinite(ratio):
        return "is not finite"
    if abs(ratio * sigmas) < 1:
        return f"is zeroed ({_ratio_text(ratio)})"
    if ratio < 0:
        return f"has its sign flipped ({_ratio_text(ratio)})"
    return f"is {'clipped' if ratio < 1 else 'amplified'} ({_ratio_text(ratio)})"


def _distance_from_one(ratio: float) -> float:
    """Return how far a ratio is from 1, either way; ratios that differ only in the fourth digit are equal."""
    return round(abs(math.log(ratio)), 3) if 0 < ratio < math.inf else math.inf


def _ratio_text(ratio: float) -> str:
    return f"x{round(ratio, 3) + 0.0:.3f}"


class _QuantizedMap(nn.Module):
    """The map that ``quantize`` returned, called with the dtype and on the device of its own tensors."""

    def __init__(self, function: Callable[[torch.Tensor], Any], asked: str, rows: int) -> None:
        super().__init__()
        self.function, self.asked, self.rows = function, asked, rows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        floats = (t for t in (*self.parameters(), *self.buffers()) if t.is_floating_point() and t.element_size() > 1)
        output = self.function(x.to(next(floats, x)))
        output = output[0] if isinstance(output, tuple) else output
        if not isinstance(output, torch.Tensor) or output.shape != (len(x), self.rows):
            raise OptionError(
                self.asked, f"its map gives {_type_and_shape(output)} for x {tuple(x.shape)}", f"(B, {self.rows})"
            )
        return output.detach().dequantize().float().cpu()


def _quantized_map(quantize: Callable[[torch.Tensor], Any], weight: torch.Tensor) -> nn.Module:
    """Return what ``quantize`` makes of ``weight`` as a linear map: a plain layer if it returns a tensor."""
    copy = weight.clone()
    result, asked = quantize(copy), f"quantize = {_quantizer_name(quantize)}"
    if not torch.equal(copy, weight):
        raise OptionError(asked, "it wrote into the weight it was given", "let it work on weight.clone()")
    if isinstance(result, torch.Tensor):
        if result.shape != weight.shape or not (result.is_floating_point() or result.is_quantized):
            raise OptionError(
                asked, f"it returned {_type_and_shape(result)}", f"dequantized values {tuple(weight.shape)}"
            )
        return _linear_layer(result.detach().dequantize().float().cpu())
    if not callable(result):
        raise OptionError(
            asked, f"it returned {_type_and_shape(result)}", "a tensor, a module, or a function of x (B, F)"
        )
    return _QuantizedMap(result, asked, len(weight))


def _linear_layer(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def _matrix_of(module: nn.Module, like: torch.Tensor) -> torch.Tensor:
    """Return the matrix ``(H, F)`` of a linear map: its plain weight, else probed with one input channel at a time."""
    weight = plain_weight(module)
    if weight is not None:
        return weight
    with torch.no_grad():
        out: torch.Tensor = module(torch.eye(like.shape[1] + 1, like.shape[1], dtype=torch.float32))
    return (out[:-1] - out[-1]).T


def _quantizer_name(quantize: Callable[[torch.Tensor], Any]) -> str:
    function = getattr(quantize, "func", quantize)  # of a functools.partial
    return str(getattr(function, "__name__", type(function).__name__))


def _type_and_shape(thing: Any) -> str:
    return f"{thing.dtype} {tuple(thing.shape)}" if isinstance(thing, torch.Tensor) else type(thing).__name__
