"""Reads the reference's own tensors, which replace the candidate's: from its module, or from its files.

If the reference is not in memory, a matrix is read from its files each time it is needed and freed afterwards, so that
several of them are never in memory beside the candidate. A tensor from a file is used only if it gives the responses
that were measured of the reference.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.func import functional_call

from swcheck.gate.relation.linear_maps import why_responses_unknown
from swcheck.lens.architecture.storage import device_of, first_tensor, is_plain, plain_weight
from swcheck.lens.map_responses import gives_response
from swcheck.lens.routing import routed_modules
from swcheck.loading.parallel.shards import whole
from swcheck.superweights.measurements.ablation import embedded_starts, window_starts
from swcheck.superweights.measurements.configuration import configuration
from swcheck.superweights.measurements.contributions import largest_input_columns, routing_on, sink_tokens
from swcheck.superweights.measurements.inputs import prompt_ids
from swcheck.superweights.measurements.located import located
from swcheck.superweights.measurements.model_sample import embedding_of, model_sample
from swcheck.superweights.measurements.residual_stream import activation_profile, residual_sketch, super_activations
from swcheck.superweights.measurements.weights import down_matrix, map_responses, matrix_row, stored_tensor

if TYPE_CHECKING:
    from torch import nn

    from swcheck.gate.diagnosis.evidence.damaged_candidate import DamagedCandidate
    from swcheck.lens.architecture.anatomy import Expert
    from swcheck.lens.replace import Matrix
    from swcheck.superweights.subject.subject import Subject

ROUNDED: Final = 0.01
"""Two tensors are the same weights if their difference has at most this share of the norm; bfloat16 rounds to 0.4 %."""


ADAPTER_PREFIX: Final = "base_model.model."
"""The prefix that an adapter's wrapper (PEFT) puts before every module name."""


def measure_for_diagnosis(reference: Subject) -> None:
    """Measure what the diagnosis of a red candidate needs, while the reference's weights are in memory."""
    prompt = prompt_ids(reference)
    residual_sketch(reference, prompt)
    map_responses(reference)
    configuration(reference)
    embedded_starts(reference)
    if routed_modules(reference.anatomy):
        routing_on(reference, window_starts(reference))
    weights = located(reference).super_weights
    for place in super_activations(reference, weights) if weights else ():
        activation_profile(reference, place, prompt)
    for weight, sink in zip(weights, sink_tokens(reference, weights, prompt) if weights else (), strict=True):
        matrix_row(reference, weight)
        down_matrix(reference, weight.layer, weight.expert)
        largest_input_columns(reference, weight, prompt, sink)


def reference_matrix(candidate: Subject, reference: Subject, name: str) -> Matrix | str:
    """Return the plain weight ``(H, F)`` of the map called ``name`` in the candidate, or words why there is none."""
    inner = name.removeprefix(f"{candidate.anatomy.path}.")
    if reference.held.in_memory:
        found = matrix_in_memory(reference, inner)
        if isinstance(found, str) or _is_of_its_size(found, candidate.module.get_submodule(name)):
            return found
        return f"the reference's layers.{inner} is {' x '.join(map(str, found.shape))}"
    weight = stored_tensor(reference, f"{name}.weight", candidate.module)
    if isinstance(weight, str):
        return weight
    if why_responses_unknown(reference):  # its responses are not known: a plain matrix of this size is accepted
        sizes = map_sizes(candidate.module.get_submodule(name))
        fits, other = weight.is_floating_point() and tuple(weight.shape) == sizes, "keep it packed"
    else:
        bias = stored_tensor(reference, f"{name}.bias")
        fits = gives_response(weight, None if isinstance(bias, str) else bias, inner, map_responses(reference))
        fits = fits and _is_of_its_size(weight, candidate.module.get_submodule(name))
        other = "hold another matrix than was measured, or keep it packed"
    return partial(_read_stored, reference, name, candidate.module) if fits else f"the reference's files {other}"


def reference_down_matrix(damaged: DamagedCandidate, key: tuple[int, Expert], name: str) -> Matrix | str:
    """Return the reference's down projection ``(H, F)`` of a layer and expert, or words why not.

    ``name`` is its name in the candidate.
    """
    reference = damaged.reference
    if reference.held.in_memory or down_matrix.knows(reference, *key):
        matrix = down_matrix(reference, *key)
        return "the reference keeps it packed" if matrix is None else matrix
    return why_responses_unknown(reference) or reference_matrix(damaged.candidate, reference, name)


def matrix_in_memory(reference: Subject, inner: str) -> torch.Tensor | str:
    """Return the plain weight ``(H, F)`` of the reference's map ``inner`` (``1.mlp.down_proj``), or words why not."""
    (layer, _, path), layers = inner.partition("."), reference.anatomy.layers
    try:
        module = layers[int(layer)].get_submodule(path)
    except (AttributeError, IndexError, ValueError):
        return f"the reference has no layers.{inner}"
    weight = plain_weight(module)
    if weight is None and any(parameter.ndim == 3 for parameter in module.parameters(recurse=False)):
        return f"layers.{inner} has all experts in one parameter"
    return f"the reference keeps layers.{inner} packed" if weight is None else weight


def other_parameters(subject: Subject) -> dict[str, torch.Tensor]:
    """Return the plain float vectors of the decoder layers, and the vectors and matrices outside of them."""
    layers = f"{subject.anatomy.path}."
    return {
        name: whole(parameter.data)
        for name, parameter in subject.module.named_parameters()
        if is_plain(parameter) and (parameter.ndim == 1 or (parameter.ndim == 2 and not name.startswith(layers)))
    }


def expert_stacks(subject: Subject) -> dict[str, torch.Tensor]:
    """Return the plain float parameters that hold a matrix of every expert of a layer.

    They are ``(E, ., .)``, or have the matrices below each other.
    """
    body = subject.anatomy
    return {
        f"{body.path}.{layer}.{place.path}.{name}": parameter.data
        for layer, places in enumerate(body.structure.places)
        for place in places
        if place.parameter is not None
        for name, parameter in body.layers[layer].get_submodule(place.path).named_parameters(recurse=False)
        if parameter.ndim == (3 if place.rows is None else 2) and is_plain(parameter)
    }


def experts_apart(subject: Subject, name: str, stack: torch.Tensor) -> torch.Tensor:
    """Return a parameter of ``expert_stacks``, or the reference's, as ``(E, ., .)``; a view."""
    layer, _, inner = name.removeprefix(f"{subject.anatomy.path}.").partition(".")
    places = subject.anatomy.structure.places[int(layer)]
    rows = next((one.rows for one in places if one.path == inner.rpartition(".")[0]), None)
    return stack if rows is None else stack.view(-1, rows, stack.shape[1])


def reference_parameter(damaged: DamagedCandidate, name: str) -> torch.Tensor | str:
    """Return the reference's parameter that the candidate calls ``name``, or words why it is not known."""
    reference, plain = damaged.reference, name.removeprefix(ADAPTER_PREFIX)
    if reference.held.in_memory:
        found = dict(reference.module.named_parameters(remove_duplicate=False)).get(plain)
        return f"the reference has no {plain}" if found is None or not is_plain(found) else whole(found.data)
    return stored_tensor(reference, plain, damaged.candidate.module)


def reference_parameters_of_layer(damaged: DamagedCandidate, layer: int) -> dict[str, torch.Tensor]:
    """Return the reference's norms, biases, expert stacks of a layer, by their names in the candidate."""
    start, subject = f"{damaged.candidate.anatomy.path}.{layer}.", damaged.candidate
    names = [name for name in (*other_parameters(subject), *expert_stacks(subject)) if name.startswith(start)]
    found = {name: reference_parameter(damaged, name) for name in names}
    return {name: value for name, value in found.items() if not isinstance(value, str)}


def map_sizes(module: Any) -> tuple[int, ...]:
    """Return the output and input width of a linear map, 0 if unknown (AutoRound calls them ``outfeatures``)."""
    return tuple(
        int(getattr(module, f"{side}_features", getattr(module, f"{side}features", 0))) for side in ("out", "in")
    )


def _is_of_its_size(weight: torch.Tensor, module: nn.Module) -> bool:
    """Return whether a linear map has the size of ``weight``, so that it can take its place; True if it is not told."""
    own, sizes = plain_weight(module), map_sizes(module)
    return tuple(weight.shape) == (sizes if own is None else tuple(own.shape)) or (own is None and 0 in sizes)


def _read_stored(reference: Subject, name: str, model: nn.Module) -> torch.Tensor:
    weight = stored_tensor(reference, f"{name}.weight", model)
    if isinstance(weight, str):  # the file has vanished since it was checked
        raise FileNotFoundError(weight)
    return weight


def reference_embedding(damaged: DamagedCandidate) -> torch.Tensor | str:
    """Return the reference's embeddings of ``damaged.ids``, ``(B, P, H)``, or words why they are not known."""
    reference, known = damaged.reference, model_sample(damaged.reference)
    if embedded_starts.knows(reference) or reference.held.in_memory:
        return embedded_starts(reference)
    module = embedding_of(damaged.candidate.module)
    names = [name for name, part in damaged.candidate.module.named_modules() if part is module]
    if module is None or not names or known.rows is None:
        return "an embedding keeps its table packed"
    table = stored_tensor(reference, f"{names[0]}.weight")
    if isinstance(table, str):
        return table
    fits = table.ndim == 2 and table.is_floating_point() and len(table) > int(known.indices.max())
    if not fits or not _same_values(table[known.indices], known.rows):
        return "the reference's files hold another embedding than the baseline"
    with torch.no_grad():  # through the candidate's module, since some scale what they look up
        here = {"weight": table.to(device_of(module))}
        return first_tensor(functional_call(module, here, (damaged.ids.to(device_of(module)),))).cpu()


def _same_values(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors are the same weights, apart from rounding to a float of two bytes."""
    return one.shape == other.shape and bool((one.float() - other.float()).norm() <= ROUNDED * other.float().norm())
