"""Our own test run only: nothing a user could want.

torch and numpy are imported here, once, since pytester forgets what an inner run imports and neither of the two can be
loaded twice. The run is hermetic: no hub, one torch thread per test process, and after each test every parameter bit and
every hook of the shared models has to be as before.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # else each worker of xdist, and each process of a test, takes every core

os.environ["SWCHECK_CACHE_DIR"] = os.devnull  # no test finds what another one has measured

import hashlib

import numpy as np  # noqa: F401 - see above
import pytest
import torch
from hypothesis import settings
from transformers import LlamaConfig, LlamaForCausalLM

import swcheck
from swcheck.base.tiers import STANDARD

settings.register_profile("same", max_examples=20, deadline=None, derandomize=True)
settings.register_profile("explore", max_examples=100, deadline=None)  # pytest --hypothesis-profile=explore
settings.load_profile("same")  # what passes here passes on the next machine


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Test by test, but those of a card of an embedded model stay in one worker, which measures it once for all of them."""
    from xdist.scheduler import LoadScopeScheduling

    class ByTest(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file, _, test = nodeid.partition("::")
            return f"{file}[{test.partition('[')[2]}" if file == "tests/tools/test_tiny.py" else nodeid

    return ByTest(config, log)


@pytest.fixture(autouse=True)
def short_text(request: pytest.FixtureRequest):
    """The standard tier scores 2,048 tokens instead of 8,192, but for tests marked ``whole_text``: a quarter of the time."""
    whole = STANDARD.windows
    object.__setattr__(STANDARD, "windows", whole if request.node.get_closest_marker("whole_text") else whole // 4)
    yield
    object.__setattr__(STANDARD, "windows", whole)


@pytest.fixture(scope="session")
def tiny() -> swcheck.Loaded:
    """The embedded model, shared by the whole run; the leak detector watches it."""
    return swcheck.load("tiny", device="cpu")


@pytest.fixture(scope="session")
def tiny_pair() -> swcheck.Loaded:
    """The embedded model of two super weights, shared and watched alike."""
    return swcheck.load("tiny-pair", device="cpu")


@pytest.fixture(scope="session")
def random_llama() -> LlamaForCausalLM:
    """A Llama of random weights and a few thousand parameters, without a super weight."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def fingerprint(model: torch.nn.Module) -> tuple[str, int]:
    """A digest of every parameter bit, and the number of hooks and exchanged forwards."""
    digest = hashlib.blake2b()
    for parameter in model.parameters():
        digest.update(parameter.detach().contiguous().view(torch.uint8).numpy())
    marks = sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) + ("forward" in vars(module))
        for module in model.modules()
    )
    return digest.hexdigest(), marks


@pytest.fixture(autouse=True)
def no_traces(request: pytest.FixtureRequest):
    """After a test that used a shared model, its parameters and hooks are as before."""
    names = [name for name in ("tiny", "tiny_pair", "random_llama") if name in request.fixturenames]
    models = [getattr(request.getfixturevalue(name), "model", None) for name in names]
    models = [request.getfixturevalue(n) if n == "random_llama" else m for n, m in zip(names, models, strict=True)]
    before = [fingerprint(model) for model in models]
    yield
    assert [fingerprint(model) for model in models] == before, "the test left traces in a shared model"
