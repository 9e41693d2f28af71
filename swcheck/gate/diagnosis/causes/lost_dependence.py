"""The cause: the candidate no longer depends on the super weights, though its perplexity is intact.

The constant that the super weights write then comes from other weights.
"""

from __future__ import annotations

from typing import Final

from swcheck.base.formatting import format_ratio
from swcheck.base.statistics import factor_of
from swcheck.gate.diagnosis.evidence.damaged_candidate import DamagedCandidate
from swcheck.gate.diagnosis.evidence.finding import Detail, Finding, ruled_out

HARMLESS: Final = 1.10
"""Up to this perplexity ratio, the limit of a plain 4-bit scheme, a loss does not explain a lost dependence."""


def find(damaged: DamagedCandidate) -> Finding | Detail:
    """Compare the intact perplexities, if the red check is that of dependence."""
    if damaged.share is None:
        return ()
    ratio = factor_of(damaged.candidate_nats - damaged.reference_nats)
    words = f"{damaged.share:.2f} of the reference's collapse, perplexity intact {format_ratio(ratio)}"
    if ratio <= HARMLESS:
        advice = "its constant may come from elsewhere: relocate in the candidate"
        return Finding(
            "the candidate does not hang on these weights any more", (("proof", words),), (), advice, kind="dependence"
        )
    return ruled_out(f"a constant from elsewhere ({words}: the intact model is worse already)")
