"""Verdict against label and cause against truth over all candidates, printed, never judged.

``pytest -m benchmark -s tests/benchmarks/test_causes.py``. The label is the perplexity ratio by transformers' own loss on
another text than the gate's, nothing of swcheck; harmful is over x1.5, harmless under x1.02, between them is the grey zone.
"""

from __future__ import annotations

import math
import sys

import pytest
import torch
from tabulate import tabulate

from swcheck import load
from swcheck.base.errors import OptionError
from swcheck.base.evaluation_text import evaluation_text
from swcheck.lens.tokens import token_windows
from swcheck.superweights.subject.as_subject import as_subject
from swcheck.testing.candidates import CANDIDATES, candidate
from tests.gated import first_red

pytestmark = [pytest.mark.benchmark, pytest.mark.slow]

HARMFUL, HARMLESS = 1.5, 1.02


@torch.no_grad()
def own_loss(loaded):
    """Nats per token by transformers' own loss, on windows of another text."""
    ids = token_windows(loaded.tokenizer, evaluation_text(), count=16, length=96)
    return float(loaded.model(ids, labels=ids).loss)


@pytest.mark.parametrize("name", ["tiny", "tiny-pair"])
def test_verdicts_and_causes(name):
    """One line a candidate, then how many harmful ones were missed, harmless ones red, and causes right."""
    reference = load(name, device="cpu")
    subject, intact = as_subject(reference), own_loss(reference)
    lines, harmful, missed, alarms, red, right = [], 0, 0, 0, 0, 0
    for kind in CANDIDATES.values():
        for strength in kind.strengths:
            try:
                made = candidate(kind.name, reference, strength)
            except OptionError:
                continue
            loss = own_loss(made) - intact
            label = math.exp(min(50.0, loss)) if math.isfinite(loss) else math.inf
            verdict = first_red(made, subject)
            harmful += label > HARMFUL
            missed += label > HARMFUL and verdict is None
            alarms += label < HARMLESS and verdict is not None and not kind.causes
            red += verdict is not None
            is_right = verdict is not None and verdict.cause_kind in kind.causes
            right += is_right
            mark = "" if verdict is None else ("right" if is_right else "WRONG")
            lines.append([kind.name, strength, f"x{label:.4g}", mark, "" if verdict is None else verdict.cause[:70]])
    head = ["candidate", "strength", "label", "cause", ""]
    sys.stderr.write(f"\n{tabulate(lines, head, disable_numparse=True)}\n")
    sys.stderr.write(
        f"{name}: {harmful} harmful, {missed} of them missed; {alarms} healthy ones red; cause right in {right} of {red}\n"
    )
