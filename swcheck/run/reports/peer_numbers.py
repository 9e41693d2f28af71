"""The numbers that other tools print of a quantized model, in words: percentiles, probabilities, generated text, layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from swcheck.base.formatting import format_number
from swcheck.base.records import Verdict

Rows = list[tuple[str, str]]


def peer_rows(verdicts: Sequence[Verdict]) -> Rows:
    """Return (name, text) rows of what the verdicts about a candidate hold beside their measured values."""
    facts = next((verdict.facts for verdict in verdicts if "kl_reverse" in verdict.facts), None)
    if facts is None:
        return []
    rows = [
        ("KL divergence", f"{facts['kl']:.4f} nats; {_listed(facts['kl_percentiles'])}"),
        ("other direction", f"{facts['kl_reverse']:.4f} nats; {_listed(facts['kl_reverse_percentiles'])}"),
        ("right token", _right_token(facts["right_token"])),
    ]
    return rows + ([("greedy text", _greedy(**facts["greedy_text"]))] if facts["greedy_text"] else [])


def _listed(percentiles: Mapping[str, Any]) -> str:
    """Return percentiles in words; a number that JSON cannot hold is a word already."""
    found = (f"{name}{'' if name == 'max' else ' %'} {_number(value)}" for name, value in percentiles.items())
    return f"percentiles {', '.join(found)}"


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _right_token(change: Mapping[str, Any]) -> str:
    """Return words for the change of the probability of the right token, in percentage points."""
    mean, rms = 100 * change["mean"], 100 * change["rms"]
    ends = {name: 100 * change["percentiles"][name] for name in ("1", "50", "99")}
    listed = ", ".join(f"{name} % {value:+z.2f}" for name, value in ends.items())
    return f"its probability changes by {mean:+z.2f} points in the mean, {rms:.2f} rms; percentiles {listed}"


def _greedy(tokens: int, first_other: Sequence[int | None]) -> str:
    """Return words for the numbers of tokens after which generation goes on otherwise, None for never."""
    places = [str(after) for after in first_other if after is not None]
    same = f"{len(first_other) - len(places)} of {len(first_other)} prompts as the reference, {tokens} tokens each"
    return f"{same}; the first other token after {', '.join(places)}" if places else same


def layer_rows(verdicts: Sequence[Verdict]) -> list[tuple[int, float, float]] | str:
    """Return the layers of a candidate by their cost: number, nats, share; words where that is not known.

    Empty where nobody asked.
    """
    return next((verdict.facts["layer_costs"] for verdict in verdicts if "layer_costs" in verdict.facts), [])


def layer_words(verdicts: Sequence[Verdict], most: int) -> str:
    """Return the ranking of the layers on one line, the ``most`` dearest; empty where nobody asked."""
    found = layer_rows(verdicts)
    if isinstance(found, str):
        return f"what each layer costs is not known: {found}"
    shown = [f"layer {layer} {format_number(nats)} nats ({share:.0%})" for layer, nats, share in found[:most]]
    more = f", {len(found) - most} more" if len(found) > most else ""
    words = "KL divergence that goes away with the reference's layer in its place"
    return f"{', '.join(shown)}{more} ({words})" if shown else ""
