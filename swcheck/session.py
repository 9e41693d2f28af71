"""What lives for one run: models, and the verdicts about them. No pytest in it, and no torch before a model.

A model is loaded when it is first needed and kept until another reference takes its place. Every number of a run is
computed once: the subjects of a session remember.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from swcheck import engines
from swcheck.errors import OptionError
from swcheck.records import Loaded, Verdict
from swcheck.settings import Settings, baseline_path, tier_of
from swcheck.text import evaluation_text, read_text
from swcheck.tiers import (
    STANDARD,
    Tier,
    tier_named,
)

if TYPE_CHECKING:
    from swcheck.subject import Subject


TURNS: Final = 12
"""So many times models are loaded again in a run, more than a red gate asks for, before two small ones stay in memory."""


class Session:
    """The models and verdicts of one run."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.verdicts: list[Verdict] = []
        self.baselines: dict[Path, str] = {}
        self._reference: tuple[str, Subject] | None = None
        self._candidate: tuple[str, Subject] | None = None
        self._turns = 0

    def reference(self, spec: str) -> Subject:
        """The reference ``spec``, loaded now if it is not the one at hand, whose weights are then freed."""
        if self._reference is None or self._reference[0] != spec:
            self.free_reference()
            self._reference = (spec, self._recorded(spec) if self.settings.recorded else self._load(spec))
        return self._reference[1]

    def candidate(self, spec: str | None = None) -> Subject:
        """The candidate ``spec``, or the first of this run, loaded now if it is not the one at hand, which is freed.

        Raises ``OptionError`` where none was given.
        """
        if spec is None:
            if not self.settings.candidates:
                raise OptionError("a candidate", "none was given", "--candidate=DIRECTORY")
            spec = self.settings.candidates[0]
        if self._candidate is None or self._candidate[0] != spec:
            self.free_candidate()
            models = self.settings.models
            self._candidate = (spec, self._load(spec, models[0] if models else None))
        return self._candidate[1]

    def tier(self, spec: str) -> Tier:
        """How much is measured of a reference and of its candidates."""
        if self._reference is not None and self._reference[0] == spec:
            return self._reference[1].tier
        return tier_of(self.settings, spec)

    def take(self, *, failed: bool) -> list[Verdict]:
        """The verdicts since the last call. A red one counts only if the test ``failed``: else it was expected."""
        taken = [verdict for verdict in self.verdicts if failed or not verdict.red]
        self.verdicts.clear()
        return taken

    def text(self, subject: Subject) -> str:
        """The text that ``subject`` is measured on."""
        return evaluation_text() if subject.text is None else subject.text

    def free_reference(self) -> None:
        """Give the memory of the reference at hand back."""
        if self._reference is not None:
            if self.settings.update and self._reference[1].memo is not None:
                self._record(*self._reference)
            _free(self._reference[1])
        self._reference = None

    def free_candidate(self) -> None:
        """Give the memory of the candidate at hand back."""
        if self._candidate is not None:
            _free(self._candidate[1])
        self._candidate = None

    def free(self) -> None:
        """Give the memory of all models back."""
        self.free_candidate()
        self.free_reference()

    def _make_room(self) -> None:
        """Free the weights of all models before one is loaded, first or again: two need not fit.

        The reference is measured first. Should a later check ask for a number that was not taken, it is loaded again.
        """
        from swcheck.case import prepare

        subject = self._reference[1] if self._reference is not None else None
        if subject is not None and subject.module is not None and subject.again is not None:
            self._complete(subject)
            prepare(subject)
            subject.rest()
        if self._candidate is not None:
            self._candidate[1].rest()

    def _complete(self, subject: Subject) -> None:
        """Measure of a reference what a candidate is compared with, the prompts of the shipped suite among it."""
        from swcheck.baseline import complete
        from swcheck.strategies import drawn_prompts

        complete(subject, subject.once("prompts", lambda: drawn_prompts(self.settings.seed)))

    def _recorded(self, spec: str) -> Subject:
        """The reference as its baseline has it; refused where it is of other weights or another text."""
        from swcheck import baseline

        path = baseline_path(self.settings, spec)
        subject, facts = baseline.loads(path.read_text(encoding="utf-8"), str(path))
        subject.notes = tuple(baseline.check_identity(facts, self._identity(spec), str(path)))
        subject.name, subject.heard = self.settings.name_of(spec), self.verdicts.append
        subject.tier = tier_named(str(facts.get("tier", STANDARD.name)))
        subject.text, subject.named = self._text(engines.text_of(spec)), str(self.settings.text or "")
        subject.source, subject.limits = str(engines.directory_of(spec) or ""), self.settings.given_for(spec)
        return subject

    def _record(self, spec: str, subject: Subject) -> None:
        from swcheck import baseline

        self._complete(subject)
        baseline.complete_alone(subject)
        self.baselines[baseline_path(self.settings, spec)] = baseline.dumps(
            subject, {**self._identity(spec), "tier": subject.tier.name}
        )

    def _identity(self, spec: str) -> dict[str, Any]:
        """What a baseline is of: weights, text and conditions, as far as they are known without loading anything."""
        import torch

        from swcheck import baseline

        directory = engines.directory_of(spec)
        text = self._text(engines.text_of(spec)) or evaluation_text()
        return {
            "weights": None if directory is None else baseline.weights_identity(directory),
            "revision": None if directory is None else baseline.revision_of(directory),
            "tokenizer": baseline.tokenizer_identity(self._tokenizer(spec)),
            "text": hashlib.sha256(text.encode()).hexdigest(),
            "tier": self.settings.tier,
            "device": engines.device_of(self.settings.device),
            "dtype": self.settings.dtype or "checkpoint",
            "torch": str(torch.__version__),
            "transformers": version("transformers"),
            "swcheck": version("swcheck"),
        }

    def _text(self, own: str | None) -> str | None:
        """What a model with a text of its ``own`` is measured on; None means the evaluation text."""
        return own if self.settings.text is None else read_text(self.settings.text)

    def _tokenizer(self, spec: str) -> Any:
        return engines.tokenizer_of(spec, trust_remote_code=self.settings.trust_remote_code)

    def _load(self, spec: str, reference: str | None = None) -> Subject:
        from swcheck.subject import Subject

        chosen, loaded = self.settings, self._load_alone(spec, reference)
        text = self._text(loaded.text)
        name = self.settings.name_of(spec)
        return Subject(
            name,
            loaded.model,
            loaded.tokenizer,
            text=text,
            scheme=loaded.scheme,
            named=str(chosen.text or ""),
            kind=chosen.kind,
            limits=chosen.given_for(spec) if reference is None else chosen.given_for(reference, spec),
            tier=self.tier(reference or spec),
            memo={},
            again=lambda: self._load_again(spec, reference).model,
            heard=self.verdicts.append,
            source=loaded.source,
            maker=self._load_alone,
        )

    def _load_alone(self, spec: str, reference: str | None) -> Loaded:
        """A model, loaded while no other is in memory that can be loaded again."""
        self._make_room()
        return self._make(spec, reference)

    def _load_again(self, spec: str, reference: str | None) -> Loaded:
        """A model that was freed for the other one; where a suite of somebody's own asks both in turn, small ones stay."""
        self._turns += 1
        if self._turns > TURNS and self._reference is not None and self._reference[1].is_small:
            return self._make(spec, reference)
        return self._load_alone(spec, reference)

    def _make(self, spec: str, reference: str | None) -> Loaded:
        """What ``spec`` names, or what an engine makes of ``reference``, under the wishes of this run."""
        return engines.load(
            spec,
            reference=reference,
            device=self.settings.device,
            dtype=self.settings.dtype,
            device_map=self.settings.device_map,
            trust_remote_code=self.settings.trust_remote_code,
            offline=self.settings.offline,
        )


def _free(subject: Subject) -> None:
    """Give back the weights, and what is remembered of them."""
    if subject.memo is not None:
        subject.memo.clear()
    subject.discard()
