"""What a reference generates after a few prompts, and after how many tokens a candidate goes on otherwise.

The reference generates; the candidate is given that text and asked for its next token at every position, in one pass.
Up to the first other token that is what its own generation would be. Both are asked the same way, so that two copies of
a model never differ. B prompts, P tokens of a prompt, and as many generated ones.
"""

from __future__ import annotations

import math
from typing import Final

import torch

from swcheck.lens.likelihood import generated, likeliest_tokens
from swcheck.lens.tokens import vocabulary_size as known_ids
from swcheck.loading.streaming.pager import pager_of
from swcheck.superweights.measurements.inputs import windows
from swcheck.superweights.subject.measurement import measurement
from swcheck.superweights.subject.memory import Cost, InBaseline
from swcheck.superweights.subject.subject import Subject

PROMPTS: Final = 4
TOKENS: Final = 32
"""So many tokens are generated after the beginnings, as long, of so many windows; half a window where it is short."""


@measurement("greedy", Cost.PROMPT)
def greedy_text(subject: Subject) -> torch.Tensor:
    """Return prompts with what the model generates after them, and its likeliest token at each place: int64 ``(2, B, 2 P)``.

    No prompts, ``(2, 0, 0)``, in the smoke tier and for a model that is read from the disk in each pass, where every
    token would be a pass.
    """
    if not subject.tier.causal or pager_of(subject.module) is not None:
        return torch.zeros(2, 0, 0, dtype=torch.int64)
    ids = windows(subject)
    count = min(TOKENS, ids.shape[1] // 2)
    chosen = torch.linspace(0, len(ids) - 1, min(PROMPTS, len(ids)), dtype=torch.float64).long()
    text = generated(subject.module, ids[chosen, :count], count)
    return torch.stack([text, torch.cat([text[:, :1], likeliest_tokens(subject.module, text)], dim=1)])


def is_greedy_text_known(subject: Subject) -> bool:
    """Return whether ``greedy_text`` needs no weights that would have to be loaded for it."""
    return greedy_text.knows(subject) or subject.held.in_memory


@measurement("first other token", Cost.PROMPT, in_baseline=InBaseline.NO)
def first_other_tokens(subject: Subject, reference: Subject) -> tuple[int, ...]:
    """Return for each prompt after how many generated tokens the subject goes on otherwise; P if after none of them.

    Empty where nothing was generated, and for a vocabulary that lacks a token of the text.
    """
    text, expected = greedy_text(reference)
    if not len(text) or int(text.max()) >= (known_ids(subject.scorer) or math.inf):
        return ()
    count = text.shape[1] // 2
    differ = (likeliest_tokens(subject.scorer, text) != expected[:, 1:])[:, -count:]
    return tuple(int(row.nonzero()[0]) if row.any() else count for row in differ)
