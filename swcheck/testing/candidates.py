"""Candidates with a known fault, or none, made from any reference: they show what a gate finds, and how it names it.

``candidate("head rolled", reference)`` returns a damaged copy. ``CANDIDATES`` lists all kinds with their strengths and
the name of the cause (``docs/causes.md``) that a red gate has to give. Whether a candidate is harmful is not said here:
measure that by other means than swcheck.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import torch

from swcheck.base.errors import OptionError, brief_message
from swcheck.base.evaluation_text import evaluation_text
from swcheck.base.records import Loaded, SuperWeight
from swcheck.lens.tokens import token_windows
from swcheck.superweights.locating.locate import locate
from swcheck.testing.damage import bases, conversions, edits, vocabulary

Make = Callable[[Loaded, float], Loaded]


@dataclass(frozen=True)
class CandidateKind:
    """A way to make a candidate: its name, the causes that are right for it, the strengths worth trying.

    ``causes`` is empty for one that computes the same as its reference.
    """

    name: str
    causes: tuple[str, ...]
    strengths: tuple[float, ...]
    make: Make


def candidate(name: str, reference: Loaded, strength: float | None = None) -> Loaded:
    """Return a candidate of this kind, a copy: the reference is not changed. ``strength`` None takes the kind's last.

    Raises ``OptionError`` for an unknown kind, and where the reference has no part for it.
    """
    if name not in CANDIDATES:
        raise OptionError(f"a candidate called {name!r}", "no such kind", f"one of {', '.join(CANDIDATES)}")
    kind = CANDIDATES[name]
    chosen = kind.strengths[-1] if strength is None else strength
    made = kind.make(reference, chosen)
    return replace(made, name=f"{name} {chosen:g}", source="")


def _edited(edit: edits.Edit, reference: Loaded, strength: float) -> Loaded:
    model = copy.deepcopy(reference.model)
    with torch.no_grad():
        edit(model, strength)
    return replace(reference, model=model)


def _configured(change: Callable[[Any, float], None], reference: Loaded, strength: float) -> Loaded:
    config = copy.deepcopy(reference.model.config)
    change(config, strength)
    try:
        config = type(config).from_dict(config.to_dict())
    except Exception as error:  # each version of transformers refuses with classes of its own
        raise OptionError(f"another {type(config).__name__}", brief_message(error), "another candidate") from error
    old = reference.model
    model = type(old)(config).to(old.dtype).eval()
    model.load_state_dict(old.state_dict(), strict=False)
    missing = [name for name in old.state_dict() if name not in model.state_dict()]
    return replace(reference, model=model, unused_tensors=tuple(missing))


def _super_weights(reference: Loaded) -> tuple[SuperWeight, ...]:
    found = locate(reference.model, reference.tokenizer).super_weights
    if not found:
        raise OptionError("a reference with super weights", "none", "another candidate")
    return found


def _super_weights_edited(
    edit: Callable[[torch.Tensor, SuperWeight, float], None], reference: Loaded, strength: float
) -> Loaded:
    model = copy.deepcopy(reference.model)
    with torch.no_grad():
        for weight in _super_weights(reference):
            edit(edits.down_weight(model, weight.layer), weight, strength)
    return replace(reference, model=model)


def _scaled(matrix: torch.Tensor, weight: SuperWeight, strength: float) -> None:
    matrix[weight.row, weight.column] *= strength


def _moved(matrix: torch.Tensor, weight: SuperWeight, strength: float) -> None:
    column = (weight.column + int(strength)) % matrix.shape[1]
    matrix[weight.row, column] = matrix[weight.row, weight.column].clone()
    matrix[weight.row, weight.column] = 0


def _clipped(matrix: torch.Tensor, _weight: SuperWeight, strength: float) -> None:
    end = matrix.abs().flatten().float().kthvalue(int(matrix.numel() * strength)).values
    matrix.clamp_(-end, end)


def _with_rope(config: Any, **values: Any) -> None:
    config.rope_parameters = {**getattr(config, _field_of(config, "rope_parameters")), **values}


def _field_of(config: Any, *names: str) -> str:
    """Return the one of these fields that a configuration has."""
    found = next((name for name in names if getattr(config, name, None)), None)
    if found is None:
        raise OptionError(f"a configuration with {' or '.join(names)}", "none", "another candidate")
    return found


def _fewer_heads(config: Any, strength: float) -> None:
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    _field_of(config, "num_key_value_heads")
    for name in ("num_attention_heads", "num_key_value_heads"):
        if getattr(config, name) % strength:
            raise OptionError(f"{name} that {strength:g} divides", f"{getattr(config, name)}", "another candidate")
        setattr(config, name, int(getattr(config, name) // strength))
    config.head_dim = int(width * strength)


def _with_epsilon(config: Any, strength: float) -> None:
    setattr(config, _field_of(config, "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"), float(strength))


def _with_activation(config: Any, strength: float) -> None:
    name = _field_of(config, "hidden_act", "hidden_activation", "activation_function", "activation")
    setattr(config, name, ("silu", "gelu", "relu", "tanh")[int(strength)])


def _fewer_layers(config: Any, strength: float) -> None:
    config.num_hidden_layers -= int(strength)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: config.num_hidden_layers]


def _row_not_finite(model: Any, strength: float) -> None:
    edits.embedding(model)[-1 - int(strength)] = float("nan")


def _o_proj(model: Any) -> torch.Tensor:
    return edits.map_weight(model, ("o_proj", "out_proj", "dense", "attn.c_proj"))


def _q_proj(model: Any) -> torch.Tensor:
    return edits.map_weight(model, ("q_proj", "qkv_proj", "query_key_value", "c_attn"))


def _up_proj(model: Any) -> torch.Tensor:
    return edits.map_weight(model, ("up_proj", "gate_up_proj", "dense_h_to_4h", "c_fc"))


def _heads_rolled(model: Any, strength: float) -> None:
    edits.roll_rows(_q_proj)(model, strength * edits.head_width(model))


def _output_rolled(model: Any, strength: float) -> None:
    edits.roll_rows(_o_proj, 1)(model, strength * edits.head_width(model))


def _cast(reference: Loaded, dtype: torch.dtype) -> Loaded:
    return replace(reference, model=copy.deepcopy(reference.model).to(dtype))


def _trained(reference: Loaded, strength: float) -> Loaded:
    """Return a fine-tune: ``TRAINING_STEPS`` steps of plain gradient descent on random tokens, rate ``strength``."""
    model = copy.deepcopy(reference.model).float().train()
    drawn = edits.generator()
    parameters = [p for p in model.parameters() if p.requires_grad]
    for _ in range(TRAINING_STEPS):
        ids = torch.randint(0, edits.embedding(model).shape[0], (2, 32), generator=drawn)
        with torch.enable_grad():
            gradients = torch.autograd.grad(model(ids, labels=ids).loss, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(strength * gradient)
    return replace(reference, model=model.to(reference.model.dtype).eval())


def _adapted_twice(reference: Loaded, strength: float) -> Loaded:
    """Return the reference with an adapter that was trained on its own text and merged ``strength`` times."""
    ids = token_windows(reference.tokenizer, reference.text or evaluation_text(), count=8, length=64)
    return _edited(conversions.merge_own_adapter(ids, TRAINING_STEPS, ADAPTER_RATE), reference, strength)


ADAPTER_RATE: Final = 0.1
"""How far each factor of an adapter moves in a step of its training."""


TRAINING_STEPS: Final = 8
"""The number of steps of a fine-tune."""


def _kinds() -> Mapping[str, CandidateKind]:
    config, tensor, order, matrix = ("configuration",), ("tensor",), ("order",), ("matrix", "tensor")
    heavy = ("super_weight", "block_neighbours")
    whole = (*heavy, "super_activation")
    edit, configured = partial(partial, _edited), partial(partial, _configured)
    weights = partial(partial, _super_weights_edited)
    table: dict[str, tuple[tuple[str, ...], tuple[float, ...], Make]] = {
        "rope theta": (config, (1e5, 1e3, 50), configured(lambda c, s: _with_rope(c, rope_theta=s))),
        "linear rope": (config, (1.1, 2, 4), configured(lambda c, s: _with_rope(c, rope_type="linear", factor=s))),
        "heads split": (config, (2,), configured(_fewer_heads)),
        "activation": (config, (1, 2, 3), configured(_with_activation)),
        "norm epsilon": (config, (1e-5, 1e-2, 10), configured(_with_epsilon)),
        "layers left out": (("configuration", "depth"), (1, 2), configured(_fewer_layers)),
        "norm scaled": (tensor, (1.1, 3, 20), edit(edits.scale_gain(edits.first_norm))),
        "norm lost": (tensor, (1,), edit(edits.fill_gain(edits.first_norm))),
        "final norm scaled": (tensor, (1.2, 3, 0.2), edit(edits.scale_gain(edits.final_norm))),
        "head rolled": (tensor, (1, 7), edit(edits.roll_rows(edits.head))),
        "head shuffled": (tensor, (0.25, 1), edit(edits.shuffle_rows(edits.head))),
        "head scaled": (tensor, (1.05, 0.5, 3), edit(edits.scale(edits.head))),
        "head of another run": (tensor, (0.3, 1), edit(edits.add_noise_to(edits.head))),
        "head drawn again": (tensor, (1,), edit(edits.draw_again(edits.head))),
        "embedding shuffled": (tensor, (0.25, 1), edit(edits.shuffle_rows(edits.embedding))),
        "embedding rolled": (tensor, (1,), edit(edits.roll_rows(edits.embedding))),
        "embedding scaled": (tensor, (2, 0.2), edit(edits.scale(edits.embedding))),
        "embedding row not finite": (("not_finite",), (0,), edit(_row_not_finite)),
        "layers exchanged": (order, (1, 2), edit(edits.exchange_layers)),
        "layers reversed": (order, (2, 3), edit(edits.reverse_layers)),
        "layer copied": (order, (1,), edit(edits.copy_layer)),
        "gate and up exchanged": (order, (1, 3), edit(edits.exchange_maps("gate_proj", "up_proj"))),
        "k and v exchanged": (order, (1, 3), edit(edits.exchange_maps("k_proj", "v_proj"))),
        "heads rolled": (tensor, (1,), edit(_heads_rolled)),
        "rope layout": (tensor, (1, 3), edit(edits.other_rope_layout)),
        "attention output rolled": (tensor, (1,), edit(_output_rolled)),
        "query transposed": (tensor, (1,), edit(edits.transpose("q_proj"))),
        "attention output zeroed": (tensor, (0,), edit(edits.fill(_o_proj))),
        "first down projection zeroed": (tensor, (0,), edit(edits.fill(partial(edits.down_weight, layer=0)))),
        "up projection constant": (tensor, (0.05,), edit(edits.fill(_up_proj))),
        "up projection scaled": (tensor, (1.1, 3), edit(edits.scale(_up_proj))),
        "group scales rolled": (tensor, (1,), edit(edits.roll_group_scales)),
        "query negated": (tensor, (-1,), edit(edits.scale(_q_proj))),
        "attention output drawn again": (matrix, (1, 3), edit(edits.draw_again(_o_proj))),
        "up projection drawn again": (matrix, (1,), edit(edits.draw_again(_up_proj))),
        "fused q, k, v split wrongly": (order, (1, 3), edit(conversions.split_by_parts)),
        "fused gate and up split wrongly": (order, (1, 3), edit(conversions.split_by_halves)),
        "halves of gate and up exchanged": (tensor, (1, 3), edit(conversions.exchange_halves)),
        "adapter of another base": (("adapter",), (0.1, 0.5, 2), edit(conversions.merge_foreign_adapter)),
        "adapter merged again": (("adapter",), (1, 4, 10), _adapted_twice),
        "experts lost": (tensor, (1, 3), edit(conversions.lose_experts)),
        "experts drawn again": (tensor, (1, 3), edit(conversions.draw_experts_again)),
        "experts exchanged": (tensor, (1,), edit(conversions.exchange_experts)),
        "range clipped": (("clipping", *whole), (6, 3, 2), edit(conversions.clip_ranges)),
        "super weights scaled": (heavy, (1.5, 0.25, 0), weights(_scaled)),
        "super weights negated": (heavy, (-1,), weights(_scaled)),
        "super weights moved": (heavy, (1,), weights(_moved)),
        "super weights clipped": (heavy, (0.9999,), weights(_clipped)),
        "rounded": (("rounding", *whole), (8, 6, 4, 3, 2), edit(edits.round_all)),
        "noise": (("all_maps", "training", *whole), (0.01, 0.3, 1), edit(edits.add_noise)),
        "pruned": (("pruning", *whole), (0.1, 0.5, 0.8), edit(edits.prune)),
        "pruned 2:4": (("pruning", *whole), (1, 2), edit(edits.prune_pattern(4))),
        "trained": (("training", "all_maps", "tensor", *whole), (1e-5, 1e-3, 0.3), _trained),
        "float16 saturated": (("overflow",), (16,), edit(conversions.saturate)),
        "vocabulary cut": ((), (0,), vocabulary.cut_down),
        "vocabulary padded": (("vocabulary",), (8, 64, 512), vocabulary.padded),
        "token without a row": (("vocabulary",), (1,), vocabulary.with_an_added_token),
        "BOS lost": (("tokenizer",), (0,), vocabulary.without_bos),
        "copy": ((), (0,), lambda reference, _: replace(reference, model=copy.deepcopy(reference.model))),
        "bfloat16": ((), (16,), lambda reference, _: _cast(reference, torch.bfloat16)),
        "float32": ((), (32,), lambda reference, _: _cast(reference, torch.float32)),
        "neurons permuted": ((), (1,), edit(edits.permute_neurons)),
        "channels permuted": ((), (1,), lambda reference, _: replace(reference, model=bases.permuted(reference.model))),
        "stream rotated": ((), (1,), lambda reference, _: replace(reference, model=bases.rotated(reference.model))),
        "neurons rescaled": ((), (4,), edit(edits.rescale_neurons)),
    }  # fmt: skip
    return {name: CandidateKind(name, *row) for name, row in table.items()}


CANDIDATES: Final = _kinds()
"""All kinds by name."""
