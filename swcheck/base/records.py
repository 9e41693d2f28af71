"""The records that modules pass to each other, and the protocol of an engine.

Layers count from 0. A row is an output channel of ``down_proj`` (residual stream, width H), a column an input channel
(inner neuron, width F). A likelihood is kept as a sum of nats with a token count, so that it is divided only once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Protocol


@dataclass(frozen=True)
class SuperWeight:
    """One scalar of one down projection: ``layers[layer].mlp.down_proj.weight[row, column]``.

    ``expert`` says which of its layer: None for the dense one, the number of an expert, "shared" for a shared expert.
    ``value`` is the weight as it was read from a model, None if it was not read. It is left out of comparisons, so that
    the same coordinate in two models is equal.
    """

    layer: int
    row: int
    column: int
    value: float | None = field(default=None, compare=False)
    expert: int | str | None = None

    def __str__(self) -> str:
        return self.place if self.value is None else f"{self.place} = {self.value:+.4g}"

    def __lt__(self, other: SuperWeight) -> bool:
        return self._order < other._order

    @property
    def _order(self) -> tuple[int, int, int, str]:
        return self.layer, self.row, self.column, "" if self.expert is None else f"{self.expert:>6}"

    @property
    def place(self) -> str:
        """The coordinate in words, without the value: ``layer 3 expert 17 [97, 301]``."""
        expert = "" if self.expert is None else f" expert {self.expert}"
        return f"layer {self.layer}{expert} [{self.row}, {self.column}]"

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain values, from which ``SuperWeight(**fields)`` makes an equal record."""
        place = {"layer": self.layer, "expert": self.expert, "row": self.row, "column": self.column}
        return {**place, "value": self.value}


@dataclass(frozen=True)
class SuperActivation:
    """A residual-stream value that super weights write, at one channel and one token position.

    ``layer`` is the onset: the first layer whose output has it. ``value`` is signed. ``median`` is the median magnitude
    of the residual stream there. ``last`` is the last layer in which it still has at least half of its maximum.
    """

    layer: int
    channel: int
    position: int
    value: float
    median: float
    last: int

    @property
    def ratio(self) -> float:
        """The magnitude of the activation over the median magnitude; infinite if the median is 0."""
        return abs(self.value) / self.median if self.median else math.inf


@dataclass(frozen=True)
class Prompt:
    """A prompt and the form in which the model gets it.

    ``form`` is ``plain``: as the tokenizer encodes it, with BOS if it adds one; ``bare``: without special tokens; or
    ``chat``: as a user's turn in the tokenizer's chat template, ``plain`` if there is no template.
    """

    text: str
    form: str = "plain"


@dataclass(frozen=True)
class Likelihood:
    """``nats`` is the summed negative log-likelihood of ``tokens`` predicted tokens."""

    nats: float
    tokens: int

    @property
    def mean(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(nats / tokens); infinite if that overflows."""
        try:
            return math.exp(self.mean)
        except OverflowError:
            return math.inf

    def __add__(self, other: Likelihood) -> Likelihood:
        return Likelihood(self.nats + other.nats, self.tokens + other.tokens)


@dataclass(frozen=True)
class Scheme:
    """How a model is quantized, as far as a limit depends on it.

    ``method`` is the usual name of the quantization: rtn, absmax, nf4, fp4, gptq, awq, k-quant, nvfp4, mxfp4, fp8,
    int8, lora, float. ``weight_bits`` and ``activation_bits`` are nominal: 16 for any 2-byte float, 32 for float32.
    ``calibrated`` says whether the quantization grid was chosen with data or by a search.
    """

    method: str
    weight_bits: float
    activation_bits: float = 16
    calibrated: bool = False

    @property
    def rounds_inputs(self) -> bool:
        """Whether the inputs of linear maps are quantized too."""
        return self.activation_bits < 16


@dataclass(frozen=True)
class Loaded:
    """A model with its name and tokenizer: what ``load`` returns and what the assertions take.

    ``model`` is the transformers module. ``text`` is a text of this model's own to measure on; None means the default,
    ``evaluation_text()``. ``source`` is the directory or hub id that it was loaded from. ``scheme`` says how it is
    quantized; None means that it is not quantized, or that this is unknown. ``unused_tensors`` are the names of the
    tensors in its files that the model does not use.
    """

    model: Any
    tokenizer: Any
    name: str
    text: str | None = None
    source: str = ""
    scheme: Scheme | None = None
    unused_tensors: tuple[str, ...] = ()


class Engine(Protocol):
    """A way to obtain a model: a loader, a quantizer or a file format. ``huggingface`` is the built-in loader.

    ``name`` is the part of a model's name before the colon, as in ``torchao:int8-weight-only``.
    """

    name: str

    def load(self, spec: str, *, reference: str | None, device: str | None, dtype: str | None) -> Loaded:
        """Return the model that ``spec`` (the part behind the colon) names.

        A quantizer makes it from ``reference``, a name or directory that ``swcheck.load`` takes; a loader ignores it.
        ``device`` and ``dtype`` are chosen by the engine if they are None. Raises a ``SwcheckError`` if it fails.
        """
        ...


class Outcome(StrEnum):
    """How a check ended.

    ``near``: passed, but so close to the limit that the difference may be noise. ``inconclusive``: the reference or the
    null is to blame, not the candidate. ``not_applicable``: the check makes no sense here; the summary says why.
    """

    PASSED = "passed"
    NEAR = "near"
    FAILED = "failed"
    NOT_APPLICABLE = "not_applicable"
    INCONCLUSIVE = "inconclusive"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Limit:
    """A closed interval, and in ``source`` where its ends come from. None means no limit on that side."""

    low: float | None
    high: float | None
    source: str

    def holds(self, measured: float) -> bool:
        """Return whether ``measured`` lies inside the interval. NaN never does."""
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        return low <= measured <= high

    def __str__(self) -> str:
        low, high = (None if end is None else f"{end:,.6g}" for end in (self.low, self.high))
        if low is None:
            return "-" if high is None else f"<= {high}"
        return f">= {low}" if high is None else f"{low} .. {high}"


NOT_ENOUGH: Final = ", not enough yet"
"""The end of the text of a fix after which the check is still red."""


@dataclass(frozen=True)
class Verdict:
    """The result of one check: what was measured, the limit, and the outcome. It holds numbers, never tensors.

    ``measured`` is None if nothing could be measured. ``unit`` is the unit of the number ("x" for a ratio). ``summary``
    is one line that can be understood alone. If the verdict is ``red``, ``cause`` says why and ``attempt`` what to try;
    both are empty otherwise. ``cause_kind`` is a stable name of the cause: ``docs/causes.md`` lists them. ``detail`` are (name, text) rows shown under a failure. ``facts`` go into the JSON
    unchanged.
    """

    check: str
    model: str
    outcome: Outcome
    summary: str
    candidate: str | None = None
    measured: float | None = None
    limit: Limit | None = None
    unit: str = ""
    cause: str = ""
    attempt: str = ""
    detail: tuple[tuple[str, str], ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    cause_kind: str = ""

    @property
    def who(self) -> str:
        """The name of the model, or of the candidate and its reference, as text."""
        return self.model if self.candidate is None else f"{self.candidate} against {self.model}"

    def __str__(self) -> str:
        explanation = "; ".join(text for text in (self.cause, self.summary) if text)
        return f"{self.check} of {self.who}: {self.outcome.value}: {explanation}"

    @property
    def red(self) -> bool:
        """Whether a test with this verdict must fail: the outcome is ``failed`` or ``inconclusive``."""
        return self.outcome in {Outcome.FAILED, Outcome.INCONCLUSIVE}
