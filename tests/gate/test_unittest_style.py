"""As another project's suite would use it: ``unittest``, the public assertions, and nothing else of this package's tests.

Runs with ``python -m unittest`` as well.
"""

# ruff: noqa: PT009, PT027 - unittest is what this file is about
from __future__ import annotations

import unittest

import pytest
import torch

from swcheck import assert_outlier_survives, assert_super_weights_preserved, load


def int8(weight):
    """The quantizer under test: one scale per output channel."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scale).round() * scale


def clipped(weight):
    """The same with a bug: the scale is fitted to the bulk."""
    scale = weight.std() * 4 / 127
    return (weight / scale).round().clamp(-127, 127) * scale


class TestQuantizer(unittest.TestCase):
    """Tests of a quantizer, without a model."""

    def test_keeps_super_weights(self):
        """A verdict comes back, with the numbers to log or to hold against something tighter."""
        verdict = assert_outlier_survives(int8)
        self.assertAlmostEqual(verdict.measured, 1.0, delta=0.01)

    def test_a_bug_is_a_failure(self):
        """A lost super weight is an ``AssertionError``: a failure of the test, where an error would be somebody's crash."""
        with self.assertRaisesRegex(self.failureException, "outlier .* is clipped"):
            assert_outlier_survives(clipped)

    def test_a_wrong_call_is_an_error(self):
        """A call that makes no sense is a ``ValueError`` and no failure."""
        with self.assertRaisesRegex(ValueError, "it cannot be called"):
            assert_outlier_survives("int8")


class TestModel(unittest.TestCase):
    """Tests of a candidate against its reference."""

    @classmethod
    def setUpClass(cls):
        cls.reference, cls.candidate = load("tiny", device="cpu"), load("tiny", device="cpu")

    def quantize(self, quantizer):
        """All down projections of the candidate, made anew from those of the reference."""
        layers = zip(self.reference.model.model.layers, self.candidate.model.model.layers, strict=True)
        with torch.no_grad():
            for published, own in layers:
                own.mlp.down_proj.weight.copy_(quantizer(published.mlp.down_proj.weight))

    def test_quantized(self):
        """The quantizer that passed alone passes in the model."""
        self.quantize(int8)
        self.assertGreater(assert_super_weights_preserved(self.candidate, self.reference).measured, 0.99)

    @pytest.mark.slow
    def test_damaged(self):
        """The one that failed alone fails in the model, with the same cause and the verdict on the exception."""
        self.quantize(clipped)
        with self.assertRaises(AssertionError) as caught:
            assert_super_weights_preserved(self.candidate, self.reference)
        self.assertIn("clipped", str(caught.exception).splitlines()[0])
        self.assertLess(caught.exception.verdict.measured, 0.75)

    def test_one_failure_does_not_hide_the_next(self):
        """Under ``subTest`` each quantizer fails or passes for itself, as any assertion does; the result counts them."""

        def run(case):
            for quantizer in (int8, clipped):
                with case.subTest(quantizer.__name__):
                    assert_outlier_survives(quantizer)

        case = type("Inner", (unittest.TestCase,), {"runTest": run})()
        result = case.run(unittest.TestResult())
        self.assertEqual((len(result.failures), len(result.errors)), (1, 0))


if __name__ == "__main__":
    unittest.main()
