"""Frozen dataclasses and nothing else: what the rooms hand to each other.

Layer counts from 0. Row is always the output channel of ``down_proj`` (residual stream, width H), column always its
input channel (inner neuron, width F). Likelihoods are sums of nats with a count of tokens; divide once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol


@dataclass(frozen=True, order=True)
class SuperWeight:
    """One scalar of one ``down_proj``: ``layers[layer].mlp.down_proj.weight[row, column]``.

    ``value`` is the weight as it was read, None where nobody has read it; it does not take part in comparisons, so
    that the same coordinate in two models is equal.
    """

    layer: int
    row: int
    column: int
    value: float | None = field(default=None, compare=False)

    def __str__(self) -> str:
        value = "" if self.value is None else f" = {self.value:+.4g}"
        return f"layer {self.layer} [{self.row}, {self.column}]{value}"

    def as_json(self) -> dict[str, Any]:
        """Its fields as plain values; ``SuperWeight(**fields)`` makes it again."""
        return {"layer": self.layer, "row": self.row, "column": self.column, "value": self.value}


@dataclass(frozen=True)
class SuperActivation:
    """A residual-stream value that super weights write, at one channel and one token position.

    ``layer`` is the onset: the first layer whose output carries it. ``value`` is signed; ``median`` is the median
    magnitude of the residual stream there; ``last`` is the last layer that carries it within half of its value.
    """

    layer: int
    channel: int
    position: int
    value: float
    median: float
    last: int

    @property
    def ratio(self) -> float:
        """How many times the median magnitude the activation is."""
        return abs(self.value) / self.median if self.median else math.inf


@dataclass(frozen=True)
class Prompt:
    """A prompt and the form it is given in.

    ``form`` is ``plain``, as the tokenizer makes it, with BOS where it adds one; ``bare``, without anything added; or
    ``chat``, as a user's turn in the tokenizer's chat template, and plain where there is none.
    """

    text: str
    form: str = "plain"


@dataclass(frozen=True)
class Likelihood:
    """Summed negative log-likelihood, in nats, of ``tokens`` predicted tokens."""

    nats: float
    tokens: int

    @property
    def mean(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(nats / tokens); infinite where that overflows."""
        try:
            return math.exp(self.mean)
        except OverflowError:
            return math.inf

    def __add__(self, other: Likelihood) -> Likelihood:
        return Likelihood(self.nats + other.nats, self.tokens + other.tokens)


@dataclass(frozen=True)
class Scheme:
    """How the weights of a model are stored and computed with, as far as a limit depends on it.

    ``weight_bits`` and ``activation_bits`` are nominal (16 for any float of two bytes, 32 for float32). ``method`` is
    the field's name of what made it: rtn, absmax, nf4, fp4, gptq, awq, k-quant, nvfp4, mxfp4, fp8, int8, lora, float.
    ``calibrated`` says whether data or a search chose the grid.
    """

    method: str
    weight_bits: float
    activation_bits: float = 16
    calibrated: bool = False


@dataclass(frozen=True)
class Loaded:
    """A model under its name: what ``load`` returns and what the assertions take.

    ``model`` is the transformers module, ``tokenizer`` its tokenizer, ``text`` a text that belongs to this model (None
    means the evaluation text, Python's documentation topics), ``source`` the directory or hub id that it came from, ``scheme`` how it
    is quantized, None where nobody says.
    """

    model: Any
    tokenizer: Any
    name: str
    text: str | None = None
    source: str = ""
    scheme: Scheme | None = None


class Engine(Protocol):
    """A way to obtain a model: a loader, a quantizer, a file format. ``huggingface`` is the built-in loader.

    ``load`` makes what ``spec`` names. A quantizer makes it from ``reference``, a model's name or directory that
    ``swcheck.load`` takes; a loader ignores it. It raises a ``SwcheckError`` where that is impossible.
    """

    name: str

    def load(self, spec: str, *, reference: str | None, device: str | None, dtype: str | None) -> Loaded:
        """Make what ``spec`` names, on ``device`` and in ``dtype``; None leaves both to the engine."""
        ...


class Outcome(StrEnum):
    """How a check ended.

    ``near`` is passed within the noise of its limit; ``inconclusive`` blames the reference or the null, never the
    candidate; ``not_applicable`` has a reason.
    """

    PASSED = "passed"
    NEAR = "near"
    FAILED = "failed"
    NOT_APPLICABLE = "not_applicable"
    INCONCLUSIVE = "inconclusive"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Limit:
    """An interval, closed on both sides, with the reason it stands where it does; None is an open side."""

    low: float | None
    high: float | None
    source: str

    def holds(self, measured: float) -> bool:
        """Whether ``measured`` lies inside; NaN never does."""
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        return low <= measured <= high

    def __str__(self) -> str:
        low, high = (None if end is None else f"{end:,.6g}" for end in (self.low, self.high))
        if low is None:
            return "-" if high is None else f"<= {high}"
        return f">= {low}" if high is None else f"{low} .. {high}"


@dataclass(frozen=True)
class Verdict:
    """What one check measured, against which limit, and how it ended. It holds numbers, never tensors.

    ``measured`` is None where nothing could be measured; ``unit`` says what the number is ("x" is a ratio);
    ``summary`` is the one line that stands alone; ``cause`` is empty unless the check failed; ``detail`` rows are
    (name, text) pairs for the table under a failure; ``facts`` go to the JSON as they are.
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

    @property
    def who(self) -> str:
        """The model it is about, or the candidate with its reference."""
        return self.model if self.candidate is None else f"{self.candidate} against {self.model}"

    def __str__(self) -> str:
        words = "; ".join(part for part in (self.cause, self.summary) if part)
        return f"{self.check} of {self.who}: {self.outcome.value}: {words}"

    @property
    def red(self) -> bool:
        """Whether a test that gets this verdict must not pass."""
        return self.outcome in {Outcome.FAILED, Outcome.INCONCLUSIVE}
