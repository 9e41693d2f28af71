"""``--swcheck-dtype``: the numbers the weights are loaded in."""

from __future__ import annotations

import pytest

from tests.plugin import refused


@pytest.mark.parametrize("name", ["float7", "int8", "torch.float32", ""])
def test_a_dtype_that_models_are_not_loaded_in(inner, name):
    """Another word than the three known ones is a usage error."""
    refused(inner("--model=tiny", f"--swcheck-dtype={name}"), "dtype")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_the_model_has_it(inner, pytester, micro, name):
    """The model under test has the dtype that was asked for."""
    pytester.makepyfile(f"def test_it(swcheck_model): assert str(swcheck_model.model.dtype) == 'torch.{name}'")
    inner(f"--model={micro}", f"--swcheck-dtype={name}", "test_the_model_has_it.py").assert_outcomes(passed=1)
