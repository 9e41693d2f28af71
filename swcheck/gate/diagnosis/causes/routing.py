"""The cause: a router chooses other experts than the reference's. Proven by giving the reference's routing back."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from swcheck.gate.diagnosis.evidence.damaged_candidate import PROVEN, DamagedCandidate
from swcheck.gate.diagnosis.evidence.finding import Detail, Finding, not_known, ruled_out
from swcheck.gate.diagnosis.evidence.reference_matrices import reference_parameter
from swcheck.gate.diagnosis.evidence.tensor_change import tensor_change
from swcheck.lens.replace import parameters_replaced
from swcheck.lens.routing import routed_modules, routing_replaced, share_of_other_experts
from swcheck.superweights.measurements.contributions import routing_on

if TYPE_CHECKING:
    from torch import nn


def find(damaged: DamagedCandidate) -> Finding | Detail:
    """Compare the experts that each token goes to, and give the reference's routing back."""
    candidate, reference = damaged.candidate, damaged.reference
    if not routed_modules(candidate.anatomy):
        return ()
    ids = damaged.proven_on
    if not (reference.is_measurable or routing_on.knows(reference, ids)):
        return _weights_given_back(damaged)
    theirs = routing_on(reference, ids)
    ours = routing_on(candidate, ids)
    shares = {layer: share_of_other_experts(ours[layer][0], theirs[layer][0]) for layer in theirs if layer in ours}
    if not shares or not max(shares.values()):
        return ruled_out("a router (every token goes to the same experts)") if shares else ()
    worst = max(shares, key=lambda layer: shares[layer])
    found = f"{shares[worst]:.0%} of the tokens go to other experts in layer {worst}"
    share, words = damaged.recovered(lambda _model: routing_replaced(candidate.anatomy, theirs))
    if share >= PROVEN:
        proof = (("proof", f"the reference's routing given back through a hook: {words}"),)
        names = _routers(damaged, worst)
        return Finding(
            f"the router chooses other experts ({found})", proof, names, "leave the routers unquantized", kind="router"
        )
    return ruled_out(f"a router ({found}; the reference's routing given back: {words})")


def _weights_given_back(damaged: DamagedCandidate) -> Finding | Detail:
    """Give back the routers' weights from the reference's files, where the reference cannot be run."""
    body, wanted = damaged.candidate.anatomy, {}
    names = [name for layer in range(len(body.layers)) for name in _routers(damaged, layer)]
    for name in (f"{router}.weight" for router in names):
        ours, theirs = damaged.candidate.module.get_parameter(name), reference_parameter(damaged, name)
        if isinstance(theirs, str):
            return not_known(f"whether a router pays: {theirs}")
        if tensor_change(ours, theirs, match_rows=False) is not None:
            wanted[name] = theirs
    if not wanted:
        return ruled_out("a router (none of their weights differs)") if names else ()
    share, words = damaged.recovered(partial(parameters_replaced, values=wanted))
    if share < PROVEN:
        return ruled_out(f"a router (weights of {len(wanted)} differ; given back: {words})")
    proof = (("proof", f"the weights of {len(wanted)} routers given back: {words}"),)
    matrices = tuple(name.removesuffix(".weight") for name in wanted)
    cause = f"the router is another one ({matrices[0]}{f' and {len(wanted) - 1} more' * (len(wanted) > 1)})"
    return Finding(cause, proof, matrices, "leave the routers unquantized", kind="router")


def _routers(damaged: DamagedCandidate, layer: int) -> tuple[str, ...]:
    """Return the names of the modules of a layer that have an output for each expert."""
    body = damaged.candidate.anatomy
    experts = sum(down.index is not None for down in body.down_maps(layer))
    return tuple(
        f"{body.path}.{layer}.{path}"
        for path, module in body.layers[layer].named_modules()
        if _is_router(module, experts)
    )


def _is_router(module: nn.Module, experts: int) -> bool:
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    return weight is not None and weight.ndim == 2 and len(weight) == experts
