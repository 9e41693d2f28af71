"""Makes a module that computes with another configuration and has the weights of an existing one, without a copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from swcheck.base.errors import brief_message
from swcheck.lens.architecture.storage import device_of, input_width


def with_configuration(
    model: nn.Module, values: Mapping[str, Any], missing: Callable[[str], torch.Tensor | str]
) -> nn.Module:
    """Return a module of the same class with the configuration ``values``, which shares the tensors of ``model``.

    A module whose class differs from the new one, as a packed linear map does, is shared as a whole. ``missing`` reads
    a parameter that ``model`` does not have, or returns words why it cannot. Raises ``ValueError`` for a parameter
    that nobody has or that has another shape, and for a configuration that the model's class refuses.
    """
    old: Any = model
    try:
        config = type(old.config).from_dict(dict(values))
    except Exception as error:  # each version of transformers refuses with classes of its own
        raise ValueError(f"{type(old.config).__name__} refuses it: {brief_message(error)}") from error
    config._attn_implementation = old.config._attn_implementation  # noqa: SLF001 - transformers has no other name for it
    with _parameters_on_meta(), torch.device(device_of(model)):
        made: nn.Module = type(old)(config).eval()
    theirs, like = dict(model.named_modules()), next(p for p in model.parameters() if p.is_floating_point())
    for name, module in list(made.named_modules()):
        other = theirs.get(name)
        if other is not None and type(other) is not type(module) and name and _has_tensors(other):
            made.set_submodule(name, other)
        else:
            _share_tensors(name, module, other, missing, like)
    if getattr(config.get_text_config(decoder=True), "tie_word_embeddings", False):
        made.tie_weights()  # type: ignore[operator]
    return made


def _has_tensors(module: nn.Module) -> bool:
    """Return whether a module has tensors of its own, or is a linear map that keeps them in another form."""
    own = any(True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False)))
    return own or input_width(module) is not None


def _share_tensors(
    name: str,
    module: nn.Module,
    other: nn.Module | None,
    missing: Callable[[str], torch.Tensor | str],
    like: torch.Tensor,
) -> None:
    """Give a new module the parameters and the stored buffers of the old one of the same name.

    Parameters that are read get the dtype and device of ``like``.
    """
    known = {} if other is None else dict(other.named_parameters(recurse=False))
    for key, empty in list(module.named_parameters(recurse=False)):
        found: Any = known.get(key)
        if found is None:
            read = missing(f"{name}.{key}")
            if isinstance(read, str):
                raise ValueError(read)
            found = nn.Parameter(read.to(like), requires_grad=False)
        if found.shape != empty.shape:
            raise ValueError(f"{name}.{key} is {tuple(found.shape)}, that configuration wants {tuple(empty.shape)}")
        setattr(module, key, found)
    kept = {} if other is None else dict(other.named_buffers(recurse=False))
    stored = module.state_dict()
    for key in dict(module.named_buffers(recurse=False)):
        if key in kept and key in stored:  # the others follow from the configuration
            setattr(module, key, kept[key])


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Put every parameter that is registered inside the block on ``meta``; buffers, which are small, keep their values."""
    register = nn.Module.register_parameter

    def register_on_meta(self: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(self, name, parameter)
        if parameter is not None and not parameter.is_meta:
            register(self, name, nn.Parameter(parameter.to("meta"), requires_grad=False))

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
