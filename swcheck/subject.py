"""A model under test, and every number that is taken of it.

The assertions compare two subjects; a subject measures itself. Where it belongs to a run (``memo`` is not None), each
number is computed once, and what one pass shows serves all who ask. Of a model nothing else is kept: the nats of single
tokens, which stay paired, what its layers gave on one prompt, and the rows and matrices that hold its super weights.
"""

from __future__ import annotations

import gc
import hashlib
import platform
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Final, TypeVar

import torch

from swcheck import engines, hub, index
from swcheck.anatomy import Anatomy, anatomy, check_inside, device_of
from swcheck.drift import Drift, Predictions, compare, predict
from swcheck.errors import CoordinateError, OptionError, WrongModelError
from swcheck.kind import Sketch, sketch
from swcheck.kinship import Portrait, portrait
from swcheck.location import PROMPT, Located, locate
from swcheck.measure import adds_bos, check_token_ids, evaluating, token_nats, vocabulary_of, windows
from swcheck.observe import Breakdown, breakdown, contributions, effective_weight, observe, plain_weight
from swcheck.probes import Echoes, echoes, errors_of
from swcheck.reading import Stream, errors_in, place_of, stream
from swcheck.records import Limit, Loaded, Scheme, SuperActivation, SuperWeight, Verdict
from swcheck.stored import size, tensor
from swcheck.text import evaluation_text
from swcheck.tiers import STANDARD, Tier

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

Number = TypeVar("Number")

LOUDEST: Final = 32
SHORTEST_PREFIX: Final = 64
SAMPLES: Final = (PROMPT, "def spam(eggs=1):\n    return [eggs] * 2  # \u00e9, \u4f60\u597d\n")
INPUTS_KEPT: Final = 256
"""Of a prompt of so many tokens at most, what every down projection reads is kept while the model is here."""

WEIGHTS_ALONE: Final = ("portrait", "sketch", "echoes", "parameters", "vocabulary")
"""What is measured of a model whatever the tokens, and may be remembered where these are exchanged."""

SMALL: Final = 1_000_000_000
"""A model of so many parameters at most is loaded again for a number more, and two of them fit nearly everywhere."""

_marks: Final = count()


@dataclass
class Subject:
    """A model, what it is called, and what it is measured on.

    ``module`` is for this package; everybody else asks for ``model``. ``token_ids`` int64 ``(B, T)`` is what perplexity is taken on; None means windows of ``text``, and without a text
    of the package's evaluation text. ``memo`` keeps what was measured for as long as nobody else can change the model.
    ``kind`` is what was done to it, ``auto`` leaves that to its weights where its scheme does not say it; ``limits`` are
    those that its run asks for by name, in place of defaults.
    ``heard`` is told every verdict about this subject. ``source`` is the directory that it, or what an engine made it
    from, lies in; ``maker`` makes what an engine's spec names of such a directory. ``notes`` on how it was measured go
    with every verdict about it.
    """

    name: str
    module: nn.Module | None = field(repr=False)
    tokenizer: Any = field(default=None, repr=False)
    token_ids: torch.Tensor | None = field(default=None, repr=False)
    text: str | None = field(default=None, repr=False)
    scheme: Scheme | None = None
    named: str = ""
    kind: str = "quantized"
    limits: Mapping[str, Limit] = field(default_factory=dict, repr=False)
    tier: Tier = STANDARD
    memo: dict[Any, Any] | None = field(default=None, repr=False)
    again: Callable[[], nn.Module] | None = field(default=None, repr=False)
    heard: Callable[[Verdict], None] = field(default=lambda _verdict: None, repr=False)
    source: str = ""
    maker: Callable[[str, str], Loaded] = field(
        default=lambda spec, source: engines.load(spec, reference=source), repr=False
    )
    notes: tuple[str, ...] = ()
    owner: Subject | None = field(default=None, repr=False)
    """Whose weights these are, where another subject keeps them: the same model, measured on other tokens."""
    mark: int = field(default_factory=_marks.__next__, init=False, repr=False, compare=False)
    """Its own in this process: what a candidate remembers of one reference is not what it has against another."""

    def check(self, super_weights: Sequence[SuperWeight]) -> None:
        """Raise ``CoordinateError`` for the first coordinate that lies outside; no weights are needed for it."""
        known = self.portrait()
        check_inside(super_weights, known.layers, known.hidden, known.inner)

    def once(self, key: Any, compute: Callable[[], Number]) -> Number:
        """``compute()``, or what it gave before in this run."""
        if self.memo is None:
            return compute()
        if key not in self.memo:
            self.memo[key] = compute()
        return self.memo[key]  # type: ignore[no-any-return]

    def beside(self, reference: Subject, key: tuple[Any, ...], compute: Callable[[], Number]) -> Number:
        """As ``once``, for what was measured against a reference; not remembered of one that may change meanwhile."""
        return compute() if reference.memo is None else self.once((*key, reference.mark), compute)

    @property
    def model(self) -> nn.Module:
        """The transformers module. Whoever takes it may change it: nothing is remembered of it from then on, nor is it freed."""
        self.memo = None
        if self.owner is not None:
            return self.owner.model
        module, self.again = self.live, None
        return module

    @property
    def live(self) -> nn.Module:
        """The module, for measuring. Raises ``OptionError`` once it was released."""
        if self.owner is not None:
            return self.owner.live
        if self.module is None and self.again is not None:
            self.module = self.again()
        if self.module is None:
            raise OptionError(
                f"a new measurement of {self.name}",
                "its weights were freed, only earlier numbers are kept",
                "load it again",
            )
        return self.module

    def release(self, again: Callable[[], nn.Module] | None = None) -> None:
        """Free the weights; what was measured stays. ``again`` loads them where a new number is asked for."""
        if self.module is not None:
            self._part()
        self.module, self.again = None, again

    def discard(self) -> None:
        """Free the weights for good, also where something, as the traceback of a failure, still holds the module."""
        if self.module is not None:
            with suppress(Exception):  # some packed modules refuse to move; those wait for the garbage collector
                self.module.to("meta")
        self.release()

    def _part(self) -> None:
        """Let nothing that is remembered hold on to the weights: one tensor would keep all of its file mapped."""
        memo = self.memo if self.memo is not None else {}
        for key in [key for key in memo if key[0] == "inputs"]:  # of no use without the weights
            del memo[key]
        for key in [key for key, value in memo.items() if key[0] == "matrix" and value is not None]:
            memo[key] = memo[key].clone()

    @property
    def at_hand(self) -> bool:
        """Whether new numbers can be measured: its weights are here, or can be loaded again."""
        return self.module is not None or self.again is not None or self.owner is not None

    @property
    def at_a_fair_price(self) -> bool:
        """Whether a new number takes no long loading: its weights are here, or it is small."""
        return self.module is not None or (self.at_hand and self.is_small)

    @property
    def is_small(self) -> bool:
        """Whether it has at most ``SMALL`` parameters."""
        return self.parameters <= SMALL

    def rest(self) -> None:
        """Free the weights until a new number is asked for, where they can be loaded again."""
        if self.again is None or self.module is None:
            return
        module = weakref.ref(self.module)
        self.release(self.again)
        if module() is not None:  # some engines' modules refer to themselves
            gc.collect()

    def remembers(self, key: Any) -> bool:
        """Whether this number was measured before."""
        return self.memo is not None and key in self.memo

    @property
    def text_name(self) -> str:
        """What the text is called that it is measured on."""
        if self.token_ids is not None:
            return "the given token ids"
        topics = f"Python {platform.python_version()}'s documentation topics"
        return self.named or (topics if self.text is None else "the model's own text")

    @property
    def text_hash(self) -> str | None:
        """The SHA-256 of the text that it is measured on, in hex; None where the token ids were given."""
        return None if self.token_ids is not None else hashlib.sha256(self.own_text().encode()).hexdigest()

    @property
    def tier_words(self) -> str:
        """The tier, to be named behind a number; nothing where the token ids were given."""
        return "" if self.token_ids is not None else f", {self.tier.name} tier"

    @property
    def body(self) -> Anatomy:
        """The parts of the model."""
        return anatomy(self.live)

    def down_name(self, layer: int) -> str:
        """The qualified name of a layer's down projection."""
        return self.once(("down", layer), lambda: self.body.down_name(layer))

    def windows(self) -> torch.Tensor:
        """The token ids that perplexity is taken on, int64 ``(B, T)``."""
        if self.token_ids is not None:
            return self.once("checked", lambda: self._checked(self.token_ids))

        def compute() -> torch.Tensor:
            if self.tokenizer is None:
                raise OptionError(f"measure {self.name}", "a bare module", "pass tokenizer= or token_ids=")
            count, length = self.tier.shape(self.context)
            return windows(self.tokenizer, self.own_text(), count=count, length=length)

        return self.once("windows", compute)

    def _checked(self, token_ids: Any) -> torch.Tensor:
        check_token_ids(token_ids, vocabulary_of(self.live))
        return token_ids  # type: ignore[no-any-return]

    def prompt_ids(self, prompt: str | None = None) -> torch.Tensor:
        """The ids of one prompt, int64 ``(1, T)``; of the first window where there is no tokenizer."""

        def compute() -> torch.Tensor:
            if self.tokenizer is None:
                return self.windows()[:1]
            return torch.tensor([self.tokenizer(PROMPT if prompt is None else prompt)["input_ids"]], dtype=torch.int64)

        return self.once(("prompt", prompt), compute)

    def located(self) -> Located:
        """Its super weights: published ones completed by what is found, or found from nothing."""
        return self.once("located", lambda: self._located(self.prompt_ids()))

    def located_on(self, ids: torch.Tensor) -> Located:
        """As ``located``, on a prompt ``(1, T)`` of another model: a candidate is asked what its reference was."""
        return self.once(("located", key_of(ids)), lambda: self._located(ids))

    def _located(self, ids: torch.Tensor) -> Located:
        seeds = known(self.name)
        try:
            self.body.check(seeds)
        except CoordinateError as error:
            raise WrongModelError(
                f"the published super weights of {self.name}", error.found, "check that name and checkpoint match"
            ) from error
        return locate(self.live, token_ids=ids, seeds=seeds)

    def weights(self, super_weights: Sequence[SuperWeight]) -> tuple[float, ...]:
        """The effective value of each scalar."""

        def compute() -> tuple[float, ...]:
            downs = self.body.down_projections
            return tuple(effective_weight(downs[w.layer], w.row, w.column) for w in super_weights)

        return self.once(("weights", tuple(super_weights)), compute)

    def columns(self, weight: SuperWeight, ids: torch.Tensor, position: int) -> tuple[tuple[int, float], ...]:
        """What the loudest inner neurons write into the weight's row at a token: (column, contribution), loudest first."""

        def compute() -> tuple[tuple[int, float], ...]:
            x = self._inputs([weight.layer], ids)[weight.layer][position]
            loudest = x.float().abs().topk(min(LOUDEST, len(x))).indices.tolist()
            written = contributions(self.body.down_projections[weight.layer], x, weight.row, loudest)
            return tuple(zip(loudest, written.tolist(), strict=True))

        return self.once(("columns", weight, key_of(ids), position), compute)

    def remembers_columns(self, weight: SuperWeight, ids: torch.Tensor, position: int) -> bool:
        """Whether the loudest inner neurons of this place were asked for before."""
        return self.remembers(("columns", weight, key_of(ids), position))

    def sink_norm(self, layer: int, position: int, ids: torch.Tensor) -> float:
        """The norm of the residual stream after a layer at one token of a prompt; no basis is needed for it."""

        def compute() -> float:
            with evaluating(self.live), observe(self.live, residual=[layer], stop=True) as sight:
                self.live(ids.to(device_of(self.live)), use_cache=False)
            return float(sight.residual[layer][0, position].float().norm())

        return self.once(("norm", layer, position, key_of(ids)), compute)

    def matrix(self, layer: int) -> torch.Tensor | None:
        """The weight ``(H, F)`` of a down projection, not copied; None where it is packed."""
        return self.once(("matrix", layer), lambda: plain_weight(self.body.down_projections[layer]))

    def breakdown(self, ids: torch.Tensor) -> Breakdown | None:
        """Where a pass over ``ids`` ``(B, T)`` stops being finite."""
        return self.once(("breakdown", key_of(ids)), lambda: breakdown(self.live, ids.to(device_of(self.live))))

    def residuals(self, ids: torch.Tensor) -> torch.Tensor:
        """The residual stream after every layer on a prompt ``(1, T)``, float32 ``(L, T, H)``."""
        return self._look(ids)[1]

    def finite(self, ids: torch.Tensor) -> bool:
        """Whether the model answers a prompt, int64 ``(1, T)``, with finite logits."""
        return self.once(("finite", key_of(ids)), lambda: self._look(ids)[0])

    def _look(self, ids: torch.Tensor) -> tuple[bool, torch.Tensor]:
        """One whole pass over a prompt: whether it stays finite, and ``residuals``; it leaves ``_inputs`` as well."""

        def compute() -> tuple[bool, torch.Tensor]:
            layers, short = range(len(self.body.layers)), ids.shape[1] <= INPUTS_KEPT
            with observe(self.live, residual=layers, inputs=layers if short and self.memo is not None else ()) as sight:
                nats = token_nats(self.live, ids)
            for layer, seen in sight.inputs.items():
                self.once(("inputs", layer, key_of(ids)), partial(seen.__getitem__, 0))
            stacked = torch.stack([sight.residual[layer][0].float().cpu() for layer in layers])
            return bool(torch.isfinite(nats).all()), stacked

        return self.once(("residuals", key_of(ids)), compute)

    def _inputs(self, layers: Collection[int], ids: torch.Tensor) -> dict[int, torch.Tensor]:
        """What the down projections of these layers read on a prompt ``(1, T)``: ``(T, F)`` each, as they passed."""
        keys = {layer: ("inputs", layer, key_of(ids)) for layer in layers}
        missing = [layer for layer, key in keys.items() if not self.remembers(key)]
        seen: dict[int, torch.Tensor] = {}
        if missing:
            with evaluating(self.live), observe(self.live, inputs=missing, stop=True) as sight:
                self.live(ids.to(device_of(self.live)), use_cache=False)
            seen = {layer: sight.inputs[layer][0] for layer in missing}
        return {layer: self.once(key, partial(seen.__getitem__, layer)) for layer, key in keys.items()}

    def echoes(self) -> Echoes:
        """What every linear map of the layers answers to fixed random inputs, folded."""
        return self.once("echoes", lambda: echoes(self.body))

    def map_errors(self, expected: Echoes) -> dict[str, float]:
        """How far the answers of the maps of the same names are off here."""
        return errors_of(self.body, expected)

    def stream(self, ids: torch.Tensor) -> Stream:
        """What is kept of the residual stream on a prompt ``(1, T)`` to compare another one with."""
        return self.once(("stream", key_of(ids)), lambda: stream(self.residuals(ids)))

    def stream_errors(self, reference: Subject, channels: Sequence[int] = ()) -> list[float]:
        """How far its residual stream is off after every layer, away from the sink, on the reference's default prompt.

        ``channels`` says where each of the reference's channels has gone.
        """
        ids = reference.prompt_ids()
        residual = self.residuals(ids)
        return errors_in(residual[..., list(channels)] if channels else residual, reference.stream(ids))

    def stored(self, name: str) -> torch.Tensor | str:
        """A tensor as the files of its directory have it, for a model that is not loaded; words where they do not."""
        folder = self._directory()
        return "the reference is not on this machine" if folder is None else tensor(folder, name)

    @property
    def stored_bytes(self) -> int:
        """The size of the tensors of its directory, 0 where it has none."""
        folder = self._directory()
        return 0 if folder is None else size(folder)

    def _directory(self) -> Path | None:
        return hub.local(self.source) if self.source else None

    def contributions(
        self, super_weights: Sequence[SuperWeight], ids: torch.Tensor, positions: Sequence[int]
    ) -> tuple[float, ...]:
        """What each scalar writes at its token of the prompt ``ids`` ``(1, T)``: weight times input there."""
        return self.once(
            ("contributions", tuple(super_weights), key_of(ids), tuple(positions)),
            lambda: self._contributions(super_weights, ids, positions),
        )

    def _contributions(
        self, super_weights: Sequence[SuperWeight], ids: torch.Tensor, positions: Sequence[int]
    ) -> tuple[float, ...]:
        inputs, downs = self._inputs({weight.layer for weight in super_weights}, ids), self.body.down_projections
        return tuple(
            float(contributions(downs[w.layer], inputs[w.layer][position], w.row, [w.column])[0])
            for w, position in zip(super_weights, positions, strict=True)
        )

    def sinks(self, super_weights: Sequence[SuperWeight], ids: torch.Tensor) -> tuple[int, ...]:
        """The token of the prompt at which each scalar's input is largest."""

        def compute() -> tuple[int, ...]:
            inputs = self._inputs({weight.layer for weight in super_weights}, ids)
            return tuple(int(inputs[w.layer][:, w.column].float().abs().argmax()) for w in super_weights)

        return self.once(("sinks", tuple(super_weights), key_of(ids)), compute)

    def written(self, super_weights: Sequence[SuperWeight]) -> tuple[float, ...]:
        """What each scalar writes on the default prompt, at the token where its input is largest."""
        ids = self.prompt_ids()
        return self.contributions(super_weights, ids, self.sinks(super_weights, ids))

    def places(self, super_weights: Sequence[SuperWeight]) -> tuple[SuperActivation, ...]:
        """The super activations these scalars write: one per row, at its onset, on the default prompt."""
        return self.once(("places", tuple(super_weights)), lambda: self._places(super_weights))

    def _places(self, super_weights: Sequence[SuperWeight]) -> tuple[SuperActivation, ...]:
        residual = self.residuals(self.prompt_ids())
        return tuple(
            place_of(residual, row, min(weight.layer for weight in super_weights if weight.row == row))
            for row in dict.fromkeys(weight.row for weight in super_weights)
        )

    def profile(self, place: SuperActivation, ids: torch.Tensor) -> tuple[float, ...]:
        """What stands in the place's channel and token after every layer, on a prompt ``(1, T)``; shown, not judged."""

        def compute() -> tuple[float, ...]:
            return tuple(self.residuals(ids)[:, place.position, place.channel].tolist())

        return self.once(("profile", place, key_of(ids)), compute)

    def intact(self) -> tuple[torch.Tensor, Predictions]:
        """One pass over the windows: the nats of every token, float64 ``(B, T - 1)``, and its likeliest tokens."""
        return self.once("intact", lambda: predict(self.live, self.windows()))

    def against(self, reference: Subject) -> tuple[torch.Tensor, Drift]:
        """One pass over the reference's windows: the nats of every token, and the drift of the predictions."""
        ids, expected = reference.windows(), reference.intact()[1]
        return self.beside(reference, ("against", key_of(ids)), lambda: compare(self.live, ids, expected))

    def noise(self) -> tuple[float, float]:
        """The floor under its numbers: of the mean nats per token, and of a value of the residual stream, as a part of it.

        A window scored alone against the same one among others, and a prompt alone against three of it in a batch; a
        value is also never finer than the dtype it is computed in.
        """

        def compute() -> tuple[float, float]:
            ids, prompt = self.windows(), self.prompt_ids()
            alone, among = token_nats(self.live, ids[:1])[0], self.intact()[0][0]
            last, single = len(self.body.layers) - 1, self.residuals(prompt)[-1].double()
            with evaluating(self.live), observe(self.live, residual=[last], stop=True) as sight:
                self.live(prompt.repeat(3, 1).to(device_of(self.live)), use_cache=False)
            several, step = sight.residual[last][0].cpu().double(), torch.finfo(sight.residual[last].dtype).eps
            moved = float((several - single).norm() / single.norm().clamp_min(1e-30))
            return abs(float(alone.mean() - among.mean())), max(step, moved)

        return self.once("noise", compute)

    def portrait(self) -> Portrait:
        """What its kin are known by."""
        return self.once("portrait", lambda: portrait(self.live))

    def sketch(self) -> Sketch:
        """What is seen of its matrices to tell what was done to it."""
        return self.once("sketch", lambda: sketch(self.body))

    def row(self, weight: SuperWeight) -> torch.Tensor | None:
        """The row of the matrix a super weight stands in, float32 ``(F,)``, None where it is packed."""

        def compute() -> torch.Tensor | None:
            tensor = plain_weight(self.body.down_projections[weight.layer])
            return None if tensor is None else tensor[weight.row].to("cpu", torch.float32, copy=True)

        return self.once(("row", weight), compute)

    def sample_ids(self) -> tuple[tuple[int, ...], ...]:
        """The ids of two short texts, by which tokenizers are compared; nothing without a tokenizer."""

        def compute() -> tuple[tuple[int, ...], ...]:
            if self.tokenizer is None:
                return ()
            return tuple(tuple(self.tokenizer(text)["input_ids"]) for text in SAMPLES)

        return self.once("tokens", compute)

    @property
    def parameters(self) -> int:
        """How many parameters it has, as far as they are counted before packing."""
        return self.once("parameters", lambda: sum(parameter.numel() for parameter in self.live.parameters()))

    @property
    def vocabulary(self) -> int:
        """The size of the vocabulary V."""
        return self.once("vocabulary", lambda: vocabulary_of(self.live) or 2**17)

    @property
    def has_bos(self) -> bool:
        """Whether its prompts begin with BOS."""
        return self.once("bos", lambda: self.tokenizer is not None and adds_bos(self.tokenizer))

    @property
    def context(self) -> int | None:
        """How many tokens it can take at once, None where it does not tell."""

        def compute() -> int | None:
            longest = getattr(getattr(self.live, "config", None), "max_position_embeddings", None)
            return int(longest) if longest else None

        return self.once("context", compute)

    def own_text(self) -> str:
        """The text that it is measured on, where no token ids were given."""
        return evaluation_text() if self.text is None else self.text


def subject_of(
    thing: Any,
    *,
    tokenizer: Any = None,
    token_ids: torch.Tensor | None = None,
    role: str = "model",
) -> Subject:
    """What an assertion was given, as a subject: a ``Subject``, what ``load`` returns, or a bare module.

    A ``Subject`` that is to be measured on other tokens than its own remembers nothing of what it was measured on; its
    weights stay the other's.
    """
    from torch import nn

    if isinstance(thing, Subject) and tokenizer is None and token_ids is None:
        return thing
    if isinstance(thing, Subject):
        memo = None if thing.memo is None else {key: thing.memo[key] for key in WEIGHTS_ALONE if key in thing.memo}
        found = replace(thing, tokenizer=tokenizer or thing.tokenizer, token_ids=token_ids, memo=memo)
        return found if thing.again is None else replace(found, module=None, again=None, owner=thing)
    if isinstance(thing, Loaded):
        return Subject(
            thing.name,
            thing.model,
            tokenizer or thing.tokenizer,
            token_ids,
            thing.text,
            thing.scheme,
            memo={},
            source=thing.source,
        )
    if isinstance(thing, nn.Module):
        name = str(getattr(getattr(thing, "config", None), "name_or_path", "") or type(thing).__name__)
        return Subject(_short(name.rstrip("/")), thing, tokenizer, token_ids, memo={})
    raise OptionError(
        f"a {role}: what load() returns, or a torch module", f"{type(thing).__name__}", "swcheck.load('tiny')"
    )


def _short(name: str) -> str:
    """The last part of a hub id or of a path; all of a path that merely ends like a known model's name."""
    last = name.rsplit("/", 1)[-1]
    return name if index.find(last) and (hub.existing(name) is not None or not index.find(name)) else last


def known(name: str) -> tuple[SuperWeight, ...]:
    """The published super weights of a model of this name; nothing for a name the index does not have."""
    entry = index.find(name) if name else None
    return entry.super_weights if entry else ()


def key_of(ids: torch.Tensor) -> tuple[int, ...]:
    """What token ids are remembered by."""
    return (*ids.shape, hash(tuple(ids.flatten().tolist())))
