"""The default limits, in one place, each with the reason it stands where it does.

A limit is a ratio to the reference, never an absolute number. ``with_overrides`` takes what options, ini and arguments
say: ``name=high``, ``name=low..`` or ``name=low..high``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from swcheck.errors import OptionError
from swcheck.records import Limit

DEFAULTS: Final[Mapping[str, Limit]] = MappingProxyType(
    {
        "contribution": Limit(0.75, 2.0, "alpha 0.75 costs 3 % perplexity, 0.5 up to x8; alpha 2 at most 0.3 points"),
        "activation": Limit(0.75, 2.0, "as the contribution that writes it"),
        "perplexity": Limit(None, 1.05, "a good 4-bit quantization; the candidate's own scheme is unknown"),
        "collapse": Limit(10.0, None, "a set is critical from x10; no quantization of 2 bits and more reaches it"),
        "dependence": Limit(0.5, None, "half of the reference's collapse, in nats"),
        "null": Limit(None, 1.01, "the largest of 50 such nulls in the literature is x1.001"),
        "others": Limit(None, 1.30, "the paper's own row is x1.07"),
    }
)

CRITICAL: Final = 10.0
CONTRIBUTING: Final = 1.1


def kind_of(collapse: float) -> str:
    """What a set is called that multiplies the perplexity by ``collapse`` when it is zeroed together."""
    if collapse >= CRITICAL:
        return "critical"
    return "contributing" if collapse >= CONTRIBUTING else "inert"


def interval(name: str, low: float | None = None, high: float | None = None) -> Limit:
    """The default limit ``name``, with what the caller gave in place of it.

    Raises ``OptionError`` for a limit that is not finite or an interval that is empty.
    """
    default = DEFAULTS[name]
    if low in {None, default.low} and high in {None, default.high}:
        return default
    chosen = Limit(default.low if low is None else low, default.high if high is None else high, "given")
    ends = [end for end in (chosen.low, chosen.high) if end is not None]
    if any(not math.isfinite(end) for end in ends) or (len(ends) == 2 and ends[0] > ends[1]):
        raise OptionError(f"limit {name} = {chosen}", "an interval that nothing finite is in", f"default: {default}")
    return chosen


def with_overrides(texts: Iterable[str]) -> Mapping[str, Limit]:
    """``DEFAULTS`` with each of ``texts`` in place of one. Raises ``OptionError`` for what cannot be read."""
    limits = dict(DEFAULTS)
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if name not in limits or not equals:
            raise OptionError(
                f"limit {text!r}", f"known: {', '.join(DEFAULTS)}", "write it as perplexity=1.03 or activation=0.8..1.5"
            )
        try:
            low, high = _ends(value, DEFAULTS[name])
        except ValueError as error:
            raise OptionError(f"limit {text!r}", f"{value!r} is no number", f"default: {limits[name]}") from error
        limits[name] = interval(name, low, high)
    return MappingProxyType(limits)


def _ends(value: str, default: Limit) -> tuple[float | None, float | None]:
    """The two ends that ``low..high`` names; a single number is the side that the default leaves to be set."""
    low, dots, high = value.partition("..")
    if dots:
        return (float(low) if low.strip() else None, float(high) if high.strip() else None)
    return (float(value), None) if default.high is None else (None, float(value))
