"""Holds the models of one run and the verdicts about them. Imports no pytest, and torch only with the first model.

A model is loaded when it is first needed. One model is in memory at a time: the reference is measured and freed before
its candidate is loaded. Every number of a run is computed once, because each ``Subject`` remembers its measurements.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from swcheck.base.errors import OptionError
from swcheck.base.evaluation_text import evaluation_text
from swcheck.base.records import Loaded, Verdict
from swcheck.base.terminal.progress import Bar
from swcheck.base.terminal.visible import visible_line
from swcheck.base.tiers import Tier
from swcheck.loading import engines
from swcheck.loading.runtime import Runtime
from swcheck.loading.streaming.free_memory import give_back_free_memory
from swcheck.run.baselines import chosen_text, measure_baseline_text, reference_from_baseline
from swcheck.run.reference_cache import ReferenceCache
from swcheck.run.settings import Settings, baseline_path, tier_of

if TYPE_CHECKING:
    from torch import nn

    from swcheck.superweights.subject.memory import Memory
    from swcheck.superweights.subject.subject import Subject


RELOADS_BEFORE_KEEPING_BOTH: Final = 12
"""After more reloads than this in one run, more than a red gate takes, two small models stay in memory together."""


class Session:
    """The models and verdicts of one run. ``baselines`` has the texts of the baseline files to write, by path."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.verdicts: list[Verdict] = []
        self.baselines: dict[Path, str] = {}
        self._reference: tuple[str, Subject] | None = None
        self._candidate: tuple[str, Subject] | None = None
        self._reloads = 0
        self._cache: ReferenceCache | None = None

    def reference(self, spec: str) -> Subject:
        """Return the reference ``spec``. If it is not the current one, that is freed and this one is loaded."""
        if self._reference is None or self._reference[0] != spec:
            self.free_reference()
            self._reference = (spec, self._obtain(spec))
        return self._reference[1]

    def candidate(self, spec: str | None = None) -> Subject:
        """Return the candidate ``spec``, or the first of this run for None; freed and loaded as in ``reference``.

        Raises ``OptionError`` if the run has no candidate.
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

    def take_verdicts(self, *, failed: bool) -> list[Verdict]:
        """Return the verdicts since the last call, without red ones if the test did not fail, which expected them."""
        taken = [verdict for verdict in self.verdicts if failed or not verdict.red]
        self.verdicts.clear()
        return taken

    def text(self, subject: Subject) -> str:
        """Return the text that ``subject`` is measured on."""
        return evaluation_text() if subject.text is None else subject.text

    def free_reference(self) -> None:
        """Free the current reference; with ``--swcheck-update``, measure its baseline for ``baselines`` first."""
        if self._reference is not None:
            spec, subject = self._reference
            if self.settings.update and subject.memory is not None:
                _measure_reference(subject, self.settings.seed)
                self.baselines[baseline_path(self.settings, spec)] = measure_baseline_text(self.settings, spec, subject)
            if self._cache is not None and subject.memory is not None and subject.memory.values:
                self._cache.write(subject)
            _discard(subject)
        self._reference = None

    def free_candidate(self) -> None:
        """Free the current candidate."""
        if self._candidate is not None:
            _discard(self._candidate[1])
        self._candidate = None

    def free(self, *, measure: bool = True) -> None:
        """Free all models. With ``measure`` False the reference is not measured for its baseline first."""
        self.free_candidate()
        if not measure and self._reference is not None:
            self._cache = None
            _discard(self._reference[1])
            self._reference = None
        self.free_reference()
        give_back_free_memory()

    def _make_room(self) -> None:
        """Free the weights of all models before another one is loaded: two may not fit into memory.

        The reference is measured first. If a later check needs another number of it, it is loaded again.
        """
        subject = self._reference[1] if self._reference is not None else None
        if subject is not None and subject.held.in_memory and subject.held.is_reloadable:
            _measure_for_gate(subject, self.settings.seed)
            if self._cache is not None:
                self._cache.write(subject)
            subject.free_until_needed()
        if self._candidate is not None:
            self._candidate[1].free_until_needed()

    def _tier(self, spec: str) -> Tier:
        """Return the tier of a reference, which is also that of its candidates."""
        if self._reference is not None and self._reference[0] == spec:
            return self._reference[1].tier
        return tier_of(self.settings, spec)

    def _obtain(self, spec: str) -> Subject:
        """Return a reference from its baseline, or as an earlier run or another worker has measured it; else load it."""
        if self.settings.uses_baselines:
            subject = reference_from_baseline(self.settings, spec)
            subject.on_verdict = self.verdicts.append
            return subject
        cache = self._cache = ReferenceCache(self.settings, spec)
        with cache.measured_once():
            kept = cache.read()
            if kept is None:
                subject = self._load(spec)
                if cache.shared is not None:
                    _measure_for_workers(subject, self.settings)
                    cache.write(subject)
                return subject
        memory, facts = kept
        return self._subject(spec, None, _without_weights(self.settings, spec, facts), memory)

    def _load(self, spec: str, reference: str | None = None) -> Subject:
        from swcheck.superweights.subject.memory import Memory

        return self._subject(spec, reference, self._load_alone(spec, reference), Memory())

    def _subject(self, spec: str, reference: str | None, loaded: Loaded, memory: Memory) -> Subject:
        from swcheck.superweights.subject.held_model import HeldModel
        from swcheck.superweights.subject.subject import Subject

        return Subject(
            held=HeldModel(loaded.model if reference else _module_of(loaded), lambda: self._reload(spec, reference)),
            tier=self._tier(reference or spec),
            memory=memory,
            on_verdict=self.verdicts.append,
            remake=self._load_alone,
            **_fields(self.settings, spec, reference, loaded),
        )

    def _load_alone(self, spec: str, reference: str | None) -> Loaded:
        """Load a model, after all models that can be loaded again are freed."""
        self._make_room()
        return _load_beside(self.settings, spec, reference)

    def _reload(self, spec: str, reference: str | None) -> nn.Module:
        """Load a model again that was freed to make room for another one.

        If tests use reference and candidate in turn, small ones both stay in memory after
        ``RELOADS_BEFORE_KEEPING_BOTH`` reloads.
        """
        from swcheck.superweights.measurements.weights import is_small

        self._reloads += 1
        known = self._reference
        if self._reloads <= RELOADS_BEFORE_KEEPING_BOTH or known is None or not is_small(known[1]):
            self._make_room()
        module: nn.Module = _load_beside(self.settings, spec, reference).model
        return module


def _load_beside(settings: Settings, spec: str, reference: str | None) -> Loaded:
    """Load what ``spec`` names, or what an engine makes of ``reference``; models in memory stay there."""
    with Bar(f"loading {visible_line(spec)}"):
        return engines.load(
            spec,
            reference=reference,
            device=settings.device,
            dtype=settings.dtype,
            device_map=settings.device_map,
            stream=settings.streams(spec),
            tensor_parallel=settings.tensor_parallel,
            trust_remote_code=settings.trust_remote_code,
            offline=settings.offline,
        )


def _measure_reference(reference: Subject, seed: int) -> None:
    """Measure the numbers that a candidate is compared with, on the prompts of the shipped suite too.

    ``seed`` is the one that the prompts are drawn with.
    """
    from swcheck.gate.baseline.measure import measure_for_candidates
    from swcheck.strategies import drawn_prompts
    from swcheck.superweights.measurements.inputs import DRAWN_PROMPTS

    prompts = DRAWN_PROMPTS.recall(reference, (), lambda: drawn_prompts(seed))
    measure_for_candidates(reference, prompts)


def _module_of(loaded: Loaded) -> nn.Module:
    """Return the module of a reference. Raises ``OptionError`` for one that runs in another program."""
    if isinstance(loaded.model, Runtime):
        found = f"it runs in {loaded.model.title}, which has no torch modules"
        raise OptionError(f"a reference, {loaded.name}", found, "give it with --candidate")
    module: nn.Module = loaded.model
    return module


def _measure_for_gate(reference: Subject, seed: int) -> None:
    """Measure everything that a candidate, and the diagnosis of a red one, is compared with."""
    from swcheck.gate.diagnosis.evidence.reference_matrices import measure_for_diagnosis

    _measure_reference(reference, seed)
    measure_for_diagnosis(reference)


def _fields(settings: Settings, spec: str, reference: str | None, loaded: Loaded) -> dict[str, Any]:
    """Return the fields of a subject that the settings and what was loaded decide."""
    return {
        "name": settings.name_of(spec),
        "tokenizer": loaded.tokenizer,
        "text": chosen_text(settings, loaded.text),
        "scheme": loaded.scheme,
        "text_label": str(settings.text or ""),
        "kind": settings.kind,
        "rank_layers": settings.layers,
        "score_in_torch": settings.in_torch,
        "cache_window": settings.cache_window,
        "sweep_shapes": settings.shapes,
        "limits": settings.given_limits_for(spec if reference is None else reference, spec if reference else None),
        "source": loaded.source,
        "unused_tensors": loaded.unused_tensors,
    }


def _without_weights(settings: Settings, spec: str, facts: Mapping[str, Any]) -> Loaded:
    """Return everything about a reference but its weights; ``facts`` are those that were kept beside its numbers."""
    return Loaded(
        None,
        engines.tokenizer_of(spec, trust_remote_code=settings.trust_remote_code),
        spec,
        text=engines.text_of(spec),
        source=str(engines.directory_of(spec) or ""),
        unused_tensors=tuple(facts["unused_tensors"]),
    )


def _measure_for_workers(reference: Subject, settings: Settings) -> None:
    """Measure what every worker of xdist asks for, while the others wait."""
    from swcheck.gate.baseline.measure import measure_own_checks

    if settings.candidates:
        _measure_for_gate(reference, settings.seed)
    else:
        measure_own_checks(reference)


def _discard(subject: Subject) -> None:
    """Free the weights so that they cannot be loaded again, and forget all measurements."""
    if subject.memory is not None:
        subject.memory.clear()
    subject.discard()
