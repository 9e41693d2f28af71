"""Windows through one layer after the other: the numbers of whole passes, and one reading of the weights."""

from __future__ import annotations

import pytest
import torch

from swcheck.lens import likelihood
from swcheck.lens.architecture import layer_by_layer
from swcheck.lens.architecture.anatomy import checked_anatomy
from swcheck.lens.architecture.layer_by_layer import logits_of_windows
from swcheck.lens.architecture.storage import evaluating
from swcheck.lens.kl_divergence import predict
from swcheck.lens.likelihood import token_nats
from swcheck.lens.observe import observe
from swcheck.loading.streaming import pager
from swcheck.loading.streaming.mapped_pages import can_give_back
from swcheck.loading.streaming.pager import pager_of
from tests.versions import RECENT
from tools.small_models import small_model

pytestmark = pytest.mark.skipif(not can_give_back(), reason="only Linux shows which pages were written to")
IDS = torch.randint(5, 60, (5, 12), generator=torch.Generator().manual_seed(1))


def streamed(folder, model_type):
    """A small random model of a type, as it is loaded and streamed."""
    small_model(model_type).save_pretrained(folder)
    kind = type(small_model(model_type))
    whole, model = (kind.from_pretrained(folder, dtype="auto").eval() for _ in range(2))
    assert pager.page_weights(model, [folder / "model.safetensors"])
    return whole, model


@pytest.mark.parametrize(
    "model_type",
    [
        "llama",
        "gpt2",
        "gpt_neox",
        "gemma2",
        "olmo2",
        "opt",
        "falcon",
        pytest.param("phi", marks=RECENT),
        "cohere",
        pytest.param("mllama", marks=RECENT),
        pytest.param("reformer", marks=RECENT),
        pytest.param("hrm_text", marks=[RECENT, pytest.mark.slow]),
    ],
)
def test_the_numbers_are_those_of_whole_passes(tmp_path, monkeypatch, model_type):
    """For families whose layers return a tensor, or a tuple, with windows that are left over in the last batch.

    The layers of Mllama that read images do not run; those of Reformer hand on two tensors, those of HRM run in rounds.
    """
    monkeypatch.setattr(layer_by_layer, "TOKENS_AT_ONCE", 24)
    monkeypatch.setattr(likelihood, "LOGITS_AT_ONCE", 1)
    whole, model = streamed(tmp_path, model_type)
    assert torch.allclose(token_nats(model, IDS), token_nats(whole, IDS), atol=1e-5)
    assert torch.equal(predict(model, IDS)[1].tokens[:, :3], predict(whole, IDS)[1].tokens[:, :3])


def test_each_layer_runs_once_for_all_windows(tmp_path, monkeypatch):
    """And the weights are read once: no byte is given back twice but pages at the borders of tensors."""
    monkeypatch.setattr(likelihood, "LOGITS_AT_ONCE", 1)
    monkeypatch.setattr(pager, "LEAST", 0)
    _, model = streamed(tmp_path, "llama")
    runs = []
    for layer in checked_anatomy(model).layers:
        layer.mlp.register_forward_hook(lambda module, *_: runs.append(module))
    token_nats(model, IDS)
    assert runs == [layer.mlp for layer in checked_anatomy(model).layers]


def test_hooks_on_layers_see_whole_passes(tmp_path):
    """Where the layers are watched, batches pass through the whole model one after the other."""
    whole, model = streamed(tmp_path, "llama")
    seen = {}
    for name, one in (("streamed", model), ("whole", whole)):
        with evaluating(one), observe(one, residual=[0, 2]) as sight:
            logits = torch.cat(list(logits_of_windows(one, IDS, 2)))
        seen[name] = (logits, sight.residual[0], sight.residual[2])
    for mine, expected in zip(seen["streamed"], seen["whole"], strict=True):
        assert torch.allclose(mine, expected, atol=1e-5)


def test_the_whole_of_a_streamed_model_is_counted_once(tmp_path, monkeypatch):
    """A pass over many windows reads about as many bytes as the model has."""
    monkeypatch.setattr(likelihood, "LOGITS_AT_ONCE", 1)
    _, model = streamed(tmp_path, "llama")
    size = sum(span.size for span in pager_of(model).parameters)
    token_nats(model, IDS)
    assert 0.5 * size < pager_of(model).bytes_read < 2 * size
