"""The cause: the configuration, the order of the layers, or single tensors differ. Proven by giving back what differs.

Every difference is given back alone, and then together with others while that returns more of the loss. So several
causes at once are found together.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Final

from swcheck.base.errors import brief_message
from swcheck.gate.diagnosis.evidence.damaged_candidate import PROVEN, DamagedCandidate
from swcheck.gate.diagnosis.evidence.finding import Detail, Finding, ruled_out
from swcheck.gate.diagnosis.evidence.suspect import Suspect, given_back
from swcheck.gate.diagnosis.suspects import adapter, configuration, order, split, tensors
from swcheck.superweights.measurements.model_sample import model_sample
from swcheck.superweights.subject.measurement import Slot
from swcheck.superweights.subject.memory import Cost, InBaseline

if TYPE_CHECKING:
    from torch import nn

MOST_SUSPECTS: Final = 10
"""At most this many differences are tried one by one; all further ones count as one more."""

ENOUGH: Final = 0.95
"""No further difference is tried if this share of the lost nats has returned."""

LEAST_GAIN: Final = 0.03
"""A further difference belongs to the cause if it returns at least this share of the lost nats."""

CONFIGURATION: Final = "configuration: "
"""How the words for a field of the configuration begin; once is enough for several fields."""

MOST_NAMED: Final = 3
"""At most this many differences are named in the first line."""


_DIFFERENCES: Final = Slot["Finding | Detail"]("differences", Cost.DIAGNOSIS, in_baseline=InBaseline.NO)


def find(damaged: DamagedCandidate) -> Finding | Detail:
    """Give back the differences that return most of the loss. They are tried once for all checks of the candidate."""
    answer = _DIFFERENCES.recall(damaged.candidate, (damaged.reference,), lambda: _find(damaged))
    if isinstance(answer, Finding):
        _ = damaged.candidate_nats  # ``tried_on`` reports it
    return answer


def _find(damaged: DamagedCandidate) -> Finding | Detail:
    found = configuration.suspects(damaged)
    if found:  # one comparison of two texts: where that is enough, no weight is compared
        proven = best_together(damaged, _grouped(found))
        if proven[1] >= ENOUGH:
            return _finding(*proven)
    if model_sample(damaged.candidate).layers == model_sample(damaged.reference).layers:
        moved = [*order.suspects(damaged), *split.suspects(damaged)] or adapter.suspects(damaged)
        explained = {name for one in moved for name in (*one.parameters, *one.maps)}
        found += [*moved, *tensors.suspects(damaged, explained)]
    if not found:
        return ruled_out("the configuration, the order of the layers, norms, embedding and head (none differs)")
    chosen, share, words = best_together(damaged, _grouped(found))
    if share < PROVEN:
        what = "; ".join(one.words for one in found[:MOST_NAMED])
        more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        return ruled_out(f"what differs beside the linear maps ({what}{more}; given back: {words})")
    return _finding(chosen, share, words)


def _finding(chosen: Sequence[tuple[Suspect, str]], _share: float, words: str) -> Finding:
    """Return the cause: what all of the suspects say, with what each of them returns alone."""
    rows = tuple(("given back", f"{one.words}: {alone}") for one, alone in chosen) if len(chosen) > 1 else ()
    causes = _with_fields_together([one.words for one, _ in chosen])
    more = f" and {len(causes) - MOST_NAMED} more" if len(causes) > MOST_NAMED else ""
    cause = "; ".join(causes[:MOST_NAMED]) + more
    proof = f"{'it is' if len(chosen) == 1 else 'all of it'} given back: {words}"
    advice = "; ".join(dict.fromkeys(one.advice for one, _ in chosen))
    return Finding(cause, (("proof", proof), *rows), (), advice, kind=chosen[0][0].kind)


def _with_fields_together(causes: Sequence[str]) -> list[str]:
    """Return the causes with all fields of the configuration in one, at the place of the first."""
    fields = [cause.removeprefix(CONFIGURATION) for cause in causes if cause.startswith(CONFIGURATION)]
    together = f"{CONFIGURATION}{', '.join(fields)}"
    return list(dict.fromkeys(together if cause.startswith(CONFIGURATION) else cause for cause in causes))


def best_together(
    damaged: DamagedCandidate, suspects: Sequence[Suspect]
) -> tuple[list[tuple[Suspect, str]], float, str]:
    """Return the suspects that together return most of the loss, that share, and words for it.

    The list has each with the words for it alone. It begins with the best one; others are added in the order of what
    they return alone. If the best one alone proves nothing, all are given back and those without effect are taken out.
    """
    alone = {number: _share(damaged, [one]) for number, one in enumerate(suspects)}
    ranked = sorted(alone, key=lambda number: -alone[number][0])
    chosen, (share, words) = [ranked[0]], alone[ranked[0]]
    if share < PROVEN and len(suspects) > 1:
        everything = _share(damaged, suspects)
        if everything[0] > share:
            chosen, (share, words) = _needed(damaged, suspects, ranked, everything)
    for number in ranked:
        if share >= ENOUGH:
            break
        if number not in chosen:
            more = _share(damaged, [suspects[one] for one in (*chosen, number)])
            if more[0] >= share + LEAST_GAIN:
                chosen, (share, words) = [*chosen, number], more
    return [(suspects[number], alone[number][1]) for number in chosen], share, words


def _needed(
    damaged: DamagedCandidate, suspects: Sequence[Suspect], ranked: Sequence[int], everything: tuple[float, str]
) -> tuple[list[int], tuple[float, str]]:
    """Take out of all suspects, weakest first, those whose part of the loss returns without them."""
    chosen, result = list(ranked), everything
    for number in reversed(ranked):
        rest = [one for one in chosen if one != number]
        without = _share(damaged, [suspects[one] for one in rest]) if rest else (0.0, "")
        if without[0] >= result[0] - LEAST_GAIN:
            chosen, result = rest, without
    return chosen, result


def _share(damaged: DamagedCandidate, suspects: Sequence[Suspect]) -> tuple[float, str]:
    """Return the share of the loss that returns with the suspects given back; none where that is not possible."""
    try:
        return damaged.recovered(partial(_restored, damaged, suspects))
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, FileNotFoundError) as error:
        return 0.0, f"not possible ({brief_message(error)})"


def _restored(
    damaged: DamagedCandidate, suspects: Sequence[Suspect], model: nn.Module
) -> AbstractContextManager[nn.Module]:
    return given_back(damaged.candidate, model, suspects)


def _grouped(found: Sequence[Suspect]) -> list[Suspect]:
    """Return at most ``MOST_SUSPECTS`` suspects; parameters and maps beyond that are one together."""
    if len(found) <= MOST_SUSPECTS:
        return list(found)
    rest = found[MOST_SUSPECTS - 1 :]
    words = f"{rest[0].words} and {len(rest) - 1} more tensors"
    fields = {name: value for one in rest for name, value in one.fields.items()}
    parameters = {name: value for one in rest for name, value in one.parameters.items()}
    maps = {name: value for one in rest for name, value in one.maps.items()}
    return [
        *found[: MOST_SUSPECTS - 1],
        Suspect(rest[0].kind, words, rest[0].advice, fields, parameters, maps, rest[0].size),
    ]
