"""The models of one run and the verdicts about them. No pytest in it, and no torch before the first model.

A model is loaded when it is first needed, and one model is in memory at a time: the reference is measured and freed
before its candidate is loaded. Every number of a run is computed once, since its subjects remember.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from swcheck.base.errors import OptionError
from swcheck.base.evaluation_text import evaluation_text
from swcheck.base.records import Loaded, Verdict
from swcheck.base.tiers import Tier
from swcheck.loading import engines
from swcheck.run.baselines import measured_text, recorded_reference, recorded_text
from swcheck.run.settings import Settings, baseline_path, tier_of

if TYPE_CHECKING:
    from torch import nn

    from swcheck.superweights.subject.subject import Subject


RELOADS: Final = 12
"""After so many reloads in a run, more than a red gate takes, two small models stay in memory together."""


class Session:
    """The models and verdicts of one run. ``baselines`` are the texts of baseline files to write, by path."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.verdicts: list[Verdict] = []
        self.baselines: dict[Path, str] = {}
        self._reference: tuple[str, Subject] | None = None
        self._candidate: tuple[str, Subject] | None = None
        self._reloads = 0

    def reference(self, spec: str) -> Subject:
        """Return the reference ``spec``, loaded unless it is the present one; the present one is freed first."""
        if self._reference is None or self._reference[0] != spec:
            self.free_reference()
            self._reference = (spec, self._recorded(spec) if self.settings.recorded else self._load(spec))
        return self._reference[1]

    def candidate(self, spec: str | None = None) -> Subject:
        """Return the candidate ``spec``, or the first of this run, loaded unless it is the present one.

        Raises ``OptionError`` where the run has none.
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

    def take(self, *, failed: bool) -> list[Verdict]:
        """Return the verdicts since the last call. A red one counts only if the test ``failed``: else it was expected."""
        taken = [verdict for verdict in self.verdicts if failed or not verdict.red]
        self.verdicts.clear()
        return taken

    def text(self, subject: Subject) -> str:
        """Return the text that ``subject`` is measured on."""
        return evaluation_text() if subject.text is None else subject.text

    def free_reference(self) -> None:
        """Free the present reference; with ``--swcheck-update`` its baseline is measured and kept first."""
        if self._reference is not None:
            spec, subject = self._reference
            if self.settings.update and subject.memory is not None:
                self._measure(subject)
                self.baselines[baseline_path(self.settings, spec)] = recorded_text(self.settings, spec, subject)
            _discard(subject)
        self._reference = None

    def free_candidate(self) -> None:
        """Free the present candidate."""
        if self._candidate is not None:
            _discard(self._candidate[1])
        self._candidate = None

    def free(self) -> None:
        """Free all models."""
        self.free_candidate()
        self.free_reference()

    def _make_room(self) -> None:
        """Free the weights of all models before one is loaded: two need not fit.

        The reference is measured first. If a later check asks for another number of it, it is loaded again.
        """
        from swcheck.gate.diagnosis.evidence.reference_matrices import measure_for_diagnosis

        subject = self._reference[1] if self._reference is not None else None
        if subject is not None and subject.held.in_memory and subject.held.is_reloadable:
            self._measure(subject)
            measure_for_diagnosis(subject)
            subject.free_until_needed()
        if self._candidate is not None:
            self._candidate[1].free_until_needed()

    def _measure(self, reference: Subject) -> None:
        """Measure what a candidate is compared with, on the prompts of the shipped suite as well."""
        from swcheck.gate.baseline.measure import measure_for_candidates
        from swcheck.strategies import drawn_prompts
        from swcheck.superweights.measurements.inputs import DRAWN_PROMPTS

        prompts = DRAWN_PROMPTS.recall(reference, (), lambda: drawn_prompts(self.settings.seed))
        measure_for_candidates(reference, prompts)

    def _recorded(self, spec: str) -> Subject:
        subject = recorded_reference(self.settings, spec)
        subject.on_verdict = self.verdicts.append
        return subject

    def _tier(self, spec: str) -> Tier:
        """How much is measured of a reference and of its candidates."""
        if self._reference is not None and self._reference[0] == spec:
            return self._reference[1].tier
        return tier_of(self.settings, spec)

    def _load(self, spec: str, reference: str | None = None) -> Subject:
        from swcheck.superweights.subject.held_model import HeldModel
        from swcheck.superweights.subject.memory import Memory
        from swcheck.superweights.subject.subject import Subject

        chosen, loaded = self.settings, self._load_alone(spec, reference)
        return Subject(
            chosen.name_of(spec),
            HeldModel(loaded.model, reload=lambda: self._reload(spec, reference)),
            loaded.tokenizer,
            text=measured_text(chosen, loaded.text),
            scheme=loaded.scheme,
            text_label=str(chosen.text or ""),
            kind=chosen.kind,
            limits=chosen.given_for(spec) if reference is None else chosen.given_for(reference, spec),
            tier=self._tier(reference or spec),
            memory=Memory(),
            on_verdict=self.verdicts.append,
            source=loaded.source,
            remake=self._load_alone,
        )

    def _load_alone(self, spec: str, reference: str | None) -> Loaded:
        """Load a model while no other is in memory that can be loaded again."""
        self._make_room()
        return self._load_beside(spec, reference)

    def _reload(self, spec: str, reference: str | None) -> nn.Module:
        """Load a model that was freed for another one.

        Where a user's own suite asks both in turn, small ones stay in memory together after ``RELOADS``.
        """
        from swcheck.superweights.measurements.weights import is_small

        self._reloads += 1
        keep_both = self._reloads > RELOADS and self._reference is not None and is_small(self._reference[1])
        loaded = self._load_beside(spec, reference) if keep_both else self._load_alone(spec, reference)
        module: nn.Module = loaded.model
        return module

    def _load_beside(self, spec: str, reference: str | None) -> Loaded:
        """Load what ``spec`` names, or what an engine makes of ``reference``, as the settings say."""
        return engines.load(
            spec,
            reference=reference,
            device=self.settings.device,
            dtype=self.settings.dtype,
            device_map=self.settings.device_map,
            trust_remote_code=self.settings.trust_remote_code,
            offline=self.settings.offline,
        )


def _discard(subject: Subject) -> None:
    """Free the weights for good, and forget what was measured."""
    if subject.memory is not None:
        subject.memory.clear()
    subject.discard()
