"""How many types of causal language models are accepted, printed, never judged.

``pytest -m benchmark -s tests/benchmarks/test_families.py``; ``python -m tools.families_table`` plants and gates them too.
"""

from __future__ import annotations

import sys
import time

import pytest
import torch

from swcheck.base.errors import ArchitectureError
from swcheck.lens.architecture.anatomy import checked_anatomy
from tools.small_models import TYPES, small_model

pytestmark = [pytest.mark.benchmark, pytest.mark.slow]


@pytest.mark.filterwarnings("ignore")
def test_accepted_over_built():
    """Each type that a small model can be built of: accepted, or refused with the reason."""
    accepted, refused, unbuilt = [], {}, []
    for name in TYPES:
        try:
            model = small_model(name)
        except Exception:
            unbuilt.append(name)
            continue
        try:
            checked_anatomy(model)
            accepted.append(name)
        except ArchitectureError as error:
            refused.setdefault(error.found.partition(":")[0], []).append(name)
    lines = [f"accepted {len(accepted)} of {len(TYPES) - len(unbuilt)} that were built: {' '.join(accepted)}"]
    lines += [f"refused, {reason}: {' '.join(names)}" for reason, names in refused.items()]
    lines += [f"not built from a small default configuration: {' '.join(unbuilt)}"]
    sys.stderr.write("\n" + "\n".join(lines) + "\n")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["gpt2", "mixtral"])
def test_the_price_of_tracing(name):
    """The time of the traced pass over that of a plain pass over 256 tokens, and that of a remembered answer."""
    model, ids = small_model(name), torch.randint(3, 64, (1, 60))

    def seconds(action):
        start = time.perf_counter()
        action()
        return time.perf_counter() - start

    with torch.no_grad():
        plain = min(seconds(lambda: model(ids, use_cache=False)) for _ in range(5))
    first, again = seconds(lambda: checked_anatomy(model)), seconds(lambda: checked_anatomy(model))
    sys.stderr.write(
        f"\n{name}: traced {first / plain:.1f} x a pass over 60 tokens, remembered {again / plain:.2f} x\n"
    )
