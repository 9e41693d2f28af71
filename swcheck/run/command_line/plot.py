"""``swcheck plot MODEL [--candidate ...]``: the super activation and the spikes of down_proj, as figures 3 and 4 show them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from swcheck.base.errors import OptionError
from swcheck.base.output_files import check_writable
from swcheck.run.command_line.common.arguments import add_loading, load_model

if TYPE_CHECKING:
    from swcheck.base.records import SuperWeight
    from swcheck.superweights.subject.subject import Subject

SUFFIXES: Final = (".png", ".svg")


def add(commands: Any) -> None:
    """Add the subcommand to argparse's ``commands``."""
    parser = commands.add_parser("plot", help="draw super weights: a model and its candidates over each other")
    parser.add_argument("model", help="tiny, a known name, a hub id or a directory")
    parser.add_argument(
        "--candidate", action="append", default=[], metavar="SPEC", help="drawn over the model; may be repeated"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="a .png or .svg; MODEL.png if left out")
    add_loading(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> str:
    """Draw the picture, and return what was written. One model is in memory at a time.

    Raises ``OptionError`` for a file that is neither PNG nor SVG, ``ExtraError`` without matplotlib, and what loading
    raises.
    """
    from swcheck.loading import engines
    from swcheck.study.common.plots import check_available, write_picture

    path = options.out or Path(f"{engines.name_of(options.model)}.png".replace("/", "-"))
    if path.suffix.lower() not in SUFFIXES:
        raise OptionError(f"--out={path}", "neither .png nor .svg", f"--out={path.stem}.png")
    check_available(f"a picture {path.name}")
    check_writable(path.absolute())
    for spec in (options.model, *options.candidate):
        engines.check(spec, trust_remote_code=options.trust_remote_code, offline=options.offline)
    curves = all_curves(options)
    title = " and ".join(dict.fromkeys(name for one in curves for name in one["lines"] if "zeroed" not in name))
    write_picture(path, title, lambda figure: draw(figure, curves), size=(12.0, 3.8))
    return f"written: {path}"


def all_curves(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the curves of the model, with a line of each candidate in them."""
    from swcheck.superweights.measurements.curves import labelled, layer_curves
    from swcheck.superweights.measurements.located import located
    from swcheck.superweights.measurements.model_sample import model_sample
    from swcheck.superweights.subject.as_subject import as_subject

    reference = as_subject(load_model(options))
    weights = located(reference).super_weights
    model_sample(reference)
    curves = layer_curves(labelled(reference, reference), weights)
    reference.discard()
    for spec in options.candidate:
        candidate = as_subject(load_model(argparse.Namespace(**{**vars(options), "model": spec}), options.model))
        candidate.name = spec if candidate.name == reference.name else candidate.name
        _add_lines(curves, _candidate_curves(candidate, reference, weights))
        candidate.discard()
    return curves


def _candidate_curves(
    candidate: Subject, reference: Subject, weights: Sequence[SuperWeight]
) -> Sequence[Mapping[str, Any]]:
    from swcheck.gate.relation.basis import relation
    from swcheck.superweights.measurements.curves import labelled, layer_curves

    found = relation(candidate, reference)
    if found.kind in {"other shape", "other model"}:
        raise OptionError(f"{candidate.name} over {reference.name}", found.words, "a candidate of this model")
    return layer_curves(labelled(reference, candidate), weights, found.channels)


def _add_lines(curves: Sequence[Mapping[str, Any]], more: Sequence[Mapping[str, Any]]) -> None:
    by_title = {one["title"]: one["lines"] for one in more}
    for one in curves:
        one["lines"].update(by_title.get(one["title"], {}))


UNDERNEATH: Final = {"linewidth": 5, "markersize": 9, "alpha": 0.4}
"""How the model itself is drawn: a good candidate lies on it, and both have to be seen."""


def draw(figure: Any, curves: Sequence[Mapping[str, Any]]) -> None:
    """Draw each curve record into axes of its own; equal lines share a colour, and one legend stands below."""
    from swcheck.study.common.plots import MARKERS

    every = figure.subplots(1, len(curves), squeeze=False)[0]
    names = list(dict.fromkeys(name for one in curves for name in one["lines"]))
    handles = {}
    for axes, one in zip(every, curves, strict=True):
        for number, name in enumerate(names):
            if name in one["lines"]:
                values = one["lines"][name]
                look = {"color": f"C{number % 8}", "marker": MARKERS[number % len(MARKERS)], "alpha": 0.8}
                look |= UNDERNEATH if number == 0 else {}
                (handles[name],) = axes.plot(range(len(values)), values, "--" if "zeroed" in name else "-", **look)
        axes.set_title(one["title"], fontsize=10)
        axes.set_xlabel(one["x"])
        axes.set_ylabel(one["y"].partition(" of the default prompt")[0].partition(", on the default prompt")[0])
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(3, len(names)))
