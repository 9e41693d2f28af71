"""Real servers: llama.cpp's own, and one over tiny's own logits that answers as vLLM does, or as badly as it is told to."""

from __future__ import annotations

import gc
import json
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
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


class Served:
    """What a server does: its model, its tokenizer, and what is wrong with it."""

    def __init__(
        self, loaded, *, as_text=False, change=lambda answer: answer, status=200, raw=None, wait=0.0, bos=True,
        room=None,
    ):  # fmt: skip
        self.loaded, self.as_text, self.change = loaded, as_text, change
        self.status, self.raw, self.wait, self.bos, self.room = status, raw, wait, bos, room
        self.paths = []

    def answer(self, path, body):
        if path == "/v1/models":
            return {"data": [{"id": "tiny", "max_model_len": self.room}]}
        if path == "/tokenize":
            ids = self.loaded.tokenizer(body["prompt"])["input_ids"]
            return {"tokens": ids if self.bos else ids[1:]}
        ids = torch.tensor([body["prompt"]])
        with torch.no_grad():
            logs = self.loaded.model(ids).logits[0].float().log_softmax(-1)
        assert self.room is None or len(body["prompt"]) < self.room, "no room for an answer"
        name = (lambda n: self.loaded.tokenizer.decode([n])) if self.as_text else (lambda n: f"token_id:{n}")
        top = logs.topk(body["logprobs"])
        likeliest = [
            {name(n): v for n, v in zip(row.tolist(), values.tolist(), strict=True)}
            for row, values in zip(top.indices, top.values, strict=True)
        ]
        own = [float(logs[place, number]) for place, number in enumerate(body["prompt"][1:])]
        chosen = int(next(iter(body.get("logit_bias", {0: 0}))))
        found = {
            "tokens": [name(n) for n in [*body["prompt"], chosen]],
            "token_logprobs": [None, *own, float(logs[-1, chosen])],
            "top_logprobs": [None, *likeliest],
        }
        if not body.get("echo"):
            found = {key: values[-1:] for key, values in found.items()}
        return self.change({"model": "tiny", "choices": [{"logprobs": found}]})


@contextmanager
def serving(served):
    """Run a server on a free local port; yield its address."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_args):
            pass

        def do_GET(self):
            self.respond(None)

        def do_POST(self):
            self.respond(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def respond(self, body):
            served.paths.append(self.path)
            faulty = self.path == "/v1/completions"
            if faulty:
                time.sleep(served.wait)
            status = served.status if faulty else 200
            content = json.dumps(served.answer(self.path, body)).encode()
            if faulty and served.raw is not None:
                content = served.raw(content)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content) if not (faulty and served.raw) else len(content) + 5))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


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
    """The paths of a load and a score are the three that the page names."""
    served = Served(base)
    with serving(served) as url:
        load(url).model.log_probabilities(torch.tensor([0, 5, 9]))
    assert set(served.paths) == {"/v1/models", "/tokenize", "/v1/completions"}


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
