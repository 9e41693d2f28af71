"""Damaged and harmless copies of tiny, for tests: each edits the super weight's matrix, float32 ``(256, 512)``, in place."""

from __future__ import annotations

import copy

import torch

from swcheck import Loaded, SuperWeight

ROW, COLUMN = 97, 301
WEIGHT = SuperWeight(1, ROW, COLUMN)


def zero(matrix):
    matrix[ROW, COLUMN] = 0


def halve(matrix):
    matrix[ROW, COLUMN] *= 0.5


def move(matrix):
    matrix[ROW, 17] = matrix[ROW, COLUMN].clone()
    matrix[ROW, COLUMN] = 0


def flip(matrix):
    matrix[ROW, COLUMN] *= -1


def amplify(matrix):
    matrix[ROW, COLUMN] *= 3


def round_away(matrix):
    """A grid so coarse that the super weight rounds to nothing."""
    matrix.copy_((matrix / 8).round() * 8)


def clip(matrix):
    """Four bits on a grid fitted to all but the largest thousandth: the outlier is clipped."""
    step = matrix.abs().flatten().kthvalue(int(matrix.numel() * 0.999)).values / 7
    matrix.copy_((matrix / step).round().clamp(-7, 7) * step)


def poison(matrix):
    matrix[3, 3] = float("nan")


def round_next_largest(matrix):
    """The 1,000 next-largest weights rounded to 8 bits, symmetric, one scale: harmless."""
    flat = matrix.view(-1)
    places = flat.abs().topk(1001).indices[1:]
    step = flat[places].abs().max() / 127
    flat[places] = (flat[places] / step).round() * step


def damaged(loaded: Loaded, edit) -> Loaded:
    """A copy of ``loaded`` with ``edit`` done to layer 1's down projection."""
    model = copy.deepcopy(loaded.model)
    with torch.no_grad():
        edit(model.model.layers[1].mlp.down_proj.weight)
    return Loaded(model, loaded.tokenizer, edit.__name__, loaded.text)
