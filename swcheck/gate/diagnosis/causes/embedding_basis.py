"""The cause: the embedding is in another basis than the layers. Proven by replacing it with the reference's."""

from __future__ import annotations

from functools import partial

from swcheck.gate.diagnosis.evidence.damaged_candidate import PROVEN, DamagedCandidate
from swcheck.gate.diagnosis.evidence.finding import Detail, Finding, not_known, ruled_out
from swcheck.gate.diagnosis.evidence.reference_matrices import reference_embedding
from swcheck.lens.replace import embedding_replaced


def find(damaged: DamagedCandidate) -> Finding | Detail:
    """Replace the embedding with the reference's, if it is permuted or rotated."""
    kind = damaged.relation.kind
    if kind not in {"permuted", "rotated"}:
        return ()
    wanted = reference_embedding(damaged)
    if isinstance(wanted, str):
        return not_known(f"whether only its embedding is {kind}: {wanted}")
    share, words = damaged.recovered(partial(embedding_replaced, wanted=wanted))
    if share >= PROVEN:
        proof = (("proof", f"the reference's embedding given back through a hook: {words}"),)
        advice = "permute or rotate the layers as well, or leave the embedding as it was"
        return Finding(f"basis: the embedding is {kind}, the layers behind it are not", proof, (), advice, kind="basis")
    return ruled_out(f"a {kind} embedding before other layers (the reference's given back: {words})")
