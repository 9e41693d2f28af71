"""Finds super weights without data, in one forward pass and a few shorter ones.

The method is that of the paper (arXiv 2411.07191, section 3.1), with corrections from follow-up papers:

- A super activation is not simply the largest value of the residual stream: it persists over the later layers and
  stands at few tokens (``activation_rules``).
- It is traced to the *earliest* layer that writes it, and to the inner neurons there, several of them where need be
  (``attribution``). Signs count: a layer that writes against the sign of the activation cancels it.
- The output of the last layer is not used, because its largest values are often echoes.
- An activation that vanishes when an earlier weight is zeroed was only passed on. So the weights found are zeroed and
  the pass is repeated until no activation is left (``search``). The threshold is set in the first round and kept.

B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import torch

from swcheck.base.errors import TextError
from swcheck.base.records import Likelihood, SuperWeight
from swcheck.base.terminal.progress import Bar
from swcheck.lens.architecture.anatomy import Anatomy, checked_anatomy
from swcheck.lens.architecture.storage import evaluating
from swcheck.lens.intervene import zeroed
from swcheck.lens.likelihood import perplexity, token_nats
from swcheck.lens.tokens import check_token_ids, vocabulary_size
from swcheck.superweights.locating.activation_rules import DEFAULT_RULES, Rules
from swcheck.superweights.locating.located import Effect, Located
from swcheck.superweights.locating.passes import Passes
from swcheck.superweights.locating.search import Search
from swcheck.superweights.locating.strongest import strongest_scalar

if TYPE_CHECKING:
    from torch import nn

PROMPT: Final = (
    "The quick brown fox jumps over the lazy dog. In the beginning there was nothing, and then, rather late on a "
    "Tuesday, somebody wrote the first line of a program that would outlive every one of its authors."
)
"""The default prompt."""


def locate(
    model: nn.Module,
    tokenizer: Any = None,
    *,
    prompt: str = PROMPT,
    token_ids: torch.Tensor | None = None,
    seeds: Sequence[SuperWeight] = (),
    verify: torch.Tensor | None = None,
    rules: Rules = DEFAULT_RULES,
) -> Located:
    """Find the super weights of ``model``, a transformers module, which is left as it was.

    ``prompt`` is encoded by ``tokenizer``; ``token_ids``, int64 ``(1, T)``, replace both. ``seeds`` are published
    coordinates: those that write a super activation here are accepted first, and the search adds what is missing.
    ``verify``, int64 ``(B, T)``, are token ids that are scored intact, with the found weights zeroed, and with the
    strongest other scalars zeroed. ``rules`` say what counts as a super activation.

    Returns a ``Located`` with ``.super_weights``, ``.activations`` and ``.reason``. Raises ``ArchitectureError`` for a
    model whose down projections are not known, ``CoordinateError`` for a seed outside the model, ``WrongModelError``
    where none of the seeds writes a super activation, ``TextError`` for a missing prompt or ids that are not valid,
    ``NotFiniteError`` where the residual stream holds NaN or infinity.
    """
    body = checked_anatomy(model)
    body.check(seeds)
    ids = _prompt_ids(model, tokenizer, prompt, token_ids)
    if verify is not None:
        check_token_ids(verify, vocabulary_size(model))
    found, _ = _search(model, body, ids, rules, seeds)
    if verify is None:
        return found
    strongest = strongest_scalar(model, body, ids, found.super_weights, verify)
    return replace(found, effect=replace(effect_of(model, found.super_weights, verify), strongest=strongest))


def locate_with_passes(model: nn.Module, ids: torch.Tensor, seeds: Sequence[SuperWeight]) -> tuple[Located, Passes]:
    """Do what ``locate`` does with ``token_ids``, int64 ``(1, T)``; return the passes of the search too."""
    body = checked_anatomy(model)
    body.check(seeds)
    return _search(model, body, _prompt_ids(model, None, "", ids), DEFAULT_RULES, seeds)


def _search(
    model: nn.Module, body: Anatomy, ids: torch.Tensor, rules: Rules, seeds: Sequence[SuperWeight]
) -> tuple[Located, Passes]:
    with evaluating(model), Bar("locating super weights"):
        search = Search(model, body, ids, rules)
        return search.run(tuple(seeds)), search.passes


def effect_of(model: nn.Module, super_weights: Sequence[SuperWeight], token_ids: torch.Tensor) -> Effect:
    """Score ``token_ids``, int64 ``(B, T)``, intact, with all of ``super_weights`` zeroed, and with each zeroed alone.

    A likelihood that is not finite with weights zeroed is returned as it is. Raises ``NotFiniteError`` where the
    intact one is not finite.
    """

    def score(removed: Sequence[SuperWeight]) -> Likelihood:
        with zeroed(model, removed):
            nats = token_nats(model, token_ids)
        return Likelihood(float(nats.sum()), nats.numel())

    intact = perplexity(model, token_ids)
    together = score(super_weights)
    alone = (together,) if len(super_weights) == 1 else tuple(score([weight]) for weight in super_weights)
    return Effect(intact, together, alone)


def _prompt_ids(model: nn.Module, tokenizer: Any, prompt: str, token_ids: torch.Tensor | None) -> torch.Tensor:
    if token_ids is None:
        if tokenizer is None:
            raise TextError("a prompt to locate with", "neither tokenizer nor token_ids", "pass one of the two")
        token_ids = torch.tensor([tokenizer(prompt)["input_ids"]], dtype=torch.int64)
    check_token_ids(token_ids, vocabulary_size(model), shortest=1)
    if len(token_ids) > 1:
        raise TextError("one prompt to locate with, int64 (1, T)", f"{len(token_ids)} rows", "pass token_ids[:1]")
    return token_ids
