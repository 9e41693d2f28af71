"""The drawn prompts of the shipped suite, from the command line: what the default prompt cannot see is red, and shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import planted

ACTIVATIONS = ("-k", "test_candidate and super_activations")


def saved(folder: Path, tokens, *, bos: bool) -> Path:
    """A planted Llama whose sink stands on each of ``tokens``, with tiny's tokenizer, in ``folder``."""
    planted.plant([planted.SINK], vocabulary=1024, tokens=tokens).save_pretrained(folder)
    planted.tokenizer(bos=bos).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("bos", [True, False])
def test_a_sink_lost_on_line_ends_is_red(inner, tmp_path, bos, brief):
    """With BOS or without: red in the first line, the prompt in the failure, in the table and in the file, every time."""
    marks = planted.ids_of(planted.DELIMITERS).tolist()
    spared = [mark for mark in marks if mark != planted.ids_of("\n").item()]
    reference = saved(tmp_path / "reference", [0, *marks], bos=bos)
    candidate = saved(tmp_path / "candidate", [0, *spared], bos=bos)
    words = (f"--model={reference}", f"--candidate={candidate}", *ACTIVATIONS, brief)
    shown = r"'\n' without BOS" if bos else r"'\n'"

    results = [inner(*words, f"--swcheck-json={number}.json") for number in range(2)]

    for result in results:
        result.assert_outcomes(failed=1, deselected=10)
        result.stdout.fnmatch_lines(
            [
                "super activation of channel 5 at token 0 lost*",
                f"  worst prompt  {shown}",
                "check * worst prompt * outcome",
                f"super activations * {shown} * FAILED",
            ]
        )
    first, second = (json.loads(Path(f"{number}.json").read_text())["verdicts"] for number in range(2))
    assert first == second
    assert first[0]["facts"]["worst_prompt"] == shown


@pytest.mark.slow
def test_a_model_without_bos_is_an_ordinary_one(inner, tmp_path, brief):
    """Its super weight is located and its drawn prompts count, on its own and beside a copy."""
    marks = planted.ids_of(planted.DELIMITERS).tolist()
    reference = saved(tmp_path / "reference", marks, bos=False)
    candidate = saved(tmp_path / "candidate", marks, bos=False)

    result = inner(f"--model={reference}", f"--candidate={candidate}", "-k", "super_", brief)

    result.assert_outcomes(passed=4, deselected=7)
