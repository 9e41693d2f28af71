"""Same basis, permuted, rotated, another model, another shape, or nothing that can be read."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swcheck.gate.relation.basis import Relation, relation_of_embeddings, relation_of_samples
from swcheck.superweights.measurements.model_sample import ModelSample, sample_model
from tests.planted import plant


def sample_of(rows) -> ModelSample:
    """The sample of a model with this embedding."""
    return ModelSample(1, rows.shape[1], 8, torch.arange(len(rows)), rows)


def between(candidate, reference) -> Relation:
    """The relation of two modules."""
    return relation_of_samples(sample_model(candidate), sample_model(reference))


def table(seed, rows=300, width=64):
    """An embedding table of chance, with a mean that is not zero, as real ones have it."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=generator) + torch.randn(width, generator=generator)


def rotation(seed, width):
    return torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(seed)))[0]


SEEDS = st.integers(0, 2**16)


@given(seed=SEEDS, scale=st.floats(0.1, 10))
def test_same_basis(seed, scale):
    """A copy, scaled and with the noise of a coarse quantization, is in the same basis."""
    rows = table(seed)
    noise = 0.2 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed + 1))
    assert relation_of_embeddings(scale * (rows + noise), rows).kind == "same basis"
    assert relation_of_embeddings(rows, rows) == Relation("same basis", "Gram matrices correlate at 1.00, rows at 1.00")


@given(seed=SEEDS)
def test_permuted(seed):
    """A copy whose channels are permuted is found out, with the place each of the reference's channels has gone to."""
    rows = table(seed)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(seed + 1))
    candidate = (rows + 0.1 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed + 2)))[:, order]
    found = relation_of_embeddings(candidate, rows)
    assert found.kind == "permuted"
    assert found.words.startswith("its channels are permuted (they match at ")
    assert order[list(found.channels)].tolist() == list(range(64))


@given(seed=SEEDS)
def test_rotated(seed):
    """A copy that is rotated, as QuaRot does it, is related, in another basis."""
    rows = table(seed)
    found = relation_of_embeddings(rows @ rotation(seed + 1, 64), rows)
    assert (found.kind, found.channels) == ("rotated", ())
    assert found.words.startswith("its residual stream has another basis (Gram 1.00, rows ")


@pytest.mark.parametrize("width", [16, 64, 1024, 4096])
def test_strangers(width):
    """Two models of chance are strangers, however wide they are."""
    for seed in range(3):
        found = relation_of_embeddings(table(seed, width=width), table(seed + 100, width=width))
        assert found.kind == "other model"
        assert found.words.startswith("the embeddings' Gram matrices correlate at ")
        assert abs(float(found.words.split(" at ")[1].split(",")[0])) < 0.2


def test_vocabularies_of_other_sizes():
    """Of a vocabulary that was extended, the rows in common are compared."""
    rows = table(0, rows=1000)
    short, long = sample_of(rows), sample_of(torch.cat([rows, table(1, rows=7)]))
    assert relation_of_samples(long, short).kind == relation_of_samples(short, long).kind == "same basis"
    assert relation_of_embeddings(rows[:3], rows[:3]).kind == "same basis"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_not_finite(value):
    """Embeddings that hold NaN or infinity say nothing about the basis."""
    rows = table(0)
    broken = rows.clone()
    broken[0, 0] = value
    unknown = Relation("unknown", "an embedding holds NaN or infinity")
    assert relation_of_embeddings(broken, rows) == relation_of_embeddings(rows, broken) == unknown


def test_models(random_llama):
    """Models of one shape are compared by their embeddings."""
    other = copy.deepcopy(random_llama)
    assert between(other, random_llama).kind == "same basis"
    embedding = other.model.embed_tokens.weight
    embedding.data = embedding.data @ rotation(0, 16)
    assert between(other, random_llama).kind == "rotated"
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    embedding.data = random_llama.model.embed_tokens.weight.data[:, order]
    found = between(other, random_llama)
    assert found.kind == "permuted"
    assert order[list(found.channels)].tolist() == list(range(16))
    embedding.data = table(5, rows=64, width=16)
    assert between(other, random_llama).kind == "other model"
    assert between(other.to(torch.bfloat16), other).kind == "same basis"


def test_portraits():
    """A portrait holds rows at indices that padding and a larger vocabulary leave in common."""
    small, large = plant([]), plant([])
    large.resize_token_embeddings(1200)
    large.model.embed_tokens.weight.data[:64] = small.model.embed_tokens.weight.data
    one, other = sample_model(small), sample_model(large)
    assert (one.layers, one.hidden, one.inner) == (6, 32, 24)
    assert torch.equal(one.rows, small.model.embed_tokens.weight[one.indices])
    assert torch.equal(other.rows, large.model.embed_tokens.weight[other.indices])
    assert len(other.indices) <= 256
    assert relation_of_samples(one, other).kind == relation_of_samples(other, one).kind == "same basis"


def test_other_shape(random_llama):
    """Models of other shapes are said to be so, with both shapes."""
    found = between(plant([]), random_llama)
    words = "width 32, where the reference has 16 (layers: 6 for 4)"
    assert found == Relation("other shape", words)


@pytest.mark.parametrize(
    "embedding",
    [torch.nn.Identity(), torch.nn.Embedding(64, 16, device="meta")],
    ids=["no weight", "no values"],
)
def test_unreadable(random_llama, embedding):
    """Embeddings that cannot be read leave the relation unknown, whichever side they are on."""
    other = copy.deepcopy(random_llama)
    other.set_input_embeddings(embedding)
    unknown = Relation("unknown", "the embeddings cannot be read")
    assert between(other, random_llama) == between(random_llama, other) == unknown


def test_packed_embedding(random_llama):
    """Integer codes are no embedding that can be compared."""
    other = copy.deepcopy(random_llama)
    codes = torch.nn.Parameter(torch.ones(64, 16, dtype=torch.int8), requires_grad=False)
    other.model.embed_tokens.weight = codes
    assert between(other, random_llama).kind == "unknown"
