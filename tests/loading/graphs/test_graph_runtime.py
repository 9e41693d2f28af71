"""What runtimes with a graph share: programs that are kept, a window in chunks."""

from __future__ import annotations

import pytest
import torch

from swcheck import Capability, GraphRuntime, SuperWeight, exportable_with_cache
from swcheck.base.errors import NotObservedError
from swcheck.loading.graphs import graph_runtime
from tools.small_models import small_model

IDS = torch.arange(20).remainder(7)


class InTorch(GraphRuntime):
    """A graph that torch computes; ``made`` lists the programs that were compiled."""

    title = "torch"

    def __init__(self, further=(Capability.CHUNKS,), stored_bytes=0):
        model = small_model("llama").eval()
        self.export = exportable_with_cache(model)
        self.maps = [layer.mlp.down_proj.weight.detach().numpy() for layer in model.model.layers]
        self.stored_bytes, self.vocabulary, self.made = stored_bytes, model.config.vocab_size, []
        self.found(range(len(self.maps)), range(len(self.maps)), None, further)

    def compiled(self, *, watched, cache):
        self.made.append((watched, cache, len(self.changes)))
        return self.export.module

    def stored_matrix(self, layer):
        return self.maps[layer]

    def padded_logits(self, ids, mask):
        past = [one[:1, :, :0].expand(len(ids), -1, -1, -1) for one in self.export.example[3]]
        with torch.no_grad():
            return self.program()(ids, mask, torch.arange(ids.shape[1]).expand(len(ids), -1), past)[0]

    def log_probabilities(self, ids):
        return self.padded_logits(ids[None], torch.ones_like(ids[None]))[0, :-1].log_softmax(-1)

    def logits_in_chunks(self, chunks, cache):
        past, start, run = [one[:1, :, :0] for one in self.export.example[3]], 0, self.program(cache=cache)
        for ids in chunks:
            end = start + ids.shape[1]
            with torch.no_grad():
                logits, *past = run(ids, torch.ones(1, end, dtype=torch.int64), torch.arange(start, end)[None], past)
            start = end
            yield logits[0]


def test_a_window_in_chunks_is_put_together():
    """Row by row what the window has at once, for any cuts, a range among them."""
    runtime = InTorch()
    whole = runtime.log_probabilities(IDS)
    for cuts in ((), (7,), range(6, 20, 6), (1, 2, 19)):
        found = runtime.chunked_log_probabilities(IDS, cuts=cuts)
        assert found.shape == whole.shape
        assert torch.allclose(found, whole, atol=1e-5)


def test_chunks_that_a_graph_does_not_show_are_refused():
    """In words that say what it shows."""
    with pytest.raises(NotObservedError, match="a window in chunks, of torch"):
        InTorch(()).chunked_log_probabilities(IDS, cuts=(3,))


def test_of_a_small_graph_the_plain_program_stays(monkeypatch):
    """Beside the last other one; of a large one the last alone, and nothing after it was closed."""
    monkeypatch.setattr(graph_runtime, "SMALL", 100)
    for size, wanted in ((100, [(False, 0), (True, 0), (False, 1), (True, 0)]), (101, None)):
        runtime = InTorch(stored_bytes=size)
        for _ in range(2):
            runtime.program()
        runtime.program(watched=True)
        runtime.program()
        with runtime.overridden({SuperWeight(1, 0, 0): 3.0}):
            runtime.program()
        runtime.program()
        runtime.program(watched=True)
        made = [(watched, changes) for watched, _, changes in runtime.made]
        assert made == (wanted or [(False, 0), (True, 0), (False, 0), (False, 1), (False, 0), (True, 0)])
        runtime.close()
        runtime.program()
        assert runtime.made[len(made) :] == [(False, "", 0)]


def test_another_type_of_cache_is_another_program():
    """It is compiled with the type, and the plain one is as before."""
    runtime = InTorch()
    runtime.chunked_log_probabilities(IDS, cuts=(3,), cache="u4")
    runtime.log_probabilities(IDS)
    assert runtime.made == [(False, "u4", 0), (False, "", 0)]
