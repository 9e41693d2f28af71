"""The outliers of published down projections, placed in synthetic matrices."""

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
"""The input of an outlier without a published one; the published inputs range from 176 to 1390."""


@dataclass(frozen=True)
class Outlier:
    """One huge weight: its place, its signed size in standard deviations of the other weights, and its input."""

    row: int
    column: int
    sigmas: float
    spike: float = SPIKE

    def __str__(self) -> str:
        return f"[{self.row}, {self.column}] ({self.sigmas:+.3g} sigma)"


@dataclass(frozen=True)
class Geometry:
    """The outliers of one matrix ``(rows, columns)``, under the name of the model that they are taken from.

    ``source`` holds keys of ``swcheck.loading.published_index.sources()``. ``spread`` is the standard deviation of the
    other weights. Raises ``OptionError`` for outliers that nothing could be measured on.
    """

    name: str
    outliers: tuple[Outlier, ...]
    source: str = ""
    rows: int = ROWS
    columns: int = COLUMNS
    spread: float = SPREAD

    def __post_init__(self) -> None:
        places = {(outlier.row, outlier.column) for outlier in self.outliers}
        inputs = {(outlier.column, outlier.spike) for outlier in self.outliers}
        sizes = [size for outlier in self.outliers for size in (outlier.sigmas, outlier.spike)]
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
        """Draw the matrix without and with outliers, float32 ``(H, F)``, and the input they meet, float32 ``(F,)``."""
        generator = torch.Generator().manual_seed(seed)
        ordinary = torch.randn(self.rows, self.columns, generator=generator, dtype=torch.float32) * self.spread
        x, weight = torch.randn(self.columns, generator=generator, dtype=torch.float32), ordinary.clone()
        for outlier in self.outliers:
            weight[outlier.row, outlier.column], x[outlier.column] = outlier.sigmas * self.spread, outlier.spike
        return ordinary, weight, x


def _published(name: str, source: str, *columns: tuple[int, float, dict[int, float]]) -> Geometry:
    """Return a geometry from (column, its input, values by row), all as published."""
    outliers = (
        Outlier(row % ROWS, column % COLUMNS, value / SPREAD, spike)
        for column, spike, values in columns
        for row, value in values.items()
    )
    return Geometry(name, tuple(outliers), source)


def _ladder_step(sigmas: float) -> Geometry:
    """Return outliers of one size: in two corners, in the middle of a group, and on both sides of a group border."""
    places = ((0, 0, 1), (64, 255, -1), (64, 256, 1), (128, 320, -1), (255, 511, 1))
    outliers = (Outlier(row, column, sign * sigmas) for row, column, sign in places)
    return Geometry(f"{sigmas:g}-sigma rung", tuple(outliers))


GEOMETRIES: Final = (
    _published("Llama-7B layer 2", "PAPER CODE ARCTOS", (7003, -560.5, {3968: -1.9268})),
    # the second input is computed from the published output, -1754, and the first product
    _published("Llama-13B layer 2", "PAPER ARCTOS", (2278, 570.5, {2231: -1.8223}), (6939, -395.4, {2231: 1.8066})),
    _published("Llama-2-7B layer 1", "PAPER FABIAN", (7890, 1390.0, {2533: 1.5625, 1415: -0.921875})),
    _published("Llama-3.1-8B layer 1", "FABIAN", (2427, -443.5, {788: -0.6055, 1384: 0.5547, 4062: 0.5508})),
    _published("Mistral-7B layer 1", "PAPER FABIAN", (7310, 950.0, {2070: -0.2734375})),
    _published("OLMo-1B layer 1", "PAPER ARCTOS FABIAN", (1710, -401.5, {1764: 0.6323})),
    _published("OLMo-7B layer 1", "PAPER ARCTOS FABIAN", (7467, 176.0, {269: 1.3145})),
    _published("Phi-3-mini layer 2", "PAPER FABIAN", (808, 540.5, {525: -2.921875, 1693: 1.71875, 1113: -1.734375})),
    _published("Phi-3-mini layer 4", "PAPER FABIAN", (2723, 593.5, {525: -2.578125, 1693: 1.609375, 1113: -1.671875})),
    *(_ladder_step(sigmas) for sigmas in (10.0, 30.0, 100.0, 300.0)),
)
