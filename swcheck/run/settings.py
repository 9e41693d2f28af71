"""The checked option values of a run, the estimate of its cost, and the download of its models.

All of this happens before a model is loaded. Torch is imported only to test a device.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from swcheck.base.errors import OptionError, SwcheckError
from swcheck.base.formatting import format_duration, format_size
from swcheck.base.isolation import interrupts_kept
from swcheck.base.limits import DEFAULTS, KINDS
from swcheck.base.output_files import check_writable
from swcheck.base.reading.text_file import read_text
from swcheck.base.records import Limit
from swcheck.base.tiers import STANDARD, Tier, default_tier, tier_named
from swcheck.gate.baseline.document import read_document_file
from swcheck.loading import engines, published_index, tiny
from swcheck.loading.files.checkpoint_size import checkpoint_size
from swcheck.loading.streaming.streamable import too_large
from swcheck.run import limit_overrides
from swcheck.run.cost_estimate import (
    estimated_seconds,
    file_reads,
    is_swept,
    measured_rate,
    streamed_product_dtype,
    window_passes,
)
from swcheck.run.limit_overrides import Override
from swcheck.run.placement import Placement, check_placement

COLLAPSING_STATUSES: Final = frozenset({published_index.Status.CRITICAL, published_index.Status.JOINT})
"""The published statuses of super weights without which a model is known to collapse, alone or together with others."""


@dataclass(frozen=True)
class Settings:
    """The option values of a run. ``origins`` says where each was given: "command line", "environment" or "ini".

    ``models`` are the references, or the models that are tested alone. ``text``, ``tier``, ``device``, ``dtype`` and
    ``device_map`` are None where they were not given. Without ``stream`` only what does not fit into memory is streamed.
    """

    models: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()
    device: str | None = None
    dtype: str | None = None
    text: Path | None = None
    tier: str | None = None
    overrides: tuple[Override, ...] = ()
    json: Path | None = None
    markdown: Path | None = None
    html: Path | None = None
    no_step_summary: bool = False
    trust_remote_code: bool = False
    offline: bool = False
    allow_none: bool = False
    baseline: Path | None = None
    no_cache: bool = False
    update: bool = False
    accept: bool = False
    require: bool = False
    kind: str = "auto"
    device_map: str | None = None
    tensor_parallel: bool = False
    stream: bool = False
    layers: bool = False
    in_torch: bool = False
    cache_window: int | None = None
    shapes: bool = False
    seed: int = 0
    origins: Mapping[str, str] = field(default_factory=dict)

    @property
    def specs(self) -> tuple[str, ...]:
        """All models and candidates of this run."""
        return (*self.models, *self.candidates)

    @property
    def uses_baselines(self) -> bool:
        """Whether baseline files are read in place of the references: a folder was given, and no update."""
        return self.baseline is not None and not self.update

    @property
    def keeps_measurements(self) -> bool:
        """Whether what is measured of a reference is kept for the next run. The processes of torchrun would find it at different times."""
        return not (self.no_cache or self.tensor_parallel)

    @property
    def models_to_load(self) -> tuple[str, ...]:
        """The models that this run loads; a reference with a baseline only if an engine makes a candidate from it."""
        if self.uses_baselines and not any(map(engines.needs_reference, self.candidates)):
            return self.candidates
        return self.specs

    def streams(self, spec: str) -> bool | None:
        """Return whether to stream a model: True as asked for, of one that is read from files; None for what does not fit."""
        return True if self.stream and engines.directory_of(spec) is not None else None

    def name_of(self, spec: str) -> str:
        """Return what a model is called in test ids and tables: its name, or the whole spec if two names are equal."""
        names = [engines.name_of(other) for other in self.specs]
        name = engines.name_of(spec)
        return spec if names.count(name) > 1 else name

    def given_limits_for(self, spec: str, candidate: str | None = None) -> Mapping[str, Limit]:
        """Return the limits that the user gave, by name, for one model, or for its candidate if there is one."""
        return {
            name: one.limit for name, one in limit_overrides.winning_overrides(self.overrides, spec, candidate).items()
        }

    def limits_for(self, spec: str, candidate: str | None = None) -> Mapping[str, Limit]:
        """Return all limits by name, for one model, or for its candidate if there is one.

        The collapse is judged for embedded models, for models that are published to collapse, and where the user gave a
        limit. For all others it is reported.
        """
        given, known = self.given_limits_for(spec, candidate), published_index.find(spec)
        expected = spec in tiny.CHECKPOINTS or (
            known and any(c.sound and c.status in COLLAPSING_STATUSES for c in known.coordinates)
        )
        reported = {"collapse": Limit(0.0, None, "nothing is published to hold it against: reported")}
        return {**DEFAULTS, **({} if expected else reported), **given}


def read_settings(values: Mapping[str, Any], origins: Mapping[str, str]) -> Settings:
    """Return the settings for raw values by option name, after every value is checked. No model is loaded.

    Raises ``SwcheckError`` for the first invalid value. Torch and transformers are imported only to test a device.
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
        text=_absolute_path(values.get("text")),
        tier=values.get("tier"),
        overrides=tuple(
            one
            for origin, texts in (values.get("limit") or {}).items()
            for one in limit_overrides.parse_overrides(texts, origin)
        ),
        json=_absolute_path(values.get("json")),
        markdown=_absolute_path(values.get("markdown")),
        html=_absolute_path(values.get("html")),
        no_step_summary=bool(values.get("no_step_summary")),
        trust_remote_code=bool(values.get("trust_remote_code")),
        offline=bool(values.get("offline")),
        allow_none=bool(values.get("allow_none")),
        baseline=_absolute_path(values.get("baseline")),
        no_cache=bool(values.get("no_cache")),
        update=bool(values.get("update")),
        accept=bool(values.get("accept")),
        require=bool(values.get("require")),
        kind=values.get("kind") or "auto",
        device_map=values.get("device_map"),
        tensor_parallel=bool(values.get("tensor_parallel")),
        stream=bool(values.get("stream")),
        layers=bool(values.get("layers")),
        in_torch=bool(values.get("in_torch")),
        cache_window=_number(values.get("cache_window"), "cache-window"),
        shapes=bool(values.get("shapes")),
        origins=origins,
    )
    _check(settings)
    return settings


def _number(text: str | None, name: str) -> int | None:
    """Return a positive number that was given as text. Raises ``OptionError`` for anything else."""
    if text is None:
        return None
    if not (text.isdecimal() and text.isascii() and 0 < int(text) < 10**9):
        raise OptionError(f"--swcheck-{name}={text}", "no positive number", f"--swcheck-{name}=64")
    return int(text)


def _check(settings: Settings) -> None:
    for spec in settings.models_to_load:
        engines.check(spec, trust_remote_code=settings.trust_remote_code, offline=settings.offline)
    _check_unique(settings.models, "model")
    _check_unique(settings.candidates, "candidate")
    limit_overrides.check_all_used(settings.overrides, settings.models, settings.candidates)
    if settings.kind not in KINDS:
        raise OptionError(f"--swcheck-kind={settings.kind}", f"known: {', '.join(KINDS)}", "leave it out for auto")
    if settings.dtype is not None:
        engines.check_dtype(settings.dtype)
    where = Placement(settings.device, settings.device_map, settings.stream, settings.tensor_parallel)
    check_placement(where, settings.specs, settings.models_to_load)
    if settings.tier is not None:
        tier_named(settings.tier)
    if settings.text is not None:
        read_text(settings.text)
    for report in filter(None, (settings.json, settings.markdown, settings.html)):
        check_writable(report)
    _check_baseline(settings)


def _check_unique(specs: Sequence[str], what: str) -> None:
    meanings = [engines.canonical_name(spec) for spec in specs]
    for spec, meaning in zip(specs, meanings, strict=True):
        if meanings.count(meaning) > 1:
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
        else:
            read_document_file(path)


def baseline_path(settings: Settings, spec: str) -> Path:
    """Return the baseline file of one reference: in the folder of baselines, by the name of the model."""
    name = "".join(char if char.isalnum() or char in "-_." else "-" for char in settings.name_of(spec))
    return (settings.baseline or Path()) / f"{name.strip('-.')}.json"


def tier_of(settings: Settings, spec: str) -> Tier:
    """Return the tier: as given, else that of the baseline, else the default for the model's size and device."""
    if settings.tier is not None:
        return tier_named(settings.tier)
    if settings.uses_baselines:
        return tier_named(str(read_document_file(baseline_path(settings, spec)).get("tier", STANDARD.name)))
    directory = engines.directory_of(spec)
    weights = None if directory is None else checkpoint_size(directory)
    return STANDARD if weights is None else default_tier(weights.parameters, engines.device_of(settings.device))


def name_with_size(settings: Settings, spec: str) -> str:
    """Return words for a model: its spec with the size on disk if that is known, or the baseline in its place."""
    if spec in settings.models and settings.uses_baselines:
        return f"the baseline of {spec}"
    with suppress(SwcheckError, OSError, ValueError, KeyError):  # the error is reported when the model is loaded
        directory = engines.directory_of(spec)
        weights = None if directory is None else checkpoint_size(directory)
        return spec if weights is None else f"{spec} ({format_size(weights.size)})"
    return spec


@interrupts_kept()
def cost_estimate_words(settings: Settings, reference: str, loading: Sequence[str]) -> str:
    """Return words for the cost of measuring the models ``loading``: tier, windows, passes, time. Empty if not known.

    The time is that of the matrix products, at the speed of this machine on the model's largest matrix.
    """
    references = 0 if settings.uses_baselines else sum(spec == reference for spec in loading)
    candidates = sum(spec != reference for spec in loading)
    with suppress(Exception):  # a failed estimate must not stop the run
        directory = engines.directory_of(reference)
        weights = None if directory is None else checkpoint_size(directory)
        if weights is None or not references + candidates:
            return ""
        tier = tier_of(settings, reference)
        count, length = tier.shape(weights.context)
        streamed = _streamed(settings, loading)
        asked = (spec for spec in loading if spec != reference and spec not in streamed)
        swept = sum(settings.shapes or is_swept(spec) for spec in asked)
        passes = window_passes(tier, references=references, candidates=candidates, swept=swept)
        dtype = settings.dtype or weights.dtype
        if reference in streamed:
            dtype = streamed_product_dtype(dtype)
        rate = measured_rate(weights, engines.device_of(settings.device), dtype)
        total = estimated_seconds(weights, tier, rate, references=references, candidates=candidates, swept=swept)
        words = (
            f"{tier.name} tier: {count} windows of {length} tokens, about {passes:.1f} passes, {format_duration(total)}"
        )
        return f"{words}{_streaming_words(streamed, reference, tier)}"
    return ""


def _streamed(settings: Settings, loading: Sequence[str]) -> dict[str, str]:
    """Return the models that are read from the disk in each pass, those that do not fit with the reason why."""
    if (
        settings.tensor_parallel
        or settings.device_map is not None
        or engines.device_of("cpu" if settings.stream else settings.device) != "cpu"
    ):
        return {}
    folders = {spec: folder for spec in loading if (folder := engines.directory_of(spec)) is not None}
    return {spec: too_large(folder) for spec, folder in folders.items() if settings.stream or too_large(folder)}


def _streaming_words(streamed: Mapping[str, str], reference: str, tier: Tier) -> str:
    reasons = "; ".join(dict.fromkeys(reason for reason in streamed.values() if reason))
    reads = [f"{spec} about {file_reads(tier, is_reference=spec == reference)} times" for spec in streamed]
    return (
        f"; streamed, its file read from the disk: {', '.join(reads)}{f' ({reasons})' if reasons else ''}"
        if reads
        else ""
    )


def fetch(settings: Settings) -> None:
    """Download the models that are not on this machine. Raises ``UnknownModelError`` where that is impossible."""
    for spec in settings.models_to_load:
        engines.download(spec, offline=settings.offline)


def forbid_downloads() -> Callable[[], None]:
    """Set ``HF_HUB_OFFLINE``, which every hub library reads; return a function that restores the old value."""
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"

    def restore() -> None:
        if before is None:
            os.environ.pop("HF_HUB_OFFLINE", None)
        else:
            os.environ["HF_HUB_OFFLINE"] = before

    return restore


def _absolute_path(value: str | None) -> Path | None:
    try:
        return None if value is None else Path(value).expanduser().absolute()
    except RuntimeError as error:  # no such user
        raise OptionError(f"path {value}", str(error), "give the path of the home directory in full") from error
