"""The outliers of published down projections, as synthetic matrices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch

from swcheck.base.errors import OptionError

ROWS: Final = 256


COLUMNS: Final = 512


SPREAD: Final = 0.02
"""The standard deviation of ordinary weights."""


SPIKE: Final = 500.0
"""The input of an outlier for which none is published; those that are run from 176 to 1390."""


@dataclass(frozen=True)
class Outlier:
    """One huge weight: its place, its signed size in standard deviations of the others, and the input it meets."""

    row: int
    column: int
    sigmas: float
    spike: float = SPIKE

    def __str__(self) -> str:
        return f"[{self.row}, {self.column}] ({self.sigmas:+.3g} sigma)"


@dataclass(frozen=True)
class Geometry:
    """The outliers of one matrix ``(rows, columns)``, under the name of the model they are taken from.

    ``source`` holds keys of ``swcheck.loading.published_index.sources()``; ``spread`` is the standard deviation of the other weights.
    Raises ``OptionError`` for outliers on which nothing could be measured.
    """

    name: str
    outliers: tuple[Outlier, ...]
    source: str = ""
    rows: int = ROWS
    columns: int = COLUMNS
    spread: float = SPREAD

    def __post_init__(self) -> None:
        places = {(one.row, one.column) for one in self.outliers}
        inputs = {(one.column, one.spike) for one in self.outliers}
        sizes = [size for one in self.outliers for size in (one.sigmas, one.spike)]
        for wrong, found in (
            (not places, "no outlier"),
            (any(not (0 <= r < self.rows and 0 <= c < self.columns) for r, c in places), "an outlier outside"),
            (len(places) < len(self.outliers), "two outliers at one place"),
            (len({column for column, _ in inputs}) < len(inputs), "two spikes in one column"),
            (not all(1 <= abs(size) < math.inf for size in sizes), "a size or a spike under 1, or not finite"),
            (not 0 < self.spread < math.inf, f"a spread of {self.spread}"),
        ):
            if wrong:
                asked = f"geometry {self.name!r}, {self.rows} x {self.columns}"
                raise OptionError(asked, found, "for example outliers=(Outlier(row=3, column=17, sigmas=-100),)")

    def draw(self, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The matrix without outliers and with them, float32 ``(H, F)``, and the input that meets them ``(F,)``."""
        chance = torch.Generator().manual_seed(seed)
        ordinary = torch.randn(self.rows, self.columns, generator=chance, dtype=torch.float32) * self.spread
        x, weight = torch.randn(self.columns, generator=chance, dtype=torch.float32), ordinary.clone()
        for one in self.outliers:
            weight[one.row, one.column], x[one.column] = one.sigmas * self.spread, one.spike
        return ordinary, weight, x


def _published(name: str, source: str, *columns: tuple[int, float, dict[int, float]]) -> Geometry:
    """A geometry from (column, its input, values by row), all as published."""
    outliers = (
        Outlier(row % ROWS, column % COLUMNS, value / SPREAD, spike)
        for column, spike, values in columns
        for row, value in values.items()
    )
    return Geometry(name, tuple(outliers), source)


def _rung(sigmas: float) -> Geometry:
    """Outliers of one size in two corners, in the middle of a group, and on both sides of the border of two groups."""
    places = ((0, 0, 1), (64, 255, -1), (64, 256, 1), (128, 320, -1), (255, 511, 1))
    outliers = (Outlier(row, column, sign * sigmas) for row, column, sign in places)
    return Geometry(f"{sigmas:g}-sigma rung", tuple(outliers))


GEOMETRIES: Final = (
    _published("Llama-7B layer 2", "PAPER CODE ARCTOS", (7003, -560.5, {3968: -1.9268})),
    # the second input is what the published output, -1754, leaves for it
    _published("Llama-13B layer 2", "PAPER ARCTOS", (2278, 570.5, {2231: -1.8223}), (6939, -395.4, {2231: 1.8066})),
    _published("Llama-2-7B layer 1", "PAPER FABIAN", (7890, 1390.0, {2533: 1.5625, 1415: -0.921875})),
    _published("Llama-3.1-8B layer 1", "FABIAN", (2427, -443.5, {788: -0.6055, 1384: 0.5547, 4062: 0.5508})),
    _published("Mistral-7B layer 1", "PAPER FABIAN", (7310, 950.0, {2070: -0.2734375})),
    _published("OLMo-1B layer 1", "PAPER ARCTOS FABIAN", (1710, -401.5, {1764: 0.6323})),
    _published("OLMo-7B layer 1", "PAPER ARCTOS FABIAN", (7467, 176.0, {269: 1.3145})),
    _published("Phi-3-mini layer 2", "PAPER FABIAN", (808, 540.5, {525: -2.921875, 1693: 1.71875, 1113: -1.734375})),
    _published("Phi-3-mini layer 4", "PAPER FABIAN", (2723, 593.5, {525: -2.578125, 1693: 1.609375, 1113: -1.671875})),
    *(_rung(sigmas) for sigmas in (10.0, 30.0, 100.0, 300.0)),
)
