"""Where the sink stands: on ``<s>``, on the first token, on the first delimiter; and what varied prompts prove of it."""

from __future__ import annotations

import pytest
import torch

from swcheck import (
    Outcome,
    Prompt,
    RobustnessError,
    assert_super_activations_preserved,
    assert_super_weights_located,
    assert_super_weights_preserved,
)
from swcheck.gate.checks.prompted_activations import FEWEST_PROMPTS
from swcheck.lens.prompts import encode_batch, encode_prompt
from swcheck.strategies import drawn_prompts
from swcheck.suite import for_any_prompts
from swcheck.superweights.measurements import prompt_readings
from swcheck.superweights.measurements.located import located
from swcheck.superweights.measurements.residual_stream import super_activations
from swcheck.superweights.subject.held_model import HeldModel
from swcheck.superweights.subject.memory import Memory
from swcheck.superweights.subject.subject import Subject
from tests import planted

TEXT = "the rivers and the markets of winter and summer " * 20


@pytest.fixture(scope="module")
def drawn():
    """What the shipped suite draws."""
    return drawn_prompts()


def subject(rule, *, bos=True, name="planted"):
    return Subject(name, HeldModel(planted.sinking(rule)), planted.tokenizer(bos=bos), text=TEXT, memory=Memory())


def verdict_of(candidate, reference, prompts=None):
    try:
        return assert_super_activations_preserved(candidate, reference, prompts=prompts)
    except RobustnessError as error:
        return error.verdict


RULES = [
    (planted.on_bos, True),
    (planted.on_first, True),
    (planted.on_first, False),
    (planted.on_first_delimiter, True),
    (planted.on_first_delimiter, False),
]


@pytest.mark.parametrize(("rule", "bos"), RULES)
def test_every_sink_is_found_and_a_healthy_copy_is_green(drawn, rule, bos):
    """Wherever the sink stands, with BOS or without: the weight is located, and enough drawn prompts count."""
    reference, candidate = subject(rule, bos=bos), subject(rule, bos=bos, name="copy")

    located = assert_super_weights_located(reference)
    verdict = verdict_of(candidate, reference, drawn)

    assert located.facts["super_weights"][0]["row"] == planted.SINK.row
    assert assert_super_weights_preserved(candidate, reference).outcome is Outcome.PASSED
    assert (verdict.outcome, verdict.measured) == (Outcome.PASSED, pytest.approx(1, abs=1e-5))
    assert verdict.facts["counted"] >= FEWEST_PROMPTS


def only_behind_bos(ids):
    """The candidate lost its sink on every first token but BOS."""
    return planted.on_bos(ids) & planted.on_first(ids)


def not_on_line_ends(ids):
    """The candidate lost its sink where a line end is its place."""
    return ids.ne(planted.ids_of("\n")) & planted.on_first_delimiter(ids)


def on_the_second(ids):
    """The candidate's sink moved one token on where the first token is a delimiter."""
    mark = torch.isin(ids[:, :1], planted.ids_of(planted.DELIMITERS))
    return planted.on_first(ids) & ~mark | (torch.arange(ids.shape[1]) == 1) & mark


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "damage", "bos", "cause", "shown"),
    [
        (planted.on_first, only_behind_bos, True, "at token 0 lost", "only on prompts without BOS"),
        (planted.on_first_delimiter, not_on_line_ends, True, "lost", r"'\n'"),
        (planted.on_first_delimiter, not_on_line_ends, False, "lost", r"'\n'"),
        (planted.on_first, on_the_second, False, "at token 0", "token 0"),
    ],
)
def test_drawn_prompts_see_what_the_default_one_cannot(drawn, rule, damage, bos, cause, shown):
    """A sink that is lost or moved on some prompts only is green on the default prompt and red on the drawn ones."""
    reference, candidate = subject(rule, bos=bos), subject(damage, bos=bos, name="damaged")

    assert verdict_of(candidate, reference).outcome is Outcome.PASSED
    verdict = verdict_of(candidate, reference, drawn)

    assert verdict.outcome is Outcome.FAILED
    assert verdict.cause.startswith(f"super activation of channel {planted.SINK.row} at token")
    assert cause in verdict.cause
    assert shown in f"{verdict.cause} {verdict.facts['worst_prompt']}"


def test_a_moved_sink_is_called_moved():
    """Where the activation stands at the next token the first line says so; where it stood there before it does not."""
    reference, candidate = subject(planted.on_first, bos=False), subject(on_the_second, bos=False)

    verdict = verdict_of(candidate, reference, ["\n and on it goes"])

    assert "at token 0 moved to token 1" in verdict.cause


def test_a_bos_sink_is_one_number_by_causality(drawn):
    """With the sink on BOS every prompt that has one says the same, those without do not count, and the words say so."""
    verdict = verdict_of(subject(planted.on_bos), subject(planted.on_bos), drawn)

    bare = sum(prompt.form == "bare" for prompt in drawn)
    assert verdict.facts["counted"] == verdict.facts["prompts"] - bare
    assert verdict.facts["worst_prompt"] == "BOS alone"
    assert "n = 1 by causality" in verdict.summary


def test_a_first_token_sink_is_more_than_one_number(drawn):
    """Without BOS before them prompts count each for itself."""
    verdict = verdict_of(subject(planted.on_first), subject(planted.on_first), drawn)

    assert verdict.facts["counted"] == verdict.facts["prompts"]
    assert "n = 1" not in verdict.summary


def test_prompts_that_do_not_count_prove_nothing():
    """Where the reference carries its activation on too few of the prompts the verdict is inconclusive, never green."""
    prompts = [Prompt(f"{word} {number}", "bare") for number in range(15) for word in ("alpha", "beta")]
    prompts += [Prompt(f"alpha {number}") for number in range(19)]
    bos = subject(planted.on_bos)

    assert verdict_of(bos, bos, prompts).outcome is Outcome.INCONCLUSIVE
    assert verdict_of(bos, bos, [*prompts, Prompt("one more")]).outcome is Outcome.PASSED


def test_a_prompt_counts_once_whatever_its_channels():
    """Two super weights on one column write two channels: 19 prompts that carry both are 19, not 38."""
    pair = (planted.SINK, planted.SuperWeight(1, 11, planted.SINK.column, -20.0))
    reference = Subject(
        "pair", HeldModel(planted.sinking(planted.on_bos, pair)), planted.tokenizer(), text=TEXT, memory=Memory()
    )
    prompts = [Prompt(f"alpha {number}") for number in range(19)]
    prompts += [Prompt(f"alpha {number}", "bare") for number in range(10)]

    assert len(super_activations(reference, located(reference).super_weights)) == 2
    assert verdict_of(reference, reference, prompts).outcome is Outcome.INCONCLUSIVE
    assert verdict_of(reference, reference, [*prompts, "one more"]).facts["counted"] == 20


def test_a_sink_that_is_weaker_without_bos(drawn):
    """A first token that is no BOS writes half: red, weakened, and only on prompts without BOS."""

    class Weaker(planted.SinkEmbedding):
        def forward(self, ids):
            out, bare = super().forward(ids), ids[:, :1] != 0
            mixed = out[:, 0] + bare * 0.8 * self.direction.abs().max() * self.direction.sign().roll(4)
            return torch.cat([mixed[:, None], out[:, 1:]], 1)

    reference, candidate = subject(planted.on_first), subject(planted.on_first, name="weaker")
    candidate.module.model.embed_tokens.__class__ = Weaker

    assert verdict_of(candidate, reference).outcome is Outcome.PASSED
    verdict = verdict_of(candidate, reference, drawn)
    assert "only on prompts without BOS" in verdict.cause
    assert 0.25 < verdict.measured < 0.75
    assert verdict.facts["worst_prompt"].endswith(" without BOS")


def late(ids):
    """The candidate loses its sink where two tokens or more stand before it."""
    found = planted.on_first_delimiter(ids)
    return found & (torch.arange(ids.shape[1]) < 2)


@pytest.mark.slow
def test_the_failing_prompt_is_shrunk():
    """What follows the sink and what need not stand before it is gone; the same every time, and it still fails."""
    reference, candidate = subject(planted.on_first_delimiter, bos=False), subject(late, bos=False, name="late")
    prompts = [f"the rivers and the markets of {word} were open. And so on" for word in ("winter", "summer")]

    verdicts = [verdict_of(candidate, reference, prompts) for _ in range(2)]

    shown = verdicts[0].facts["worst_prompt"]
    ids = encode_prompt(reference.tokenizer, Prompt(eval(shown)))
    assert len(ids) == 3
    assert verdicts[1].facts["worst_prompt"] == shown
    assert verdict_of(candidate, reference, [eval(shown)]).outcome is Outcome.FAILED
    assert dict(verdicts[0].detail)["worst prompt"] == shown
    assert dict(verdicts[0].detail)["shrunk from"] == repr(prompts[0])


@pytest.mark.slow
def test_without_the_reference_it_is_cut_behind_its_sink():
    """A reference of which only numbers are left cannot be asked anew; what follows the sink goes all the same."""
    reference, candidate = subject(planted.on_first_delimiter, bos=False), subject(late, bos=False, name="late")
    prompts = ["the rivers and the markets were open. And so on"]
    verdict_of(candidate, reference, prompts)
    reference.free()

    verdict = verdict_of(candidate, reference, prompts)

    assert verdict.facts["worst_prompt"] == "'the rivers and the markets were open.'"


def test_the_suite_asks_once_and_for_all(drawn):
    """The drawn prompts are kept with the reference, and all of them are judged together."""
    reference = subject(planted.on_first, bos=False)
    asked = []

    for _ in range(2):
        for_any_prompts(asked.append, reference)

    assert asked == [drawn, drawn]
    assert reference.memory.values["prompts"] is asked[1]


@pytest.fixture
def read(monkeypatch):
    """How many prompts each pass read."""
    real, rows = prompt_readings.read_prompts, []

    def spy(model, place, ids, *more):
        rows.append(len(ids))
        return real(model, place, ids, *more)

    monkeypatch.setattr(prompt_readings, "read_prompts", spy)
    return rows


def test_what_is_known_by_causality_costs_no_pass(read):
    """With BOS a prompt that begins as the default one up to its sink reads the number a pass would, and takes none."""
    reference = subject(planted.on_bos)
    place = super_activations(reference, [planted.SINK])[0]
    ids, lengths = encode_batch(reference.tokenizer, [Prompt("a river"), Prompt("a river", "bare"), Prompt("winter")])
    scanned = prompt_readings.read_prompts(reference, place, ids, lengths)
    read.clear()

    known = prompt_readings.readings(reference, place, ids, lengths)

    assert read == [1, 1], "the default prompt, and the one without BOS"
    assert [reading.position for reading in known] == [reading.position for reading in scanned]
    assert [reading.value for reading in known] == pytest.approx([reading.value for reading in scanned], rel=1e-5)


def test_without_bos_nothing_is_known_by_causality(drawn):
    """Where prompts begin without BOS the sink may move, and every one is read."""
    reference = subject(planted.on_first, bos=False)
    place = super_activations(reference, [planted.SINK])[0]
    ids, lengths = encode_batch(reference.tokenizer, drawn)

    assert prompt_readings.reading_by_causality(reference, place, ids, lengths) == (None, (False,) * len(drawn))


def test_equal_beginnings_are_read_once(read):
    """A candidate is read at the sink of each prompt; prompts that are the same up to there share one reading."""
    candidate = subject(planted.on_bos)
    place = super_activations(candidate, [planted.SINK])[0]
    ids, _ = encode_batch(candidate.tokenizer, [Prompt("a river"), Prompt("winter"), Prompt("a river", "bare")])

    first, second, bare = prompt_readings.readings_at(candidate, place, ids, [0, 0, 0])

    assert read == [2]
    assert first == second != bare
