"""What all studies of a run share: the model and its super weights, the text, the seed, the scores measured so far.

A setup measures likelihood and zero-shot accuracy in whatever state the model is in, and returns both as measurements.
Every study leaves the model bit for bit as it found it. B windows, T tokens.
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
from swcheck.base.statistics import LARGEST_EXPONENT, standard_error
from swcheck.gate.baseline.identity import weights_identity
from swcheck.lens.architecture.anatomy import MapKey
from swcheck.lens.intervene import zeroed
from swcheck.lens.likelihood import token_nats
from swcheck.lens.linear_maps import LinearMap, Matrix, linear_maps, packed_maps, plain_matrices
from swcheck.loading.parallel.shards import is_shared
from swcheck.study.common.record import INTACT, ZEROED, Measurement
from swcheck.study.zeroshot import harness
from swcheck.superweights.measurements.inputs import windows
from swcheck.superweights.measurements.located import located
from swcheck.superweights.subject.as_subject import as_subject
from swcheck.superweights.subject.subject import Subject

if TYPE_CHECKING:
    from torch import nn

Step = TypeVar("Step")

SNAPSHOT_COMMIT: Final = re.compile(r"snapshots/([0-9a-f]{7,40})(?:/|$)")
"""Finds the commit in the path of a hub snapshot."""

PERPLEXITY: Final = "perplexity"
RATIO: Final = "perplexity ratio"
ACCURACY: Final = "accuracy"

Scorer = Callable[[Any, Any], Iterable[tuple[str, float, float | None]]]
"""Measures the zero-shot accuracy of a model with its tokenizer: (task, accuracy, standard error) for every task."""


@dataclass(frozen=True)
class Setup:
    """A model prepared for the studies.

    ``weights`` are its super weights. ``ids`` int64 ``(B, T)`` are the windows that likelihood is measured on.
    ``scorer`` measures zero-shot accuracy; where it is None, ``why_unscored`` says why. ``progress`` wraps the steps that a
    study iterates over. ``intact_nats`` keeps the likelihood of the intact model by window set.
    """

    subject: Subject
    weights: tuple[SuperWeight, ...]
    ids: torch.Tensor
    facts: dict[str, Any]
    seed: int = 0
    scorer: Scorer | None = None
    why_unscored: str = ""
    progress: Callable[[Iterable[Any], str], Iterable[Any]] = field(default=lambda steps, _words: steps, repr=False)
    notes: list[str] = field(default_factory=list, repr=False)
    intact_nats: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict, repr=False)

    @property
    def model(self) -> nn.Module:
        """The transformers module."""
        return self.subject.module

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the model, or None."""
        return self.subject.tokenizer

    def steps(self, steps: Iterable[Step], words: str) -> Iterable[Step]:
        """Return ``steps`` wrapped so that iterating shows progress under ``words``."""
        return self.progress(steps, words)

    def note(self, sentence: str) -> None:
        """Keep a sentence for the reader of the present study, unless it is kept already."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def nats(self) -> torch.Tensor:
        """Return the nats of every token of the windows in the model's present state, float64 ``(B, T - 1)``."""
        return token_nats(self.model, self.ids)

    def prepare(self) -> None:
        """Measure the intact model, once for all studies of a run. Call it before any study edits the model."""
        if self._windows_key() not in self.intact_nats:
            self.intact_nats[self._windows_key()] = self.nats()

    def on_fewer_windows(self, windows: int, length: int | None = None) -> Setup:
        """Return this setup on at most ``windows`` windows, evenly spread and cut to ``length`` tokens.

        It is for a study of many passes. It calls ``prepare``, so the model must be intact. A note tells the reader how
        many windows were used.
        """
        step = -(-len(self.ids) // windows)
        fewer = replace(self, ids=self.ids[::step, :length])
        if fewer.ids.shape != self.ids.shape:
            self.note(f"measured on {len(fewer.ids)} of the {len(self.ids)} windows, {fewer.ids.shape[1]} tokens each")
        fewer.prepare()
        return fewer

    def intact(self) -> torch.Tensor:
        """Return the intact nats, float64 ``(B, T - 1)``. Raises ``NotObservedError`` before ``prepare``."""
        if self._windows_key() not in self.intact_nats:
            raise NotObservedError("the likelihood of the untouched model", "nothing yet", "call prepare() first")
        return self.intact_nats[self._windows_key()]

    def _windows_key(self) -> tuple[int, ...]:
        return tuple(self.ids.flatten().tolist())

    def likelihood(
        self, condition: str, *, x: float | None = None, nats: torch.Tensor | None = None
    ) -> Iterator[Measurement]:
        """Yield perplexity in the model's present state, and its ratio to the intact model's, paired token by token.

        ``nats`` are those of this state, float64 ``(B, T - 1)``, if they were measured before.
        """
        intact = self.intact()
        if nats is None:
            nats = intact if condition == INTACT and x is None else self.nats()
        difference = nats - intact
        ratio = exp_or_inf(float(difference.mean()))
        error = standard_error(difference) * ratio
        yield Measurement(PERPLEXITY, exp_or_inf(float(nats.mean())), condition, x)
        yield Measurement(RATIO, ratio, condition, x, error if math.isfinite(error) else None)

    def accuracies(self, condition: str, *, x: float | None = None) -> Iterator[Measurement]:
        """Yield zero-shot accuracy in the model's present state by task; nothing but a note without a scorer."""
        if self.scorer is None:
            self.note(f"zero-shot accuracy is left out: {self.why_unscored}")
            return
        for task, accuracy, error in self.scorer(self.model, self.tokenizer):
            yield Measurement(ACCURACY, accuracy, condition, x, error, task=task)

    def scores(self, condition: str, *, x: float | None = None) -> Iterator[Measurement]:
        """Yield likelihood, then accuracy, in the model's present state."""
        yield from self.likelihood(condition, x=x)
        yield from self.accuracies(condition, x=x)

    def maps(self) -> tuple[LinearMap, ...]:
        """Return the linear maps of the layers that keep a plain weight; a note counts the others."""
        self._note_packed_maps()
        return linear_maps(self.model)

    def matrices(self) -> tuple[Matrix, ...]:
        """Return the plain matrices of the layers, those of single experts too; a note counts the packed linear maps."""
        self._note_packed_maps()
        return tuple(plain_matrices(self.subject.anatomy))

    def _note_packed_maps(self) -> None:
        packed = packed_maps(self.model)
        if packed:
            self.note(f"linear maps without a plain weight, left as they are: {len(packed)}, first {packed[0]}")

    def super_weight_places(self, matrix: Matrix) -> tuple[tuple[int, int], ...]:
        """Return (row, column) of the super weights that stand in this matrix."""
        return tuple((w.row, w.column) for w in self.weights if MapKey(w.layer, w.expert) == matrix.down)

    def super_weights_zeroed(self) -> AbstractContextManager[None]:
        """Zero all super weights together within the block."""
        return zeroed(self.model, self.weights) if self.weights else nullcontext()


def setup_of(
    loaded: Loaded | Subject,
    *,
    seed: int = 0,
    scorer: Scorer | None = None,
    why_unscored: str = "no scorer was given",
    text: str | None = None,
) -> Setup:
    """Return the setup of one model: locate its super weights, take its windows, collect the facts for the record.

    ``text`` replaces the model's default text. ``scorer`` and ``why_unscored`` are those of ``zero_shot``. Raises
    ``OptionError`` for a model without super weights, and for one that several processes share.
    """
    subject = as_subject(loaded)
    if any(map(is_shared, subject.module.parameters())):
        found = "processes of torchrun share it, and a study writes into whole matrices"
        raise OptionError(f"a study of {subject.name}", found, "one process, without --swcheck-tensor-parallel")
    if isinstance(loaded, Loaded) and text is not None:
        subject.text = text
    weights = located(subject).super_weights
    if not weights:
        raise OptionError(
            f"super weights of {subject.name} to study", located(subject).reason, "swcheck locate shows what was seen"
        )
    ids = windows(subject)
    source_path = loaded.source if isinstance(loaded, Loaded) else ""
    facts = {
        "revision": revision_of(source_path),
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
    return Setup(subject, weights, ids, facts, seed, scorer, why_unscored)


def zero_shot_scorer(
    tasks: Sequence[str] = harness.OFFLINE_TASKS, limit: int | None = harness.OFFLINE_ITEMS
) -> tuple[Scorer | None, str]:
    """Return a scorer through lm-evaluation-harness and "", or None and the reason why there is none.

    The harness is an optional extra. ``tasks`` are names as ``harness.accuracy`` takes them; ``limit`` is the number of
    items per task, None for all.
    """
    reason = harness.missing_packages()
    if reason is not None:
        return None, f"{reason} ({harness.INSTALL})"

    def score(model: nn.Module, tokenizer: Any) -> Iterator[tuple[str, float, float | None]]:
        for headline in harness.headlines(harness.accuracy(model, tokenizer, tasks, limit=limit)):
            yield headline.task, headline.value, headline.stderr

    return score, ""


def revision_of(source: str) -> str:
    """Return the commit of a hub snapshot, else 12 hex digits of a digest of the directory's weights, else ""."""
    match = SNAPSHOT_COMMIT.search(Path(source).as_posix()) if source else None
    if match:
        return match[1]
    directory = Path(source) if source else None
    return (weights_identity(directory) or "")[:12] if directory is not None and directory.is_dir() else ""


def exp_or_inf(nats: float) -> float:
    """Return exp(nats), or infinity where that overflows."""
    return math.exp(nats) if nats < LARGEST_EXPONENT else math.inf


@contextmanager
def restored_after(tensors: Iterable[torch.Tensor]) -> Iterator[tuple[torch.Tensor, ...]]:
    """Let the block write into whole tensors, then restore their values. Yields the saved copies, in order."""
    with torch.no_grad():
        targets = tuple(tensors)
        saved = tuple(tensor.clone() for tensor in targets)
        try:
            yield saved
        finally:
            for tensor, saved_values in zip(targets, saved, strict=True):
                tensor.copy_(saved_values)


__all__ = [
    "ACCURACY",
    "INTACT",
    "PERPLEXITY",
    "RATIO",
    "ZEROED",
    "Setup",
    "restored_after",
    "revision_of",
    "setup_of",
    "zero_shot_scorer",
]
