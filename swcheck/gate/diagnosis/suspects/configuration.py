"""Fields of the configuration that differ from the reference's."""

from __future__ import annotations

import json

from swcheck.gate.diagnosis.evidence.damaged_candidate import DamagedCandidate
from swcheck.gate.diagnosis.evidence.suspect import Suspect
from swcheck.gate.relation.configurations import configuration_differences
from swcheck.superweights.measurements.configuration import FOLLOWERS, configuration, field_words

ADVICE = "write the reference's value into config.json"


def suspects(damaged: DamagedCandidate) -> list[Suspect]:
    """Return one suspect for each field of the configuration that can change a number and differs."""
    found = configuration_differences(damaged.candidate, damaged.reference)
    theirs = json.loads(configuration(damaged.reference)) if found else {}
    unused = damaged.candidate.unused_tensors
    result = []
    for name, (ours, wanted) in found.items():
        if name == "num_hidden_layers" and not unused:  # another depth, with no tensors to give back
            continue
        words = f"configuration: {field_words(name, ours, wanted)}"
        if name == "num_hidden_layers":
            words += f", though its files hold {len(unused)} tensors more, first {unused[0]}"
        fields = {name: wanted} | {other: theirs.get(other) for other in FOLLOWERS.get(name, ()) if other in theirs}
        result.append(Suspect("configuration", words, ADVICE, fields))
    return result
