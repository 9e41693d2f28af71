"""What a run was asked for: checked, priced and fetched before anything is loaded. No torch, except to try a device."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from swcheck.base.errors import OptionError, SwcheckError
from swcheck.base.evaluation_text import read_text
from swcheck.base.formatting import format_duration, format_size
from swcheck.base.limits import DEFAULTS, KINDS
from swcheck.base.output_files import check_writable
from swcheck.base.records import Limit
from swcheck.base.tiers import STANDARD, Tier, default_tier, tier_named
from swcheck.loading import engines, published_index, tiny
from swcheck.loading.checkpoint_size import checkpoint_size
from swcheck.run import limit_overrides
from swcheck.run.cost_estimate import estimated_seconds, measured_rate, window_passes
from swcheck.run.limit_overrides import Override

COLLAPSING: Final = frozenset({published_index.Status.CRITICAL, published_index.Status.JOINT})
"""What is published of a weight that a model is known to hang on."""


@dataclass(frozen=True)
class Settings:
    """What a run was asked for, with where each value came from ("command line", "environment", "ini")."""

    models: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()
    device: str | None = None
    dtype: str | None = None
    text: Path | None = None
    tier: str | None = None
    overrides: tuple[Override, ...] = ()
    json: Path | None = None
    trust_remote_code: bool = False
    offline: bool = False
    allow_none: bool = False
    baseline: Path | None = None
    update: bool = False
    accept: bool = False
    kind: str = "auto"
    device_map: str | None = None
    seed: int = 0
    origins: Mapping[str, str] = field(default_factory=dict)

    @property
    def specs(self) -> tuple[str, ...]:
        """All models of this run."""
        return (*self.models, *self.candidates)

    @property
    def recorded(self) -> bool:
        """Whether baselines stand for the references."""
        return self.baseline is not None and not self.update

    @property
    def loaded(self) -> tuple[str, ...]:
        """All that has to be loaded in the course of this run: a reference with a baseline only to make a candidate of."""
        if self.recorded and not any(map(engines.needs_reference, self.candidates)):
            return self.candidates
        return self.specs

    def name_of(self, spec: str) -> str:
        """What a model is called in ids and tables: its name, or all of it where two have the same name."""
        names = [engines.name_of(other) for other in self.specs]
        name = engines.name_of(spec)
        return spec if names.count(name) > 1 else name

    def given_for(self, spec: str, candidate: str | None = None) -> Mapping[str, Limit]:
        """The limits that were asked for in place of defaults, for one model or for a candidate beside it."""
        return {name: one.limit for name, one in limit_overrides.ruling(self.overrides, spec, candidate).items()}

    def limits_for(self, spec: str, candidate: str | None = None) -> Mapping[str, Limit]:
        """The limits for one model, or for a candidate beside it.

        Where nobody has published that the model collapses, how far it does is only reported.
        """
        given, known = self.given_for(spec, candidate), published_index.find(spec)
        expected = spec in tiny.CHECKPOINTS or (
            known and any(c.sound and c.status in COLLAPSING for c in known.coordinates)
        )
        reported = {"collapse": Limit(0.0, None, "nothing is published to hold it against: reported")}
        return {**DEFAULTS, **({} if expected else reported), **given}


def read_settings(values: Mapping[str, Any], origins: Mapping[str, str]) -> Settings:
    """Settings out of raw values by option name, every name in them checked before anything is loaded.

    Raises a worded error for the first value that makes no sense; neither torch nor transformers is imported, except
    to try a device.
    """
    for name, value in values.items():
        parts = [part for place in value.values() for part in place] if isinstance(value, Mapping) else value
        if value == "" or (isinstance(parts, (list, tuple)) and not all(part.strip() for part in parts)):
            raise OptionError(f"--swcheck-{name}", "an empty value", "give it a value, or leave the option out")
    models, candidates = tuple(values.get("model") or ()), tuple(values.get("candidate") or ())
    if candidates and len(models) != 1 and (models or origins.get("candidate") == "command line"):
        found = f"{len(models)} models: {', '.join(models)}" if models else "no model"
        raise OptionError("a candidate with one reference", found, "pytest --model=REFERENCE --candidate=CANDIDATE")
    settings = Settings(
        models=models,
        candidates=candidates if models else (),
        device=values.get("device"),
        dtype=values.get("dtype"),
        text=_path(values.get("text")),
        tier=values.get("tier"),
        overrides=tuple(
            one for origin, texts in (values.get("limit") or {}).items() for one in limit_overrides.read(texts, origin)
        ),
        json=_path(values.get("json")),
        trust_remote_code=bool(values.get("trust_remote_code")),
        offline=bool(values.get("offline")),
        allow_none=bool(values.get("allow_none")),
        baseline=_path(values.get("baseline")),
        update=bool(values.get("update")),
        accept=bool(values.get("accept")),
        kind=values.get("kind") or "auto",
        device_map=values.get("device_map"),
        origins=origins,
    )
    _check(settings)
    return settings


def _check(settings: Settings) -> None:
    for spec in settings.loaded:
        engines.check(spec, trust_remote_code=settings.trust_remote_code, offline=settings.offline)
    _check_once(settings.models, "model")
    _check_once(settings.candidates, "candidate")
    limit_overrides.check_spoken_to(settings.overrides, settings.models, settings.candidates)
    if settings.kind not in KINDS:
        raise OptionError(f"--swcheck-kind={settings.kind}", f"known: {', '.join(KINDS)}", "leave it out for auto")
    if settings.dtype is not None:
        engines.check_dtype(settings.dtype)
    if settings.device is not None:
        engines.check_device(settings.device)
    if settings.device_map is not None:
        if settings.device is not None:
            both = f"--swcheck-device={settings.device} --swcheck-device-map={settings.device_map}"
            raise OptionError(both, "two answers to where a model is put", "give one of the two")
        engines.check_device_map(settings.device_map)
    if settings.tier is not None:
        tier_named(settings.tier)
    if settings.text is not None:
        read_text(settings.text)
    if settings.json is not None:
        check_writable(settings.json)
    _check_baseline(settings)


def _check_once(specs: Sequence[str], what: str) -> None:
    meant = [engines.meaning(spec) for spec in specs]
    for spec, meaning in zip(specs, meant, strict=True):
        if meant.count(meaning) > 1:
            raise OptionError(f"--swcheck-{what}", f"{spec} is given twice", f"give each {what} once")


def _check_baseline(settings: Settings) -> None:
    if settings.baseline is None:
        if settings.update:
            raise OptionError("--swcheck-update", "no folder to write to", "--swcheck-baseline=DIR --swcheck-update")
        return
    for spec in settings.models:
        path = baseline_path(settings, spec)
        if settings.update:
            check_writable(path)
        elif not path.is_file():
            raise OptionError(f"baseline of {spec}", f"no file {path}", "--swcheck-update writes it, for a review")


def baseline_path(settings: Settings, spec: str) -> Path:
    """The file of one reference in the folder of baselines."""
    name = "".join(mark if mark.isalnum() or mark in "-_." else "-" for mark in settings.name_of(spec))
    return (settings.baseline or Path()) / f"{name.strip('-.')}.json"


def tier_of(settings: Settings, spec: str) -> Tier:
    """The tier that was asked for, else the one for a model of this size where it runs."""
    if settings.tier is not None:
        return tier_named(settings.tier)
    if settings.recorded:
        facts = json.loads(baseline_path(settings, spec).read_text(encoding="utf-8"))
        return tier_named(str(facts.get("tier", STANDARD.name)))
    directory = engines.directory_of(spec)
    weights = None if directory is None else checkpoint_size(directory)
    return STANDARD if weights is None else default_tier(weights.parameters, engines.device_of(settings.device))


def sized(settings: Settings, spec: str) -> str:
    """A model as it was asked for, with its size on disk where that is known, or the baseline that stands for it."""
    if spec in settings.models and settings.recorded:
        return f"the baseline of {spec}"
    with suppress(SwcheckError, OSError, ValueError, KeyError):  # what is wrong with it is said where it is loaded
        directory = engines.directory_of(spec)
        weights = None if directory is None else checkpoint_size(directory)
        return spec if weights is None else f"{spec} ({format_size(weights.size)})"
    return spec


def estimate(settings: Settings, reference: str, loading: Sequence[str]) -> str:
    """What the work on ``loading`` will cost, as far as it can be told: tier, windows, passes, and about how long.

    The time is that of the matrix products, at the rate that this machine shows on the model's largest one.
    """
    references = 0 if settings.recorded else sum(spec == reference for spec in loading)
    candidates = sum(spec != reference for spec in loading)
    with suppress(Exception):  # an estimate is no reason to fail
        directory = engines.directory_of(reference)
        weights = None if directory is None else checkpoint_size(directory)
        if weights is None or not references + candidates:
            return ""
        tier = tier_of(settings, reference)
        count, length = tier.shape(weights.context)
        often = window_passes(tier, references=references, candidates=candidates)
        rate = measured_rate(weights, engines.device_of(settings.device), settings.dtype)
        span = estimated_seconds(weights, tier, rate, references=references, candidates=candidates)
        return (
            f"{tier.name} tier: {count} windows of {length} tokens, about {often:.1f} passes, {format_duration(span)}"
        )
    return ""


def fetch(settings: Settings) -> None:
    """Download what is not here yet; raises a worded error where that is impossible."""
    for spec in settings.loaded:
        engines.fetch(spec, offline=settings.offline)


def forbidding_downloads() -> Callable[[], None]:
    """Say it to every library that asks the environment; returns what takes it back."""
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"

    def take_back() -> None:
        if before is None:
            os.environ.pop("HF_HUB_OFFLINE", None)
        else:
            os.environ["HF_HUB_OFFLINE"] = before

    return take_back


def _path(value: str | None) -> Path | None:
    return None if value is None else Path(value).expanduser().absolute()
