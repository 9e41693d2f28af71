"""A model under test: its weights, what it is measured on, and what was measured of it.

The assertions compare two subjects. The numbers that are measured of a subject are in ``superweights.measurements``, one
function for each. B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import torch

from swcheck.base.errors import OptionError
from swcheck.base.records import Limit, Loaded, Scheme, Verdict
from swcheck.base.tiers import STANDARD, Tier
from swcheck.lens.architecture.anatomy import Anatomy, bare_anatomy
from swcheck.loading import engines
from swcheck.loading.runtime import Runtime
from swcheck.superweights.subject.held_model import HeldModel
from swcheck.superweights.subject.memory import Memory

if TYPE_CHECKING:
    from torch import nn

_SERIALS: Final = count()


@dataclass
class Subject:
    """A model under test.

    - ``held`` keeps or reloads the weights. ``owner`` is the subject that has them instead, where this one is the same
      model measured on other tokens.
    - ``token_ids``, int64 ``(B, T)``, are what perplexity is measured on. None means windows of ``text``, or of the
      evaluation text of the package where that is None too. ``text_label`` names a text that the user gave.
    - ``memory`` holds what was measured; None from when code outside may have changed the model.
    - ``kind`` is what was done to the model: ``quantized``, ``finetuned``, ``pruned``, or ``auto`` for what its scheme
      or its weights show. ``rank_layers`` asks what each of its layers costs, ``score_in_torch`` what the weights
      that another program runs are in torch, ``cache_window`` what a cache of so many tokens costs,
      ``sweep_shapes`` what other lengths, chunks and batches do, also with torch's own kernels. ``limits`` are those of the run in place of the defaults.
    - ``on_verdict`` is called with every verdict about this subject; ``notes`` are added to every one.
    - ``unused_tensors`` are the names of the tensors in its files that the model does not use.
    - ``source`` is the directory or hub id of the model, or of the reference that an engine made it from.
      ``remake(spec, source)`` makes from such a source what an engine's spec names; it is used to try a fix.
    """

    name: str
    held: HeldModel = field(default_factory=HeldModel, repr=False)
    tokenizer: Any = field(default=None, repr=False)
    token_ids: torch.Tensor | None = field(default=None, repr=False)
    text: str | None = field(default=None, repr=False)
    scheme: Scheme | None = None
    text_label: str = ""
    kind: str = "quantized"
    rank_layers: bool = False
    score_in_torch: bool = False
    cache_window: int | None = None
    sweep_shapes: bool = False
    limits: Mapping[str, Limit] = field(default_factory=dict, repr=False)
    tier: Tier = STANDARD
    memory: Memory | None = field(default=None, repr=False)
    on_verdict: Callable[[Verdict], None] = field(default=lambda _verdict: None, repr=False)
    source: str = ""
    remake: Callable[[str, str], Loaded] = field(
        default=lambda spec, source: engines.load(spec, reference=source), repr=False
    )
    notes: tuple[str, ...] = ()
    unused_tensors: tuple[str, ...] = ()
    owner: Subject | None = field(default=None, repr=False)
    serial: int = field(default_factory=_SERIALS.__next__, init=False, repr=False, compare=False)
    """Unique in this process. Values that a candidate remembers of a comparison are stored under the reference's serial."""

    @property
    def model(self) -> nn.Module:
        """The transformers module, for users.

        They may change it. So from now on nothing is remembered, and the module stays in memory.
        """
        self.memory = None
        if self.owner is not None:
            return self.owner.model
        module = self.module
        self.held.keep()
        return module

    @property
    def module(self) -> nn.Module:
        """The transformers module, for measurements inside swcheck; it is loaded again if it was freed.

        Raises ``OptionError`` where it was freed for good, and for a candidate that runs in another program.
        """
        found = self.scorer
        if isinstance(found, Runtime):
            found_words = f"it runs in {found.title}, which has no torch modules"
            raise OptionError(f"look inside {self.name}", found_words, "compare it with its reference, as a candidate")
        return found

    @property
    def is_runtime(self) -> bool:
        """Whether the model runs in another program."""
        return bool(self.runtime_title)

    @property
    def runtime_title(self) -> str:
        """The program that computes the model, as it is set up; empty for a torch module."""
        return self.held.runtime_title if self.owner is None else self.owner.runtime_title

    @property
    def runtime(self) -> Runtime:
        """The runtime of a model that runs in another program. Raises ``OptionError`` for any other."""
        found = self.scorer
        if isinstance(found, Runtime):
            return found
        raise OptionError(f"the runtime of {self.name}", "a torch module", "read its layers through hooks")

    @property
    def scorer(self) -> nn.Module | Runtime:
        """What scores token ids: the module, or the runtime. Raises ``OptionError`` where it was freed for good."""
        if self.owner is not None:
            return self.owner.scorer
        found = self.held.obtain()
        if found is None:
            words = "its weights were freed, only earlier numbers are kept"
            raise OptionError(f"a new measurement of {self.name}", words, "load it again")
        return found

    @property
    def anatomy(self) -> Anatomy:
        """The parts of the model; a causal language model that has no known down projections has a ``refusal``."""
        return bare_anatomy(self.module)

    @property
    def is_measurable(self) -> bool:
        """Whether new numbers can be measured: the weights are in memory, or can be loaded again."""
        return self.owner is not None or self.held.is_obtainable

    def free(self, reload: Callable[[], nn.Module | Runtime] | None = None) -> None:
        """Free the weights and keep what was measured. ``reload`` loads them again; with None they cannot be."""
        self._before_freeing()
        self.held.free(reload)

    def free_until_needed(self) -> None:
        """Free the weights if they can be loaded again."""
        if self.held.in_memory and self.held.is_reloadable:
            self._before_freeing()
            self.held.free_until_needed()

    def discard(self) -> None:
        """Free the weights for good, even where something else, such as a traceback, still refers to the module."""
        self._before_freeing()
        self.held.discard()

    def _before_freeing(self) -> None:
        if self.held.in_memory and self.memory is not None:
            self.memory.weights_freed()
