"""Verdict against label and cause against truth over all candidates, printed, never judged.

``pytest -m benchmark -s tests/benchmarks/test_causes.py``, for a model of your own with ``SWCHECK_BENCHMARK_MODEL=DIR``. The label is the perplexity ratio by transformers' own loss on
another text than the gate's, nothing of swcheck, and beside it that of lm-evaluation-harness; harmful is over x1.5, harmless under x1.02, between them is the grey zone.
"""

from __future__ import annotations

import math
import os
import sys

import pytest
import torch

from swcheck import load
from swcheck.base.errors import OptionError
from swcheck.base.evaluation_text import evaluation_text
from swcheck.lens.tokens import token_windows
from swcheck.superweights.subject.as_subject import as_subject
from swcheck.testing.candidates import CANDIDATES, candidate
from tests.benchmarks.references import FAMILIES, planted_family
from tests.gated import first_red

pytestmark = [pytest.mark.benchmark, pytest.mark.slow]

HARMFUL, HARMLESS = 1.5, 1.02
HARNESS_TEXT = 4000
"""The first characters of the evaluation text that lm-evaluation-harness scores."""


@torch.no_grad()
def own_loss(loaded):
    """Nats per token by transformers' own loss, on windows of another text."""
    ids = token_windows(loaded.tokenizer, evaluation_text(), count=16, length=96)
    return float(loaded.model(ids, labels=ids).loss)


def harness_loss(loaded):
    """Nats per token by lm-evaluation-harness, on the same text."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    text = evaluation_text()[:HARNESS_TEXT]
    runner = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=1, max_length=96)
    [found] = runner.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)], disable_tqdm=True)
    return -found / len(loaded.tokenizer(text)["input_ids"])


def references():
    """The embedded models, a model of a family each with a planted super weight, and the directory that is asked for."""
    asked = os.environ.get("SWCHECK_BENCHMARK_MODEL")
    return ["tiny", "tiny-pair", *FAMILIES, *([asked] if asked else [])]


def ratio_of(loss):
    return math.exp(min(50.0, loss)) if math.isfinite(loss) else math.inf


@pytest.mark.parametrize("name", references())
def test_verdicts_and_causes(name):
    """One line a candidate, then how many harmful ones were missed, harmless ones red, and causes right."""
    reference = planted_family(name) if name in FAMILIES else load(name, device="cpu")
    subject, intact, intact_harness = as_subject(reference), own_loss(reference), harness_loss(reference)
    harmful, missed, alarms, red, right = 0, 0, 0, 0, 0
    for kind in CANDIDATES.values():
        for strength in kind.strengths if name not in FAMILIES else kind.strengths[-1:]:
            try:
                made = candidate(kind.name, reference, strength)
            except (OptionError, TypeError, AttributeError) as error:
                sys.stderr.write(f"{kind.name}: not of this reference ({type(error).__name__})\n")
                break
            label, second = ratio_of(own_loss(made) - intact), ratio_of(harness_loss(made) - intact_harness)
            verdict = first_red(made, subject)
            harmful += label > HARMFUL
            missed += label > HARMFUL and verdict is None
            alarms += label < HARMLESS and verdict is not None and not kind.causes
            red += verdict is not None
            is_right = verdict is not None and verdict.cause_kind in kind.causes
            right += is_right
            mark = "green" if verdict is None else ("right" if is_right else "WRONG")
            words = "" if verdict is None else verdict.cause[:70]
            line = f"{kind.name:32} {strength:<8g} x{label:<9.4g} lm-eval x{second:<9.4g} {mark:5} {words}"
            sys.stderr.write(f"{line.rstrip()}\n")
    sys.stderr.write(
        f"{name}: {harmful} harmful, {missed} of them missed; {alarms} healthy ones red; cause right in {right} of {red}\n"
    )


def test_twenty_runs_and_two_thread_counts_agree():
    """How many different verdicts, to six digits of all numbers, twenty runs on one and two threads give."""
    reference = load("tiny", device="cpu")
    for name in ("rope theta", "rounded", "copy"):
        found = set()
        for number in range(20):
            torch.set_num_threads(1 + number % 2)
            verdict = first_red(candidate(name, reference), reference)
            found.add(
                None
                if verdict is None
                else (verdict.check, verdict.cause, verdict.cause_kind, f"{verdict.measured:.6g}")
            )
        torch.set_num_threads(1)
        sys.stderr.write(f"{name}: {len(found)} different in 20 runs: {found}\n")
