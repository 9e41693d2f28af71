"""Marks of tests that the oldest supported versions, or newer ones than were tried in whole, cannot pass."""

from __future__ import annotations

import pytest
import transformers

VERSION = tuple(map(int, transformers.__version__.split(".")[:2]))

RECENT = pytest.mark.skipif(
    VERSION < (5, 17),
    reason="this transformers lacks the model type, builds it otherwise, or says the error in other words",
)

NOT_NEWER = pytest.mark.skipif(
    VERSION >= (5, 24),
    reason="this transformers builds the model otherwise, or its tokenizers reads what an older one could not",
)
