"""Something that differs from the reference and can be given back, alone or together with others."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from swcheck.lens.architecture.reconfigure import with_configuration
from swcheck.lens.replace import maps_replaced, parameters_replaced
from swcheck.superweights.measurements.configuration import configuration, with_field
from swcheck.superweights.measurements.weights import stored_tensor

if TYPE_CHECKING:
    from torch import nn

    from swcheck.lens.replace import Matrix
    from swcheck.superweights.subject.subject import Subject


@dataclass(frozen=True)
class Suspect:
    """A difference from the reference.

    ``kind`` is the name of the cause in JSON, ``words`` say what differs, ``advice`` what to do if it is the cause.
    Given back are the ``fields`` of the configuration, with dots between nested names, the ``parameters`` by their
    names in the candidate, and the weights ``(out, in)`` of whole ``maps`` by the names of their modules. ``size`` is
    how much differs, relative to the reference; larger ones are tried first.
    """

    kind: str
    words: str
    advice: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Matrix] = field(default_factory=dict)
    maps: Mapping[str, Matrix] = field(default_factory=dict)
    size: float = 0.0


@contextmanager
def given_back(candidate: Subject, model: nn.Module, suspects: Sequence[Suspect]) -> Iterator[nn.Module]:
    """Yield ``model``, the candidate's, with what the suspects name given back. No weight is written to.

    If a field of the configuration is among it, the module that is yielded is another one with the same weights.
    """
    fields = {name: value for one in suspects for name, value in one.fields.items()}
    parameters = {name: value for one in suspects for name, value in one.parameters.items()}
    maps = {name: value for one in suspects for name, value in one.maps.items()}
    if fields:
        values = json.loads(configuration(candidate))
        for name, value in fields.items():
            with_field(values, name, value)
        model = with_configuration(model, values, lambda name: stored_tensor(candidate, name))
    with ExitStack() as stack:
        stack.enter_context(parameters_replaced(model, parameters))
        stack.enter_context(maps_replaced(model, maps, {}))
        yield model
