"""``swcheck locate MODEL``: find the super weights of a model, without data."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from swcheck.base.errors import OptionError
from swcheck.base.formatting import format_number
from swcheck.base.json_text import json_text
from swcheck.run.command_line.common.arguments import add_json, add_loading, add_sharing, load_model
from swcheck.run.command_line.common.layout import aligned, terminal_width, wrap_lines

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swcheck.superweights.locating.confirm import Confirmation
    from swcheck.superweights.locating.located import LayerPeaks, Located
    from swcheck.superweights.subject.subject import Subject


def add(commands: Any) -> None:
    """Add the subcommand to argparse's ``commands``."""
    parser = commands.add_parser("locate", help="find the super weights of a model, without data")
    parser.add_argument("model", help="tiny, a known name, a hub id or a directory")
    parser.add_argument("--prompt", help="another prompt to look at")
    parser.add_argument("--verify", action="store_true", help="zero what is found and measure the perplexity")
    parser.add_argument("--no-index", action="store_true", help="start from nothing, not from published coordinates")
    words = (
        "verify the published coordinates, of the model of this NAME, and read the model only up to their last layer"
    )
    parser.add_argument("--published", nargs="?", const="", metavar="NAME", help=words)
    parser.add_argument("--exit-code", action="store_true", help="exit with 1 if no super weight is found")
    add_loading(parser)
    add_sharing(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> str:
    """Locate the super weights, and return them as text or JSON; with ``--verify`` also the perplexity without them."""
    from swcheck.superweights.locating.locate import locate
    from swcheck.superweights.measurements.inputs import prompt_ids, windows
    from swcheck.superweights.measurements.located import published
    from swcheck.superweights.subject.as_subject import as_subject

    loaded = load_model(options)
    subject = as_subject(loaded)
    if options.published is not None:
        confirmations = confirm_published(subject, options.published or subject.name, options.prompt)
        options.code = int(options.exit_code and not all(one.is_confirmed for one in confirmations))
        if options.json:
            return json_text({"model": loaded.name, "published": [confirmation_as_json(one) for one in confirmations]})
        return "\n".join(wrap_lines(confirmations_as_text(loaded.name, confirmations), terminal_width()))
    found = locate(
        loaded.model,
        token_ids=prompt_ids(subject, options.prompt),
        seeds=() if options.no_index else published(loaded.name),
        verify=windows(subject) if options.verify else None,
    )
    options.code = int(options.exit_code and not found.super_weights)
    if options.json:
        return json_text(located_as_json(loaded.name, found))
    return "\n".join(wrap_lines(located_as_text(loaded.name, found), terminal_width()))


def confirm_published(subject: Subject, name: str, prompt: str | None) -> tuple[Confirmation, ...]:
    """Return what the published super weights of ``name`` do in a model. Raises ``OptionError`` where none are published."""
    from swcheck.superweights.locating.confirm import confirm
    from swcheck.superweights.measurements.inputs import prompt_ids
    from swcheck.superweights.measurements.located import published

    known = published(name)
    if not known:
        attempt = "--published=NAME, the name of the model; swcheck index lists those that have some"
        raise OptionError(f"published super weights of {name}", "none", attempt)
    return confirm(subject.module, known, prompt_ids(subject, prompt))


def confirmation_as_json(found: Confirmation) -> dict[str, Any]:
    """Return what ``swcheck locate MODEL --published --json`` prints of one coordinate."""
    return {
        "super_weight": found.weight.as_json(),
        "position": found.position,
        "written": found.written,
        "residual": found.residual,
        "median": found.median,
        "confirmed": found.is_confirmed,
    }


def confirmations_as_text(name: str, found: Sequence[Confirmation]) -> list[str]:
    """Return the lines that ``swcheck locate MODEL --published`` prints."""
    count = sum(one.is_confirmed for one in found)
    lines = [f"{name}: {count} of {len(found)} published super weights write a super activation here"]
    for one in found:
        ratio = f"{abs(one.residual) / one.median:.0f} x the median" if one.median else "the median is 0"
        lines.append(
            f"  {one.weight}, writes {format_number(one.written)} at token {one.position}: "
            f"{format_number(one.residual)} after its layer, {ratio}" + ("" if one.is_confirmed else ": not confirmed")
        )
    return lines


def located_as_json(name: str, found: Located) -> dict[str, Any]:
    """Return what ``swcheck locate MODEL --json`` prints, as plain values."""
    effect = found.effect
    return {
        "model": name,
        "super_weights": [weight.as_json() for weight in found.super_weights],
        "written": list(found.written),
        "super_activations": [
            {"layer": a.layer, "channel": a.channel, "position": a.position, "value": a.value, "ratio": a.ratio}
            for a in found.activations
        ],
        "reason": found.reason,
        "rounds": len(found.rounds),
        "verified": effect
        and {
            "perplexity": effect.intact.perplexity,
            "zeroed": effect.together.perplexity,
            "alone": [likelihood.perplexity for likelihood in effect.alone],
            "strongest_other": effect.strongest
            and {
                **effect.strongest.weight.as_json(),
                "ratio": effect.strongest.ratio,
                "tried": effect.strongest.tried,
            },
        },
    }


def located_as_text(name: str, found: Located) -> list[str]:
    """Return the lines that ``swcheck locate MODEL`` prints: the super weights, then what each round has found."""
    lines = [f"{name}: {found.reason}"]
    for weight, written in zip(found.super_weights, found.written, strict=True):
        lines.append(f"  {weight}, writes {format_number(written)}")
    for count, search in enumerate(found.rounds, 1):
        lines += ["", f"round {count}: largest magnitude per layer (value @ token, channel)"]
        lines += aligned(
            [("layer", "down_proj input", "down_proj output", "residual stream"), *_layer_rows(search.layers)]
        )
        lines += [f"  {remark}" for remark in search.remarks]
        lines.append(f"  found: {'; '.join(map(str, search.found)) or 'nothing more'}")
    if found.effect is not None:
        ratio = found.effect.together.perplexity / found.effect.intact.perplexity
        zeroed = f"all zeroed together {format_number(ratio, 'x')}" if found.super_weights else "nothing to zero"
        lines += ["", f"perplexity {format_number(found.effect.intact.perplexity)}, {zeroed}"]
        lines += _strongest_line(found)
    return lines


def _strongest_line(found: Located) -> list[str]:
    """Return the line about the scalar that is no super weight and costs most when it is zeroed."""
    one = found.effect.strongest if found.effect is not None else None
    if one is None:
        return []
    what = "strongest other scalar" if found.super_weights else "strongest scalar, though no super weight"
    return [f"{what}: {one.weight}, zeroed alone {format_number(one.ratio, 'x')} (of {one.tried} tried, one a layer)"]


def _layer_rows(layers: tuple[LayerPeaks, ...]) -> list[tuple[str, ...]]:
    return [
        (
            str(peaks.layer),
            *(
                "-" if peak is None else f"{peak.value:+.4g} @ {peak.position}, {peak.channel}"
                for peak in (peaks.input, peaks.output, peaks.residual)
            ),
        )
        for peaks in layers
    ]
