"""Checks of what an engine makes of one scheme."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch

from swcheck.base.errors import SwcheckError
from swcheck.base.isolation import captured_output
from swcheck.base.records import Loaded, Scheme, SuperWeight
from swcheck.lens.architecture.anatomy import anatomy
from swcheck.lens.architecture.storage import device_of, plain_weight
from swcheck.lens.intervene import scaled
from swcheck.lens.linear_maps import contributions
from swcheck.lens.observe import Observation
from swcheck.testing.engine_case import ACTIVATIONS_TOO, WEIGHT_ONLY, EngineCase, Reading, listed_layers, look_inside
from swcheck.testing.engine_checkpoint import state_fingerprint

if TYPE_CHECKING:
    from torch import nn


ALPHAS: Final = (0.0, 3.0)
"""Factors that a super weight is scaled by."""


def check_record(case: EngineCase, loaded: Any) -> Scheme:
    """Check the ``Loaded`` that the engine returns, and return its scheme."""
    if not isinstance(loaded, Loaded):
        case.refuse("load() returns a swcheck.Loaded", type(loaded).__name__, "Loaded(model, tokenizer, name, ...)")
    if loaded.tokenizer is None or not loaded.name:
        found = "no tokenizer" if loaded.tokenizer is None else "no name"
        case.refuse("a tokenizer and a name", found, "Loaded(model, base.tokenizer, f'{self.name}:{spec}', ...)")
    if not isinstance(loaded.scheme, Scheme):
        case.refuse("how it is quantized", repr(loaded.scheme), "Loaded(..., scheme=Scheme('absmax', 8))")
    if loaded.model.training:
        case.refuse("a model in evaluation mode", "it is in training mode", "model.eval() before it is returned")
    device = device_of(loaded.model)
    if device.type != torch.device(case.device).type:
        case.refuse(f"a model on {case.device}", f"it is on {device}", "use the device that load() is given")
    return loaded.scheme


def check_anatomy(case: EngineCase, loaded: Loaded) -> None:
    """Check that the candidate has as many layers as the reference, and the same widths."""
    try:
        candidate_anatomy = anatomy(loaded.model)
    except SwcheckError as error:
        case.refuse("the anatomy of the reference", error.found, "return the transformers module, or a wrapper of it")
    reference_anatomy = anatomy(case.reference.model)
    found, wanted = ((len(body.layers), body.hidden, body.inner) for body in (candidate_anatomy, reference_anatomy))
    if found != wanted:
        words = "{} layers, widths {} and {}"
        case.refuse(f"the anatomy of the reference, {words.format(*wanted)}", words.format(*found), "quantize, no more")


def check_quantized(case: EngineCase, sight: Observation, scheme: Scheme, *, kept: Sequence[int] = ()) -> None:
    """Check that every down projection except layers ``kept`` computes something other than the reference's.

    A scheme of 16 or more bits may change nothing, so it is not checked.
    """
    if scheme.weight_bits >= 16:
        return
    reference_maps = anatomy(case.reference.model).down_projections
    observed = [layer for layer in sight.inputs if layer not in kept]
    unchanged = [
        layer
        for layer in observed
        if _computes_as_reference(reference_maps[layer], sight.inputs[layer], sight.outputs[layer])
    ]
    if unchanged:
        found = f"the quantizer skipped {listed_layers(unchanged)}: what it writes is the reference's, to the bit"
        attempt = "widths that the group does not divide are a usual reason: another group, or an error instead"
        case.refuse(f"down projections of {scheme.weight_bits:g} bits", found, attempt)


def _computes_as_reference(reference_map: nn.Module, x: torch.Tensor, written: torch.Tensor) -> bool:
    """Return whether the reference's map gives the same output for nine tenths of the entries, from the same input."""
    weight = plain_weight(reference_map)
    if weight is None:
        return False
    expected = torch.nn.functional.linear(x.detach(), weight.to(x.dtype))
    tolerance = 1e-5 * expected.abs().clamp_min(1e-6) if x.dtype.itemsize > 2 else torch.zeros(())
    return float(((expected - written.detach()).abs() <= tolerance).float().mean()) > 0.9


def read_weight(
    case: EngineCase, loaded: Loaded, sight: Observation, weight: SuperWeight, scheme: Scheme, seconds: float
) -> Reading:
    """Read one scalar in three ways, and check that they agree."""
    module = anatomy(loaded.model).down_projections[weight.layer]
    inputs = sight.inputs[weight.layer][0].detach()
    x = inputs[int(inputs[:, weight.column].float().abs().argmax())]
    input_value = float(x[weight.column])
    one_hot = torch.zeros_like(x)
    one_hot[weight.column] = x[weight.column]
    with captured_output():
        by_contribution = float(contributions(module, x, weight.row, [weight.column])[0]) / input_value
        by_probe = float(contributions(module, one_hot, weight.row, [weight.column])[0]) / input_value
        matrix = case.dequantize(module)
    reported = None if matrix is None else float(matrix.detach()[weight.row, weight.column])
    tolerance = WEIGHT_ONLY if scheme.activation_bits >= 16 else ACTIVATIONS_TOO
    for way, value in {"one-hot": by_probe, "its own dequantization": reported}.items():
        if value is not None and not abs(value - by_contribution) <= tolerance * abs(by_contribution):
            found = f"{by_contribution:+.5g} by contribution, {value:+.5g} by {way}"
            attempt = "say in Scheme.activation_bits if inputs are quantized; else one of the two reads something else"
            case.refuse(f"{weight} read alike to {tolerance:.1%}", found, attempt)
    return Reading(
        case.scheme, weight, input_value, by_contribution, by_probe, reported, tolerance, "", seconds, scheme
    )


def check_scaled(case: EngineCase, model: nn.Module, reading: Reading, alpha: float, logits: torch.Tensor) -> None:
    """Check that the scaled module writes alpha times the contribution in the weight's row, and the rest as before."""
    weight, layer = reading.weight, reading.weight.layer
    sight, _ = look_inside(case, model)
    unscaled = sight.outputs[layer][0].float()
    token = int(sight.inputs[layer][0, :, weight.column].float().abs().argmax())
    with captured_output(), scaled(model, [weight], alpha):
        scaled_sight, scaled_logits = look_inside(case, model)
    written = scaled_sight.outputs[layer][0].float()
    contribution = reading.contribution * reading.input
    found, expected = float(written[token, weight.row]), float(unscaled[token, weight.row]) + (alpha - 1) * contribution
    if not abs(found - expected) <= reading.tolerance * max(abs(contribution), abs(expected)):
        fault = (
            "an edit of the weight is ignored" if math.isclose(found, float(unscaled[token, weight.row])) else "wrong"
        )
        attempt = "keep the module a black box: no plain nn.Linear whose weight is not what it computes with"
        case.refuse(f"{weight} times {alpha:g} writes {expected:+.5g}", f"{found:+.5g}: {fault}", attempt)
    written[:, weight.row] = unscaled[:, weight.row]
    if not torch.equal(written, unscaled):
        found_rows = (written != unscaled).any(0).nonzero().flatten().tolist()
        case.refuse(
            f"{weight} times {alpha:g} changes its row alone", f"rows {found_rows[:5]} change", "round row by row"
        )
    if torch.equal(scaled_logits, logits):
        case.refuse(f"{weight} times {alpha:g} is felt", "the logits are the same", "let the module's output be used")


def check_traces(case: EngineCase, model: nn.Module, before: Mapping[str, str], logits: torch.Tensor) -> None:
    """Check that the observations left the state dict and the logits as they were."""
    after = state_fingerprint(model)
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    if changed:
        case.refuse(
            "no trace in the state dict", f"{len(changed)} tensors differ, first {changed[0]}", "copy, then write"
        )
    if not torch.equal(look_inside(case, model)[1], logits):
        case.refuse("the same logits after as before", "they differ", "let a pass depend on its input alone")
