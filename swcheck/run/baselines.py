"""The baselines of a run: read in place of a reference, or written for a review."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from swcheck.base.evaluation_text import evaluation_text, read_text
from swcheck.base.tiers import STANDARD, tier_named
from swcheck.loading import engines
from swcheck.run.settings import Settings, baseline_path

if TYPE_CHECKING:
    from swcheck.superweights.subject.subject import Subject


def recorded_reference(settings: Settings, spec: str) -> Subject:
    """Return the reference as its baseline has it, without weights.

    Raises ``CheckpointError`` for a file that is none, ``WrongModelError`` for one of other weights, text or tokenizer.
    """
    from swcheck.gate.baseline.file import read_baseline
    from swcheck.gate.baseline.identity import check_identity

    path = baseline_path(settings, spec)
    subject, facts = read_baseline(path.read_text(encoding="utf-8"), str(path))
    subject.notes = tuple(check_identity(facts, identity(settings, spec), str(path)))
    subject.name = settings.name_of(spec)
    subject.tier = tier_named(str(facts.get("tier", STANDARD.name)))
    subject.text, subject.text_label = measured_text(settings, engines.text_of(spec)), str(settings.text or "")
    subject.source, subject.limits = str(engines.directory_of(spec) or ""), settings.given_for(spec)
    return subject


def recorded_text(settings: Settings, spec: str, reference: Subject) -> str:
    """Return the baseline of a reference, measured whole, as the text of its file."""
    from swcheck.gate.baseline.file import baseline_text
    from swcheck.gate.baseline.measure import measure_own_checks

    measure_own_checks(reference)
    return baseline_text(reference, {**identity(settings, spec), "tier": reference.tier.name})


def identity(settings: Settings, spec: str) -> dict[str, Any]:
    """Return what a baseline of ``spec`` is of: weights, text and conditions, as far as known without loading a model."""
    import torch

    from swcheck.gate.baseline.identity import revision_of, tokenizer_identity, weights_identity

    directory = engines.directory_of(spec)
    text = measured_text(settings, engines.text_of(spec)) or evaluation_text()
    tokenizer = engines.tokenizer_of(spec, trust_remote_code=settings.trust_remote_code)
    return {
        "weights": None if directory is None else weights_identity(directory),
        "revision": None if directory is None else revision_of(directory),
        "tokenizer": tokenizer_identity(tokenizer),
        "text": hashlib.sha256(text.encode()).hexdigest(),
        "tier": settings.tier,
        "device": engines.device_of(settings.device),
        "dtype": settings.dtype or "checkpoint",
        "torch": str(torch.__version__),
        "transformers": version("transformers"),
        "swcheck": version("swcheck"),
    }


def measured_text(settings: Settings, own: str | None) -> str | None:
    """Return the text that a model with a text of its ``own`` is measured on; None means the evaluation text."""
    return own if settings.text is None else read_text(settings.text)
