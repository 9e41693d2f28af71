"""The paper's claims on this model; they take minutes, and run only where the marker is asked for: -m swcheck_paper."""

from __future__ import annotations

import pytest

from swcheck.study.claims import assert_paper_claim

pytestmark = pytest.mark.swcheck_paper


@pytest.mark.swcheck("paper: prune")
def test_prune(swcheck_study_setup):
    """Zeroed the super weights cost far more than the other largest weights; what they write gives it back (table 1)."""
    assert_paper_claim(swcheck_study_setup.subject, "prune", setup=swcheck_study_setup)


@pytest.mark.swcheck("paper: activations")
def test_activations(swcheck_study_setup):
    """The super activation is carried on unchanged, in one place for every prompt, and goes with its weights (figure 4)."""
    assert_paper_claim(swcheck_study_setup.subject, "activations", setup=swcheck_study_setup)


@pytest.mark.swcheck("paper: scaling")
def test_scaling(swcheck_study_setup):
    """Scaled by 0.75 to 2 the super weights do no harm (figure 6)."""
    assert_paper_claim(swcheck_study_setup.subject, "scaling", setup=swcheck_study_setup)


@pytest.mark.swcheck("paper: weights")
def test_weights(swcheck_study_setup):
    """Rounded in large blocks, the model loses less where its outliers are clipped and its super weights kept (figure 7)."""
    assert_paper_claim(swcheck_study_setup.subject, "weights", setup=swcheck_study_setup)


@pytest.mark.swcheck("paper: where")
def test_where(swcheck_study_setup):
    """What the model hangs on most stands in a down projection of an early layer, not in any other map (section 3.1)."""
    assert_paper_claim(swcheck_study_setup.subject, "where", setup=swcheck_study_setup)


@pytest.mark.swcheck("paper: w8a8")
def test_w8a8(swcheck_study_setup):
    """What quantized activations cost returns in part where the super activation is restored (tables 3 and 4)."""
    assert_paper_claim(swcheck_study_setup.subject, "w8a8", setup=swcheck_study_setup)
