"""What every study of a run shares: the model and its super weights, the text, the seed, and the scores taken so far.

A setup measures likelihood and zero-shot accuracy in whatever state the model is in, and words both as measurements.
The model is left as it was by every study, to the bit. B batch, T time.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import torch

from swcheck.base.errors import NotObservedError, OptionError
from swcheck.base.evaluation_text import evaluation_text
from swcheck.base.records import Loaded, SuperWeight
from swcheck.base.statistics import standard_error
from swcheck.gate.baseline.identity import weights_identity
from swcheck.lens.intervene import zeroed
from swcheck.lens.likelihood import token_nats
from swcheck.lens.linear_maps import LinearMap, linear_maps, packed_maps
from swcheck.study.common.record import INTACT, ZEROED, Measurement
from swcheck.study.zeroshot import harness
from swcheck.superweights.measurements.contributions import located
from swcheck.superweights.measurements.inputs import windows
from swcheck.superweights.subject.as_subject import as_subject
from swcheck.superweights.subject.subject import Subject

if TYPE_CHECKING:
    from torch import nn

Step = TypeVar("Step")

LARGEST: Final = 700.0
"""Nats whose exponential still fits in a float64."""

SNAPSHOT: Final = re.compile(r"snapshots/([0-9a-f]{7,40})(?:/|$)")

PERPLEXITY: Final = "perplexity"
RATIO: Final = "perplexity ratio"
ACCURACY: Final = "accuracy"

Scorer = Callable[[Any, Any], Iterable[tuple[str, float, float | None]]]
"""Zero-shot accuracy of a model with its tokenizer: (task, accuracy, standard error) for every task."""


@dataclass(frozen=True)
class Setup:
    """A model in the hands of the studies.

    ``ids`` int64 ``(B, T)`` are the windows that likelihood is taken on. ``scorer`` measures zero-shot accuracy, None
    where it is not to be had; ``unscored`` then says why. ``progress`` wraps what a study walks through.
    """

    subject: Subject
    weights: tuple[SuperWeight, ...]
    ids: torch.Tensor
    facts: dict[str, Any]
    seed: int = 0
    scorer: Scorer | None = None
    unscored: str = ""
    progress: Callable[[Iterable[Any], str], Iterable[Any]] = field(default=lambda steps, _words: steps, repr=False)
    notes: list[str] = field(default_factory=list, repr=False)
    untouched: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict, repr=False)

    @property
    def model(self) -> nn.Module:
        """The transformers module."""
        return self.subject.module

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self.subject.tokenizer

    def steps(self, steps: Iterable[Step], words: str) -> Iterable[Step]:
        """``steps``, with progress shown under ``words``."""
        return self.progress(steps, words)

    def note(self, sentence: str) -> None:
        """Keep a sentence for the reader of the study that is being taken, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def nats(self) -> torch.Tensor:
        """The nats of every token of the windows in the model's present state, float64 ``(B, T - 1)``."""
        return token_nats(self.model, self.ids)

    def prepare(self) -> None:
        """Take what has to be taken of the untouched model, once for all studies of a run, before any edits it."""
        if self._key() not in self.untouched:
            self.untouched[self._key()] = self.nats()

    def on_fewer(self, windows: int, length: int | None = None) -> Setup:
        """The same on so many of the windows, evenly spread, cut to ``length`` tokens: for a study of many passes.

        Prepared, so that it is to be asked for while the model is untouched; a note says how many windows there are.
        """
        step = -(-len(self.ids) // windows)
        fewer = replace(self, ids=self.ids[::step, :length])
        if fewer.ids.shape != self.ids.shape:
            self.note(f"measured on {len(fewer.ids)} of the {len(self.ids)} windows, {fewer.ids.shape[1]} tokens each")
        fewer.prepare()
        return fewer

    def intact(self) -> torch.Tensor:
        """The nats of the untouched model, float64 ``(B, T - 1)``. Raises ``NotObservedError`` before ``prepare``."""
        if self._key() not in self.untouched:
            raise NotObservedError("the likelihood of the untouched model", "nothing yet", "call prepare() first")
        return self.untouched[self._key()]

    def _key(self) -> tuple[int, ...]:
        return tuple(self.ids.flatten().tolist())

    def likelihood(
        self, condition: str, *, x: float | None = None, nats: torch.Tensor | None = None
    ) -> Iterator[Measurement]:
        """Perplexity in the model's present state, and its ratio to the untouched one, differences paired by token.

        ``nats`` are those of this state, where they were taken before.
        """
        intact = self.intact()
        if nats is None:
            nats = intact if condition == INTACT and x is None else self.nats()
        difference = nats - intact
        ratio = exponential(float(difference.mean()))
        error = standard_error(difference) * ratio
        yield Measurement(PERPLEXITY, exponential(float(nats.mean())), condition, x)
        yield Measurement(RATIO, ratio, condition, x, error if math.isfinite(error) else None)

    def accuracies(self, condition: str, *, x: float | None = None) -> Iterator[Measurement]:
        """Zero-shot accuracy in the model's present state by task; nothing without a scorer."""
        if self.scorer is None:
            self.note(f"zero-shot accuracy is left out: {self.unscored}")
            return
        for task, accuracy, error in self.scorer(self.model, self.tokenizer):
            yield Measurement(ACCURACY, accuracy, condition, x, error, task=task)

    def scores(self, condition: str, *, x: float | None = None) -> Iterator[Measurement]:
        """Likelihood and accuracy in the model's present state."""
        yield from self.likelihood(condition, x=x)
        yield from self.accuracies(condition, x=x)

    def maps(self) -> tuple[LinearMap, ...]:
        """The plain linear maps of the layers; a note says how many others there are, which are left as they are."""
        packed = packed_maps(self.model)
        if packed:
            self.note(f"linear maps without a plain weight, left as they are: {len(packed)}, first {packed[0]}")
        return linear_maps(self.model)

    def places(self, one: LinearMap) -> tuple[tuple[int, int], ...]:
        """Row and column of the super weights that stand in this map."""
        if one.module is not self.subject.anatomy.down_projections[one.layer]:
            return ()
        return tuple((weight.row, weight.column) for weight in self.weights if weight.layer == one.layer)

    def without(self) -> AbstractContextManager[None]:
        """The model without its super weights, all zeroed together."""
        return zeroed(self.model, self.weights) if self.weights else nullcontext()


def setup_of(
    loaded: Loaded | Subject,
    *,
    seed: int = 0,
    scorer: Scorer | None = None,
    unscored: str = "no scorer was given",
    text: str | None = None,
) -> Setup:
    """Everything the studies of one model share. Raises ``OptionError`` for a model without super weights.

    ``text`` takes the place of the text that the model is measured on by default.
    """
    subject = as_subject(loaded)
    if isinstance(loaded, Loaded) and text is not None:
        subject.text = text
    weights = located(subject).super_weights
    if not weights:
        raise OptionError(
            f"super weights of {subject.name} to study", located(subject).reason, "swcheck locate shows what was seen"
        )
    ids = windows(subject)
    source = loaded.source if isinstance(loaded, Loaded) else ""
    facts = {
        "revision": revision_of(source),
        "text": hashlib.sha256((evaluation_text() if subject.text is None else subject.text).encode()).hexdigest(),
        "windows": list(ids.shape),
        "seed": seed,
        "super_weights": [weight.as_json() for weight in weights],
        "dtype": str(next(iter(subject.module.parameters())).dtype).removeprefix("torch."),
        "device": str(next(iter(subject.module.parameters())).device),
        "accuracy": scorer is not None,
        "torch": str(torch.__version__),
        "transformers": version("transformers"),
        "swcheck": version("swcheck"),
    }
    return Setup(subject, weights, ids, facts, seed, scorer, unscored)


def zero_shot(tasks: Sequence[str] = harness.OFFLINE, limit: int | None = harness.ITEMS) -> tuple[Scorer | None, str]:
    """A scorer through lm-evaluation-harness, an extra, or None and what is missing."""
    absent = harness.missing()
    if absent is not None:
        return None, f"{absent} ({harness.INSTALL})"

    def score(model: nn.Module, tokenizer: Any) -> Iterator[tuple[str, float, float | None]]:
        for one in harness.headlines(harness.accuracy(model, tokenizer, tasks, limit=limit)):
            yield one.task, one.value, one.stderr

    return score, ""


def revision_of(source: str) -> str:
    """The commit of a hub snapshot, else a digest of the weights, else nothing."""
    found = SNAPSHOT.search(Path(source).as_posix()) if source else None
    if found:
        return found[1]
    directory = Path(source) if source else None
    return (weights_identity(directory) or "")[:12] if directory is not None and directory.is_dir() else ""


def exponential(nats: float) -> float:
    """exp(nats); infinite where that overflows."""
    return math.exp(nats) if nats < LARGEST else math.inf


@contextmanager
def edited(tensors: Iterable[torch.Tensor]) -> Iterator[tuple[torch.Tensor, ...]]:
    """Let a study write into whole tensors; each gets its saved bits back. Yields the saved ones, in order."""
    with torch.no_grad():
        written = tuple(tensors)
        saved = tuple(tensor.clone() for tensor in written)
        try:
            yield saved
        finally:
            for tensor, bits in zip(written, saved, strict=True):
                tensor.copy_(bits)


__all__ = [
    "ACCURACY",
    "INTACT",
    "PERPLEXITY",
    "RATIO",
    "ZEROED",
    "Setup",
    "edited",
    "revision_of",
    "setup_of",
    "zero_shot",
]
