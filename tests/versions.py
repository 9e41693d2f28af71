"""Marks of tests that the oldest supported versions cannot pass."""

from __future__ import annotations

import pytest
import transformers

RECENT = pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 17),
    reason="this transformers lacks the model type, builds it otherwise, or says the error in other words",
)
