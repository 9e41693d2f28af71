"""Reads a baseline file in place of a reference, or measures a reference for a new one that is to be reviewed."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from swcheck.base.evaluation_text import evaluation_text
from swcheck.base.reading.text_file import read_text
from swcheck.base.tiers import STANDARD, tier_named
from swcheck.loading import engines
from swcheck.run.settings import Settings, baseline_path

if TYPE_CHECKING:
    from swcheck.superweights.subject.subject import Subject


def reference_from_baseline(settings: Settings, spec: str) -> Subject:
    """Return the reference with the measurements of its baseline file, and without weights.

    Raises ``CheckpointError`` if the file is not a baseline, and ``WrongModelError`` if it was measured with other
    weights, another text, another tokenizer or in another tier.
    """
    from swcheck.base.reading.bounded import read_bytes
    from swcheck.gate.baseline.document import MOST_READ
    from swcheck.gate.baseline.file import read_baseline
    from swcheck.gate.baseline.identity import check_identity

    path = baseline_path(settings, spec)
    subject, facts = read_baseline(read_bytes(path, MOST_READ, f"baseline {path}"), str(path))
    now = {"model": settings.name_of(spec), **baseline_facts(settings, spec)}
    subject.notes = tuple(check_identity(facts, now, str(path)))
    subject.name = settings.name_of(spec)
    subject.tier = tier_named(str(facts.get("tier", STANDARD.name)))
    subject.text, subject.text_label = chosen_text(settings, engines.text_of(spec)), str(settings.text or "")
    subject.source, subject.limits = str(engines.directory_of(spec) or ""), settings.given_limits_for(spec)
    return subject


def measure_baseline_text(settings: Settings, spec: str, reference: Subject) -> str:
    """Measure everything that a baseline of ``reference`` holds, and return the text of the file."""
    from swcheck.gate.baseline.file import baseline_text
    from swcheck.gate.baseline.measure import measure_own_checks

    measure_own_checks(reference)
    return baseline_text(reference, {**baseline_facts(settings, spec), "tier": reference.tier.name})


def baseline_facts(settings: Settings, spec: str) -> dict[str, Any]:
    """Return what identifies a baseline of ``spec``: weights, tokenizer, text, tier, device, dtype and versions.

    No model is loaded. A value that is not known without its files on this machine is None.
    """
    import torch

    from swcheck.gate.baseline.identity import revision_of, tokenizer_identity, weights_identity

    directory = engines.directory_of(spec)
    text = chosen_text(settings, engines.text_of(spec)) or evaluation_text()
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


def chosen_text(settings: Settings, own: str | None) -> str | None:
    """Return the text that perplexity is measured on: ``--swcheck-text``, else the model's ``own`` text.

    None means the package's evaluation text.
    """
    return own if settings.text is None else read_text(settings.text)
