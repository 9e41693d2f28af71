"""Pictures of the HTML page as numbers that its template writes as SVG: points, ticks and bands inside a frame.

Nothing is drawn that a verdict does not hold. A picture needs no script, follows the colours of the page, and scales
with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from swcheck.base.formatting import format_number
from swcheck.base.records import Limit, Verdict
from swcheck.base.statistics import STANDARD_ERRORS

WIDTH, HEIGHT, STRIP = 420, 230, 110
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 10, 40
STEPS: Final = (1, 2, 2.5, 5, 10)
"""What the distance of two ticks may begin with."""

FLOOR, CEILING = 1e-3, 1e9
"""Ratios beyond these are drawn at them: a logarithmic axis has no zero, and no end."""


@dataclass(frozen=True)
class Tick:
    """A mark of an axis: where it stands in the picture, and its label."""

    at: float
    label: str


@dataclass(frozen=True)
class Picture:
    """A picture to be written as SVG; all coordinates are those of the picture, y downwards.

    ``lines`` are names with the points of a polyline, each part of a line that is interrupted alone. ``dots`` are (x, y).
    ``band`` is the allowed range (left, right) of a strip, ``error`` the ends of an error bar.
    """

    title: str
    x_name: str
    y_name: str
    height: int
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...] = ()
    lines: tuple[tuple[str, tuple[str, ...]], ...] = ()
    dots: tuple[tuple[float, float], ...] = ()
    band: tuple[float, float] | None = None
    error: tuple[float, float] | None = None
    caption: str = ""
    width: int = WIDTH
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP

    @property
    def bottom(self) -> int:
        """Where the frame ends below."""
        return self.height - BOTTOM


def pictures(verdicts: Sequence[Verdict]) -> list[Picture]:
    """Return the pictures of one model, or of one candidate: each curve once, and measured values beside limits."""
    curves = {record["title"]: record for verdict in verdicts for record in verdict.facts.get("curves", ())}
    drawn = [picture for record in curves.values() if (picture := line_picture(record)) is not None]
    return [*(strip for verdict in verdicts if (strip := limit_picture(verdict)) is not None), *drawn]


def line_picture(record: Mapping[str, Any]) -> Picture | None:
    """Return the picture of a curve record (``superweights.measurements.curves``); None without a finite point."""
    lines = {name: [float(value) for value in values] for name, values in record["lines"].items()}
    finite = [value for values in lines.values() for value in values if math.isfinite(value)]
    if not finite:
        return None
    y = _Axis.over([0.0, *finite], HEIGHT - BOTTOM, TOP)
    last = max(len(values) for values in lines.values()) - 1
    x = _Axis(0.0, float(max(1, last * record["step"])), LEFT, WIDTH - RIGHT)
    drawn = tuple((name, tuple(_parts(values, x, y, record["step"]))) for name, values in lines.items())
    return Picture(record["title"], record["x"], record["y"], HEIGHT, tuple(x.whole_ticks()), tuple(y.ticks()), drawn)


def _parts(values: Sequence[float], x: _Axis, y: _Axis, step: int) -> Iterator[str]:
    """Yield the points of a line in SVG's words, a new part after every value that is not finite."""
    part: list[str] = []
    for number, value in enumerate(values):
        if math.isfinite(value):
            part.append(f"{x.at(number * step):.1f},{y.at(value):.1f}")
        elif part:
            yield " ".join(part)
            part = []
    if part:
        yield " ".join(part)


def limit_picture(verdict: Verdict) -> Picture | None:
    """Return measured ratios beside their limit on a logarithmic axis: all prompts of a check, or one with its error."""
    limit, facts = verdict.limit, verdict.facts
    if verdict.unit != "x" or limit is None or verdict.measured is None or verdict.candidate is None:
        return None
    ratios = [float(ratio) for ratio in facts.get("ratios", (verdict.measured,))]
    finite = [_clamped(ratio) for ratio in ratios if math.isfinite(ratio)]
    bounds = [_clamped(end) for end in (limit.low, limit.high) if end is not None and math.isfinite(end)]
    if not finite or not bounds:
        return None
    deviation = STANDARD_ERRORS * float(facts.get("standard_error", 0.0))
    ends = [_clamped(finite[0] * math.exp(sign * deviation)) for sign in (-1, 1)] if 0 < deviation < 1 else []
    x = _LogAxis.over([1.0, *finite, *ends, *bounds], LEFT, WIDTH - RIGHT)
    middle = (TOP + STRIP - BOTTOM) / 2
    return Picture(
        f"{verdict.check.capitalize()}, times the reference's",
        _words(limit, len(ratios), len(finite), bool(ends)),
        "",
        STRIP,
        tuple(x.ticks()),
        dots=tuple((round(x.at(value), 1), middle) for value in finite),
        band=_band(limit, x),
        error=(round(x.at(ends[0]), 1), round(x.at(ends[1]), 1)) if ends else None,
        caption=f"worst prompt: {facts['worst_prompt']}" if facts.get("worst_prompt") else "",
    )


def _words(limit: Limit, count: int, finite: int, with_error: bool) -> str:
    words = f"allowed: {limit}"
    words += f", {count} measured" if count > 1 else ", the line is 3 standard errors" if with_error else ""
    return words + (f", {count - finite} not finite" if finite < count else "")


def _clamped(ratio: float) -> float:
    return min(max(FLOOR, ratio), CEILING)


def _band(limit: Limit, x: _LogAxis) -> tuple[float, float] | None:
    """Return the allowed range; None where it is empty, or an end of it is not a number."""
    left = x.start if limit.low is None or limit.low <= FLOOR else x.at(_clamped(limit.low))
    right = x.end if limit.high is None or limit.high >= CEILING else x.at(_clamped(limit.high))
    return (round(left, 1), round(right, 1)) if left <= right else None


@dataclass(frozen=True)
class _Axis:
    """A linear axis from ``low`` to ``high``, drawn from the coordinate ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> _Axis:
        low, high = min(values), max(values)
        step = _step((high - low) or abs(high) or 1.0)
        return cls(math.floor(low / step) * step, math.ceil(high / step) * step or step, start, end)

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> Iterator[Tick]:
        step = _step(self.high - self.low)
        count = round((self.high - self.low) / step)
        for number in range(count + 1):
            value = self.low + number * step
            yield Tick(round(self.at(value), 1), f"{0.0 if abs(value) < step / 1e6 else value:,.4g}")

    def whole_ticks(self) -> Iterator[Tick]:
        step = max(1, math.ceil(_step(self.high - self.low)))
        for value in range(0, math.floor(self.high) + 1, step):
            yield Tick(round(self.at(value), 1), f"{value:,}")


def _step(span: float) -> float:
    """Return a round distance of ticks that divides ``span`` into four parts or a few more."""
    power = 10.0 ** math.floor(math.log10(span / 4))
    return next(power * first for first in STEPS if power * first >= span / 5)


@dataclass(frozen=True)
class _LogAxis:
    """A logarithmic axis of ratios, with ticks at powers of ten, or at its ends and at 1 where it is short."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> _LogAxis:
        low, high = math.log(min(values)), math.log(max(values))
        room = max(0.02, 0.08 * (high - low))
        return cls(math.exp(low - room), math.exp(high + room), start, end)

    def at(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> Iterator[Tick]:
        if self.high / self.low > 100:
            each = max(1, math.ceil(math.log10(self.high / self.low) / 6))
            powers = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            values = [10.0**power for power in powers if power % each == 0]
        else:
            step = _step(self.high - self.low)
            first = math.ceil(self.low / step)
            values = [step * number for number in range(first, math.floor(self.high / step) + 1) if number]
        for value in values:
            yield Tick(round(self.at(value), 1), "x1" if value == 1 else _ratio_label(value))


def _ratio_label(value: float) -> str:
    words = format_number(value, "x")
    return words.rstrip("0").rstrip(".") if "." in words else words
