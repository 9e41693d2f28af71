"""The paper (arXiv 2411.07191), executable on any model: each of its claims is a study that measures and draws it.

A study is a ``Chapter``: it measures a model in a ``Setup``, and its record is one flat list of measurements, from
which the table, the picture, the CSV file and the verdict are made. ``runner.measured`` takes one.
"""

from __future__ import annotations

from typing import Final

NAMES: Final = (
    "prune",
    "activations",
    "stopwords",
    "scaling",
    "weights",
    "w8a8",
    "where",
)  # fmt: skip
"""Every study, in the order of the paper: prune, activations, stopwords, scaling, weights, w8a8, where."""
