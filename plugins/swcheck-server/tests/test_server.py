"""Real servers: llama.cpp's own, and one over tiny's own logits that answers as vLLM does, or as badly as it is told to."""

from __future__ import annotations

import gc
import socket
import threading
import time
from contextlib import contextmanager

import pytest
import torch
from server_double import Served, serving
from swcheck_server import ENGINE, read_address

import swcheck
from swcheck import (
    CheckpointError,
    EngineError,
    OptionError,
    Outcome,
    RobustnessError,
    SuperWeight,
    assert_collapses_when_zeroed,
    assert_perplexity_within,
    assert_predictions_preserved,
    assert_super_activations_preserved,
    assert_super_weights_preserved,
    check_engine,
    token_windows,
    zeroed,
)
from swcheck.superweights.subject.as_subject import as_subject

WEIGHT = SuperWeight(1, 97, 301)


@pytest.fixture(scope="module")
def base():
    return swcheck.load("tiny", device="cpu")


@pytest.fixture(scope="module")
def reference(base):
    return as_subject(base, token_ids=token_windows(base.tokenizer, base.text, count=4, length=64))


def load(spec):
    return ENGINE.load(spec, reference="tiny", device="cpu", dtype=None)


def test_conformance(base):
    """It states what it shows, and its rows are probabilities."""
    with serving(Served(base)) as url:
        assert check_engine("server", [url]) == ()


@pytest.mark.parametrize("as_text", [False, True], ids=["ids", "texts"])
def test_the_same_model_behind_a_server_passes(base, reference, as_text):
    """Perplexity and predictions are judged; what a server does not show is not applicable."""
    with serving(Served(base, as_text=as_text)) as url:
        candidate = as_subject(load(url))
        assert assert_perplexity_within(candidate, reference).measured == pytest.approx(1, abs=1e-5)
        verdict = assert_predictions_preserved(candidate, reference)
        assert verdict.measured < 1e-3
        assert verdict.facts["top1"] == 1
        assert f"server {url}, model tiny, to which token ids were sent" in verdict.facts["runtime"]
        for check in (assert_super_weights_preserved, assert_super_activations_preserved, assert_collapses_when_zeroed):
            shown = check(candidate, reference)
            assert shown.outcome is Outcome.NOT_APPLICABLE
            assert "this runtime does not show" in shown.summary
            assert "; vLLM shows more if it is started with VLLM_SERVER_DEV_MODE=1" in shown.summary


def test_a_damaged_model_behind_a_server_is_red(reference):
    """Its super weight is zeroed on the other side; that cannot be seen from here, and is said."""
    other = swcheck.load("tiny", device="cpu")
    with zeroed(other.model, [WEIGHT]), serving(Served(other)) as url, pytest.raises(RobustnessError) as caught:
        assert_perplexity_within(load(url), reference)
    assert caught.value.verdict.measured > 1000
    assert "does not show what they write" in str(caught.value)


def test_its_own_tokenizer_is_compared(base, reference):
    """A server that begins with no BOS is red, and not for its weights."""
    with serving(Served(base, bos=False)) as url, pytest.raises(RobustnessError, match="does not begin with BOS"):
        assert_perplexity_within(load(url), reference)


def drop(key):
    def change(answer):
        del answer["choices"][0]["logprobs"][key]
        return answer

    return change


def edit(key, place, value):
    def change(answer):
        answer["choices"][0]["logprobs"][key][place] = value
        return answer

    return change


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"status": 500}, "/v1/completions answers 500"),
        ({"status": 302}, "/v1/completions answers 302"),
        ({"raw": lambda content: content[: len(content) // 2]}, "breaks off"),
        ({"wait": 3.0}, "does not answer within 1 s"),
        ({"change": lambda answer: {**answer, "model": "other"}}, "another model, 'other'"),
        ({"change": lambda answer: [answer]}, "answers a list"),
        ({"change": drop("token_logprobs")}, "no log-probabilities of the prompt"),
        ({"change": lambda answer: {**answer, "choices": []}}, "no log-probabilities of the prompt"),
        ({"change": edit("tokens", 2, "token_id:1")}, "it changes the prompt"),
        ({"change": edit("token_logprobs", 3, None)}, "no log-probability at place 3"),
        ({"change": edit("token_logprobs", 3, 2.0)}, "no log-probability at place 3"),
        ({"change": edit("top_logprobs", 3, {"token_id:1": -0.01, "token_id:2": -0.01})}, "more than 1 of probability"),
    ],
)
def test_a_bad_answer_is_worded(base, fault, words):
    """Each fault of a server is an error that names the address, within bounded time."""
    start = time.monotonic()
    with serving(Served(base, **fault)) as url:
        runtime = load(f"{url},seconds=1").model
        with pytest.raises(CheckpointError, match=words):
            runtime.log_probabilities(torch.tensor([0, 5, 9, 33, 2]))
    assert time.monotonic() - start < 30


def test_a_port_where_nobody_listens():
    """Said at once, by check as by load."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for refuse in (ENGINE.check, load):
        with pytest.raises(CheckpointError, match="nobody listens there"):
            refuse(f"http://127.0.0.1:{port}")


def test_a_model_that_it_does_not_serve(base):
    """Those that it serves are named."""
    with serving(Served(base)) as url, pytest.raises(CheckpointError, match="it serves tiny"):
        ENGINE.check(f"{url},model=llama")


def test_a_window_that_fills_the_context_has_its_last_token_asked_for_behind_the_others(base):
    """A server echoes only where one more token has room, as vLLM; its numbers are the same."""
    reference = as_subject(base, token_ids=token_windows(base.tokenizer, base.text, count=2, length=96))
    with serving(Served(base, room=96)) as url:
        candidate = as_subject(load(url))
        assert assert_perplexity_within(candidate, reference).measured == pytest.approx(1, abs=1e-5)
        assert assert_predictions_preserved(candidate, reference).measured < 1e-3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (edit("tokens", -1, "token_id:1"), "token 1 where a bias of 100 asks for 2 at place 4"),
        (edit("token_logprobs", -1, "low"), "no log-probability at place 4: 'low'"),
        (edit("top_logprobs", -1, None), "no log-probability of its answer"),
        (lambda answer: edit("top_logprobs", -1, {"token_id:1": -90.0})(edit("token_logprobs", -1, 0.0)(answer)),
         "log-probabilities behind the bias, at place 4"),
    ],
    ids=["token", "text", "none", "biased"],
)  # fmt: skip
def test_a_bad_answer_to_the_last_token_is_worded(base, change, words):
    """Where it is not the token that was asked for, or tells what the bias has made of it."""
    with serving(Served(base, room=5, change=change)) as url:
        runtime = load(url).model
        with pytest.raises(CheckpointError, match=words):
            runtime.log_probabilities(torch.tensor([0, 5, 9, 33, 2]))


def test_nothing_is_asked_but_what_is_needed(base):
    """The paths of a load and a score are those that the page names."""
    served = Served(base)
    with serving(served) as url:
        load(url).model.log_probabilities(torch.tensor([0, 5, 9]))
    assert set(served.paths) == {"/v1/models", "/tokenize", "/v1/completions", "/collective_rpc"}


# --- several prompts -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def longer(base):
    """tiny, measured on windows that have three of the lengths of a batch."""
    return as_subject(base, token_ids=token_windows(base.tokenizer, base.text, count=2, length=80))


def test_several_prompts_are_one_request_and_give_what_each_gives_alone(base):
    """Of three lengths, in the order in which they were asked for, though the answers come in another."""
    served = Served(base)
    rows = [torch.arange(length) * 7 % 1000 for length in (9, 4, 6)]
    with serving(served) as url:
        runtime = load(url).model
        before = len(served.asked)
        found = runtime.batched_log_probabilities(rows)
        assert [len(body["prompt"]) for body in served.asked[before:]] == [3]
        for one, row in zip(found, rows, strict=True):
            assert torch.allclose(one.exp(), runtime.log_probabilities(row).exp(), atol=1e-6)


def wrong_rows(number, logs):
    """All rows but the first get their neighbours' logits, as by a kernel that steps wrongly from row to row."""
    return logs.roll(1, -1) if number else logs


def test_further_prompts_of_a_request_are_red_by_their_name(base, longer):
    """The first prompt of each request is right, and so is every window alone."""
    words = r"the kernels of this candidate depend on the shape: \d+ tokens in a batch of 3 x"
    with serving(Served(base, row=wrong_rows)) as url, pytest.raises(RobustnessError, match=words) as caught:
        assert_perplexity_within(load(url), longer)
    assert caught.value.verdict.cause_kind == "kernels"


class Crowd:
    """Whether a request waits while others do: one of a length that was asked for before stays until three have come."""

    def __init__(self):
        self.seen, self.all_here = [], threading.Barrier(3, timeout=60)

    def __call__(self, prompts):
        length = len(prompts[0]) if len(prompts) == 1 else 0
        self.seen.append(length)
        return self.all_here.wait() if length in {65, 33, 31} and self.seen.count(length) == 2 else 0


def test_requests_at_once_are_red_by_their_name(base, longer):
    """What two of three that wait together are told is wrong; each of them alone, and in one request, is right."""
    row = lambda number, logs: logs.roll(1, -1) if number >= 10 else logs  # noqa: E731
    crowd = Crowd()
    served = Served(base, row=row, together=lambda prompts: 10 * crowd(prompts))
    words = r"the kernels of this candidate depend on the shape: \d+ tokens in 3 requests at once x"
    with serving(served) as url, pytest.raises(RobustnessError, match=words):
        assert_perplexity_within(load(url), longer)


def test_a_server_of_one_prompt_a_request_is_not_scored_in_a_batch(base, longer):
    """The report says so; requests at once are scored."""
    with serving(Served(base, several=False)) as url:
        verdict = assert_perplexity_within(load(url), longer)
    assert "several windows at once (not shown)" in verdict.summary
    scored = verdict.facts["shapes"]["scored"]
    assert "33 tokens in 3 requests at once" in scored
    assert not any("batch" in name for name in scored)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda answer: {**answer, "choices": answer["choices"][:1]}, "1 answers to 2 prompts"),
        (lambda answer: {**answer, "choices": answer["choices"][:1] * 2}, "2 answers to 2 prompts, of the numbers"),
        (lambda answer: {**answer, "choices": [7, *answer["choices"][1:]]}, "1 answers to 2 prompts"),
    ],
    ids=["few", "twice", "none"],
)
def test_bad_answers_to_several_prompts_are_worded(base, change, words):
    """One is missing, comes twice, or is none."""
    served = Served(base)
    with serving(served) as url:
        runtime = load(url).model
        served.change = change
        with pytest.raises(CheckpointError, match=words):
            runtime.batched_log_probabilities([torch.tensor([0, 5, 9]), torch.tensor([0, 5])])


# --- llama.cpp's own server ----------------------------------------------------------------------------------------------


@contextmanager
def llama_cpp(file):
    """Run llama.cpp's server on a free local port; yield its address. Afterwards nobody listens there."""
    xllamacpp = pytest.importorskip("xllamacpp")
    asked = xllamacpp.CommonParams()
    asked.model.path, asked.hostnames, asked.port = str(file), ["127.0.0.1"], 0
    asked.n_ctx, asked.n_parallel, asked.cpuparams.n_threads, asked.warmup = 256, 1, 1, False
    server = xllamacpp.Server(asked)
    url = server.listening_address
    try:
        yield url
    finally:
        del server, asked
        gc.collect()
    with pytest.raises(CheckpointError, match="nobody listens there"):
        ENGINE.check(url)


@pytest.fixture(scope="module")
def short(base):
    """tiny, measured on so few tokens that a server may be asked for each of them."""
    return as_subject(base, token_ids=token_windows(base.tokenizer, base.text, count=3, length=40))


@pytest.fixture
def gguf_file(tmp_path):
    """A function that writes a model as a GGUF file of floats."""
    writing = pytest.importorskip("swcheck_llamacpp.writing")

    def write(loaded):
        writing.write(loaded.model, loaded.tokenizer, tmp_path / "model.gguf", "f32")
        return tmp_path / "model.gguf"

    return write


def test_llama_cpp_s_server_passes_with_the_reference_s_numbers(base, short, gguf_file):
    """It ignores an echo, and is asked for token after token; its cache of float16 is all that differs."""
    with llama_cpp(gguf_file(base)) as url:
        candidate = as_subject(load(url))
        assert assert_perplexity_within(candidate, short).measured == pytest.approx(1, abs=1e-3)
        verdict = assert_predictions_preserved(candidate, short)
        assert verdict.measured < 1e-4
        assert verdict.facts["top1"] == 1
        shapes = assert_perplexity_within(candidate, short).facts["shapes"]
        assert sorted(shapes["scored"]) == [
            f"{n} tokens in {words}" for n in (31, 33) for words in ("2 requests at once", "a batch of 2")
        ]
        assert candidate.runtime.advice == ""


def test_a_destroyed_file_in_llama_cpp_s_server_is_red(short, gguf_file):
    """The super weight is zeroed in the file; what the server does not show is not claimed."""
    other = swcheck.load("tiny", device="cpu")
    with zeroed(other.model, [WEIGHT]):
        file = gguf_file(other)
    with llama_cpp(file) as url, pytest.raises(RobustnessError, match="the cause is not known") as caught:
        assert_perplexity_within(load(url), short)
    assert caught.value.verdict.measured > 1000


@pytest.mark.parametrize(
    ("spec", "kind", "words"),
    [
        ("ftp://x", EngineError, "no address"),
        ("127.0.0.1:8000", EngineError, "no address"),
        ("http://x,colour=red", OptionError, "options here"),
        ("http://x,top=0", OptionError, "no positive number"),
        ("http://x,top=5,top=6", OptionError, "once each"),
    ],
)
def test_an_address_that_is_none(spec, kind, words):
    """Said before anything is asked."""
    with pytest.raises(kind, match=words):
        read_address(spec)


def test_an_address_may_end_in_v1():
    """As clients of OpenAI write it."""
    assert read_address("http://x:1/v1/").url == "http://x:1"
