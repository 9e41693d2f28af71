"""Hostile values for the readers of files, as hypothesis strategies."""

from __future__ import annotations

import copy
import math

from hypothesis import strategies as st

NUMBERS = st.sampled_from(
    [0, -1, 1, 2**31, 2**63 - 1, 2**63, -(2**63), 10**30, 0.5, -0.0, math.inf, -math.inf, math.nan]
)
TEXTS = st.sampled_from(["", ".", "..", "../x.safetensors", "/etc/passwd", "\x1b[31m", "a\0b", "x" * 5000, "Infinity"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | NUMBERS | st.text(max_size=8) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
"""Any JSON value, with those that parsers stumble over."""


@st.composite
def damaged(draw, whole):
    """A copy of the JSON value ``whole`` with one place in it replaced by any value, or left out."""
    document = copy.deepcopy(whole)
    holder, key = [document], 0
    while isinstance(holder[key], (dict, list)) and holder[key] and draw(st.integers(0, 9)):
        holder = holder[key]
        key = draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
    root = isinstance(holder, list) and holder == [document] and holder[0] is document
    if isinstance(holder, dict) and draw(st.booleans()):
        del holder[key]
        return document
    value = draw(VALUES)
    if root:
        return value
    holder[key] = value
    return document
