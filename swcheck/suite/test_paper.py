"""The claims of the paper, measured on this model. They take minutes, and run only with ``-m swcheck_paper``."""

from __future__ import annotations

import pytest

from swcheck.study.claims import assert_paper_claim

pytestmark = pytest.mark.swcheck_paper


@pytest.mark.swcheck("paper: prune")
def test_prune(swcheck_study_setup):
    """Zeroing the super weights costs far more than the largest others; restoring what they write helps (table 1)."""
    assert_paper_claim(swcheck_study_setup.subject, "prune", setup=swcheck_study_setup)


@pytest.mark.swcheck("paper: activations")
def test_activations(swcheck_study_setup):
    """The super activation persists, at one place for every prompt, and vanishes with its weights (figure 4)."""
    assert_paper_claim(swcheck_study_setup.subject, "activations", setup=swcheck_study_setup)


@pytest.mark.swcheck("paper: scaling")
def test_scaling(swcheck_study_setup):
    """Scaling the super weights by 0.75 to 2 does no harm (figure 6)."""
    assert_paper_claim(swcheck_study_setup.subject, "scaling", setup=swcheck_study_setup)


@pytest.mark.swcheck("paper: weights")
def test_weights(swcheck_study_setup):
    """Rounding in large blocks loses less if outliers are clipped and the super weights are kept (figure 7)."""
    assert_paper_claim(swcheck_study_setup.subject, "weights", setup=swcheck_study_setup)


@pytest.mark.swcheck("paper: where")
def test_where(swcheck_study_setup):
    """The weights that the model depends on most are in an early down projection, not in another map (section 3.1)."""
    assert_paper_claim(swcheck_study_setup.subject, "where", setup=swcheck_study_setup)


@pytest.mark.swcheck("paper: w8a8")
def test_w8a8(swcheck_study_setup):
    """Restoring the super activation recovers a part of the loss of quantized activations (tables 3 and 4)."""
    assert_paper_claim(swcheck_study_setup.subject, "w8a8", setup=swcheck_study_setup)
