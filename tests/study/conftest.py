"""What the tests of the studies share: a setup of the embedded model on few windows, so that each study takes seconds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swcheck.study.common.setup import setup_of


@pytest.fixture(scope="session")
def tiny_setup(tiny):
    """The embedded model in the hands of the studies, on eight windows of 128 tokens."""
    setup = setup_of(tiny)
    return replace(setup, ids=setup.ids[:8, :128])


@pytest.fixture(scope="session")
def read_setup(tiny_setup):
    """The same setup with a scorer that counts, in place of the extra: two tasks, one of which falls when zeroed."""

    def scorer(model, tokenizer):
        del tokenizer
        weight = tiny_setup.weights[0]
        value = abs(model.model.layers[weight.layer].mlp.down_proj.weight[weight.row, weight.column].item())
        yield "cloze", min(0.9, 0.25 + value), 0.02
        yield "other", 0.5, 0.03

    return replace(tiny_setup, scorer=scorer, notes=[])
