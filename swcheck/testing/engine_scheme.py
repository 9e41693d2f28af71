"""Checks of what an engine makes of one scheme."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch

from swcheck.base.errors import SwcheckError
from swcheck.base.isolation import captured_output
from swcheck.base.records import Loaded, Scheme, SuperWeight
from swcheck.lens.anatomy import anatomy, device_of
from swcheck.lens.intervene import scaled
from swcheck.lens.linear_maps import contributions, plain_weight
from swcheck.lens.observe import Sight
from swcheck.testing.engine_case import ACTIVATIONS_TOO, WEIGHT_ONLY, EngineCase, Reading, listed_layers, look_inside
from swcheck.testing.engine_checkpoint import state_fingerprint

if TYPE_CHECKING:
    from torch import nn


ALPHAS: Final = (0.0, 3.0)


def check_record(case: EngineCase, loaded: Any) -> Scheme:
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
    try:
        ours = anatomy(loaded.model)
    except SwcheckError as error:
        case.refuse("the anatomy of the reference", error.found, "return the transformers module, or a wrapper of it")
    theirs = anatomy(case.reference.model)
    found, wanted = ((len(body.layers), body.hidden, body.inner) for body in (ours, theirs))
    if found != wanted:
        words = "{} layers, widths {} and {}"
        case.refuse(f"the anatomy of the reference, {words.format(*wanted)}", words.format(*found), "quantize, no more")


def check_quantized(case: EngineCase, sight: Sight, scheme: Scheme, *, kept: Sequence[int] = ()) -> None:
    """Every down projection but those ``kept`` computes something else than the reference's would, unless the scheme
    changes nothing.
    """
    if scheme.weight_bits >= 16:
        return
    plain = anatomy(case.reference.model).down_projections
    looked = [layer for layer in sight.inputs if layer not in kept]
    skipped = [layer for layer in looked if _same_map(plain[layer], sight.inputs[layer], sight.outputs[layer])]
    if skipped:
        found = f"the quantizer skipped {listed_layers(skipped)}: what it writes is the reference's, to the bit"
        attempt = "widths that the group does not divide are a usual reason: another group, or an error instead"
        case.refuse(f"down projections of {scheme.weight_bits:g} bits", found, attempt)


def _same_map(plain: nn.Module, x: torch.Tensor, written: torch.Tensor) -> bool:
    """Whether the reference's map makes nine tenths of the same numbers from the same inputs."""
    weight = plain_weight(plain)
    if weight is None:
        return False
    exact = torch.nn.functional.linear(x.detach(), weight.to(x.dtype))
    slack = 1e-5 * exact.abs().clamp_min(1e-6) if x.dtype.itemsize > 2 else torch.zeros(())
    return float(((exact - written.detach()).abs() <= slack).float().mean()) > 0.9


def read_weight(
    case: EngineCase, loaded: Loaded, sight: Sight, weight: SuperWeight, scheme: Scheme, seconds: float
) -> Reading:
    """One scalar in three ways, which have to agree."""
    module = anatomy(loaded.model).down_projections[weight.layer]
    inputs = sight.inputs[weight.layer][0].detach()
    x = inputs[int(inputs[:, weight.column].float().abs().argmax())]
    size = float(x[weight.column])
    alone = torch.zeros_like(x)
    alone[weight.column] = x[weight.column]
    with captured_output():
        by_contribution = float(contributions(module, x, weight.row, [weight.column])[0]) / size
        by_probe = float(contributions(module, alone, weight.row, [weight.column])[0]) / size
        matrix = case.dequantize(module)
    own = None if matrix is None else float(matrix.detach()[weight.row, weight.column])
    tolerance = WEIGHT_ONLY if scheme.activation_bits >= 16 else ACTIVATIONS_TOO
    for way, value in {"one-hot": by_probe, "its own dequantization": own}.items():
        if value is not None and not abs(value - by_contribution) <= tolerance * abs(by_contribution):
            found = f"{by_contribution:+.5g} by contribution, {value:+.5g} by {way}"
            attempt = "say in Scheme.activation_bits if inputs are quantized; else one of the two reads something else"
            case.refuse(f"{weight} read alike to {tolerance:.1%}", found, attempt)
    return Reading(case.scheme, weight, size, by_contribution, by_probe, own, tolerance, "", seconds, scheme)


def check_scaled(case: EngineCase, model: nn.Module, reading: Reading, alpha: float, logits: torch.Tensor) -> None:
    """Inside the block the module writes alpha times the contribution in its row, and the same elsewhere."""
    weight, layer = reading.weight, reading.weight.layer
    sight, _ = look_inside(case, model)
    plain = sight.outputs[layer][0].float()
    token = int(sight.inputs[layer][0, :, weight.column].float().abs().argmax())
    with captured_output(), scaled(model, [weight], alpha):
        inside, changed = look_inside(case, model)
    written = inside.outputs[layer][0].float()
    share = reading.contribution * reading.input
    found, wanted = float(written[token, weight.row]), float(plain[token, weight.row]) + (alpha - 1) * share
    if not abs(found - wanted) <= reading.tolerance * max(abs(share), abs(wanted)):
        words = "an edit of the weight is ignored" if math.isclose(found, float(plain[token, weight.row])) else "wrong"
        attempt = "keep the module a black box: no plain nn.Linear whose weight is not what it computes with"
        case.refuse(f"{weight} times {alpha:g} writes {wanted:+.5g}", f"{found:+.5g}: {words}", attempt)
    written[:, weight.row] = plain[:, weight.row]
    if not torch.equal(written, plain):
        found_rows = (written != plain).any(0).nonzero().flatten().tolist()
        case.refuse(
            f"{weight} times {alpha:g} changes its row alone", f"rows {found_rows[:5]} change", "round row by row"
        )
    if torch.equal(changed, logits):
        case.refuse(f"{weight} times {alpha:g} is felt", "the logits are the same", "let the module's output be used")


def check_traces(case: EngineCase, model: nn.Module, before: Mapping[str, str], logits: torch.Tensor) -> None:
    after = state_fingerprint(model)
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    if changed:
        case.refuse(
            "no trace in the state dict", f"{len(changed)} tensors differ, first {changed[0]}", "copy, then write"
        )
    if not torch.equal(look_inside(case, model)[1], logits):
        case.refuse("the same logits after as before", "they differ", "let a pass depend on its input alone")
