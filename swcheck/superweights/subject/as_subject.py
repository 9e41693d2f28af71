"""Makes a ``Subject`` from the argument of an assertion."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from swcheck.base.errors import OptionError
from swcheck.base.records import Loaded
from swcheck.loading import hub, published_index
from swcheck.superweights.subject.held_model import HeldModel
from swcheck.superweights.subject.memory import Memory
from swcheck.superweights.subject.subject import Subject


def as_subject(
    thing: Any,
    *,
    tokenizer: Any = None,
    token_ids: torch.Tensor | None = None,
    role: str = "model",
) -> Subject:
    """Return a subject for ``thing``: a ``Subject``, what ``load`` returns, or a bare module.

    ``tokenizer`` and ``token_ids``, int64 ``(B, T)``, say what it is measured on. Where they are given for a
    ``Subject``, the result is a new one that remembers only what does not depend on the tokens; a model that can be
    reloaded stays with the old subject, which becomes its ``owner``. Raises ``OptionError`` for any other ``thing``;
    ``role`` names it in the message.
    """
    from torch import nn

    if isinstance(thing, Subject) and tokenizer is None and token_ids is None:
        return thing
    if isinstance(thing, Subject):
        memory = None if thing.memory is None else thing.memory.of_weights()
        found = replace(thing, tokenizer=tokenizer or thing.tokenizer, token_ids=token_ids, memory=memory)
        return replace(found, held=HeldModel(), owner=thing) if thing.held.is_reloadable else found
    if isinstance(thing, Loaded):
        return Subject(
            thing.name,
            HeldModel(thing.model),
            tokenizer or thing.tokenizer,
            token_ids,
            thing.text,
            thing.scheme,
            memory=Memory(),
            source=thing.source,
            unused_tensors=thing.unused_tensors,
        )
    if isinstance(thing, nn.Module):
        name = str(getattr(getattr(thing, "config", None), "name_or_path", "") or type(thing).__name__)
        return Subject(_short_name(name.rstrip("/")), HeldModel(thing), tokenizer, token_ids, memory=Memory())
    raise OptionError(
        f"a {role}: what load() returns, or a torch module", f"{type(thing).__name__}", "swcheck.load('tiny')"
    )


def _short_name(name: str) -> str:
    """Return the last part of a hub id or of a path.

    The whole name is kept where its last part is the name of a published model, but ``name`` is a directory or another
    hub id: it should not be taken for the published model.
    """
    last = name.rsplit("/", 1)[-1]
    is_ambiguous = published_index.find(last) and (
        hub.existing_path(name) is not None or not published_index.find(name)
    )
    return name if is_ambiguous else last
