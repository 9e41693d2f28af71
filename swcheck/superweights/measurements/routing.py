"""To which experts the tokens of a subject are routed."""

from __future__ import annotations

import torch

from swcheck.lens.likelihood import token_nats
from swcheck.lens.routing import Routing, routing_recorded
from swcheck.superweights.subject.measurement import measurement
from swcheck.superweights.subject.memory import Cost, InBaseline
from swcheck.superweights.subject.subject import Subject


@measurement("routing", Cost.WINDOW_STARTS, in_baseline=InBaseline.NO)
def routing_on(subject: Subject, ids: torch.Tensor) -> Routing:
    """Return the routing of the windows ``ids``, int64 ``(B, P)``, by layer; empty for a model without experts."""
    with routing_recorded(subject.anatomy) as routing:
        token_nats(subject.module, ids)
    return routing
