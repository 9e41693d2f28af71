"""A model in two processes of torchrun: whole matrices to read, edits that reach the rows of either, every bit restored."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from swcheck.loading import tiny
from swcheck.loading.parallel.shards import Rows, is_shared, own_rows, shared_like, whole
from tests.versions import RECENT
from tools.small_models import small_model

HERE = Path(__file__)
KINDS = ("llama", "qwen2", "qwen3", "gemma2", "phi3", "mistral", "olmo2", "glm")
"""Types with biases, with heads that are the embedding, fused maps, norms of heads, norms behind the down projection."""


def test_what_is_not_shared_is_itself():
    """Read, written and given back as it is: no copy."""
    matrix = torch.arange(6.0).view(3, 2)
    assert not is_shared(matrix)
    assert whole(matrix) is matrix
    assert shared_like(matrix, torch.zeros(3, 2)) is matrix
    assert own_rows(matrix).tensor is matrix
    own_rows(matrix).at(2)[0] = 9
    assert matrix[2, 0] == 9


def test_rows_of_a_matrix_know_where_they_lie():
    """Of the rows 2 and 3 of six."""
    matrix = torch.arange(12.0).view(6, 2)
    rows = Rows(matrix[2:4].clone(), 2)
    assert rows.at(3).tolist() == matrix[3].tolist()
    assert rows.at(1) is None
    assert rows.at(4) is None
    assert rows.among(torch.tensor([1, 2, 3, 4])).tolist() == [False, True, True, False]
    assert rows.of(matrix).tolist() == rows.tensor.tolist()


@RECENT
@pytest.mark.slow
@pytest.mark.parametrize(
    "checks", [["weights", "edits", "replacements", "damage"], ["rounding"], ["model_types"]], ids=" ".join
)
def test_in_two_processes(checks, tmp_path):
    """What is measured of a shared model is what is measured of a whole one; see the functions below."""
    for kind in KINDS if "model_types" in checks else ():
        small_model(kind, vocabulary=1024).save_pretrained(tmp_path / kind)
        AutoTokenizer.from_pretrained(tiny.CHECKPOINT).save_pretrained(tmp_path / kind)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV"))}
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(HERE), *checks],
        cwd=tmp_path,
        env={**clean, "PYTHONPATH": str(HERE.parents[3])},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert [result.stdout.count(f"{check} done") for check in checks] == [2] * len(checks)


IDS = torch.arange(0, 40).view(2, -1)


def _nats(model):
    from swcheck.lens.likelihood import token_nats

    return token_nats(model, IDS)


def _same(one, other):
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def weights(shared, alone):
    """Each matrix is read whole and kept in halves; neither process has the other's half."""
    from swcheck.lens.architecture.anatomy import anatomy, checked_anatomy
    from swcheck.lens.linear_maps import linear_maps, packed_maps, plain_matrices

    assert not packed_maps(shared)
    assert len(linear_maps(shared)) == len(linear_maps(alone)) == 35
    for one, other in zip(plain_matrices(anatomy(shared)), plain_matrices(anatomy(alone)), strict=True):
        assert (one.layer, one.path, one.down) == (other.layer, other.path, other.down)
        assert one.weight.equal(other.weight)
        assert len(own_rows(one.weight).tensor) * 2 == len(one.weight)
    assert checked_anatomy(shared).structure == checked_anatomy(alone).structure
    kept = sum(part.to_local().numel() if is_shared(part) else part.numel() for part in shared.parameters())
    whole_size = sum(part.numel() for part in alone.parameters())
    assert kept < 0.6 * whole_size


def edits(shared, alone):
    """Scalars, matrices and the largest of all are zeroed in whichever process keeps them, and are restored."""
    from swcheck import SuperWeight
    from swcheck.lens.architecture.anatomy import MapKey
    from swcheck.lens.intervene import maps_zeroed, scaled, set_to, zeroed
    from swcheck.lens.nulls import without_largest, without_matched

    places = SuperWeight(1, 97, 301), SuperWeight(1, 200, 5), SuperWeight(3, 255, 511)
    before = _nats(shared)
    blocks = {
        "zeroed": lambda model: zeroed(model, places),
        "one": lambda model: zeroed(model, places[:1]),
        "scaled": lambda model: scaled(model, places, 1.5),
        "set": lambda model: set_to(model, [SuperWeight(1, 97, 301, 0.5)]),
        "map": lambda model: maps_zeroed(model, [MapKey(2)]),
        "largest": lambda model: without_largest(model, places[:1], 1e-3),
        "matched": lambda model: without_matched(model, places[:1], 0),
    }
    for name, block in blocks.items():
        with block(shared) as one, block(alone) as other:
            assert one == other
            nats = _nats(shared)
            _same(nats, _nats(alone))
            assert not torch.equal(nats, before), name
        assert torch.equal(_nats(shared), before), name
    with zeroed(shared, places[:1]), scaled(shared, places[:1], 2.0), zeroed(alone, places[:1]):
        _same(_nats(shared), _nats(alone))
    assert torch.equal(_nats(shared), before)


def replacements(shared, alone):
    """A parameter that is shared takes a whole matrix, and gets its own back."""
    from swcheck.lens.replace import maps_replaced, parameters_replaced

    before = _nats(shared)
    name = "model.layers.1.mlp.down_proj"
    new = alone.get_submodule(name).weight.data.flip(0).clone()
    for block in (
        lambda model: parameters_replaced(model, {f"{name}.weight": new, "model.norm.weight": torch.ones(256)}),
        lambda model: maps_replaced(model, {name: new}, {}),
        lambda model: maps_replaced(model, {name: new[[3, 200]]}, {name: [3, 200]}),
    ):
        with block(shared), block(alone):
            _same(_nats(shared), _nats(alone))
            assert not torch.equal(_nats(shared), before)
        assert torch.equal(_nats(shared), before)


def damage(shared, alone):
    """NaN in the rows of one process is found by both."""
    from swcheck.lens.non_finite import first_non_finite, non_finite_rows

    assert non_finite_rows(shared) == {}
    for row in (3, 200):
        for model in (shared, alone):
            kept = own_rows(_down_weight(model)).at(row)
            if kept is not None:
                kept[7] = torch.nan
        assert non_finite_rows(shared) == non_finite_rows(alone)
        assert first_non_finite(shared, IDS) == first_non_finite(alone, IDS)
    assert list(non_finite_rows(shared).values()) == [(3, 200)]


def _down_weight(model):
    from swcheck.lens.architecture.anatomy import anatomy

    return anatomy(model).down_map(1).weight


def rounding(_shared, _alone):
    """The built-in quantizer rounds the whole matrix, whatever its blocks are, and keeps what it is asked to keep."""
    import swcheck
    from swcheck.base.errors import OptionError
    from swcheck.lens.architecture.anatomy import anatomy
    from swcheck.lens.linear_maps import plain_matrices
    from swcheck.study.common.setup import setup_of

    for spec in (
        "rtn:bits=3,block=4096",
        "rtn:bits=2,per=tensor,keep=3,skip=model.layers.4.self_attn.v_proj",
        "rtn:bits=3,per=row,keep",
    ):
        shared = swcheck.load(spec, reference="tiny", tensor_parallel=True).model
        alone = swcheck.load(spec, reference="tiny", device="cpu").model
        for one, other in zip(plain_matrices(anatomy(shared)), plain_matrices(anatomy(alone)), strict=True):
            assert one.weight.equal(other.weight), (spec, one.path)
    with pytest.raises(OptionError, match="a study of tiny"):  # it would write into the copies of whole matrices
        setup_of(swcheck.load("tiny", tensor_parallel=True))


def model_types(_shared, _alone):
    """Biases, heads that are the embedding, fused maps, norms behind the down projection: the numbers of a whole model."""

    import swcheck
    from swcheck.lens.architecture.anatomy import checked_anatomy
    from swcheck.lens.architecture.storage import evaluating

    for kind in KINDS:
        shared = swcheck.load(f"./{kind}", tensor_parallel=True).model
        alone = swcheck.load(f"./{kind}", device="cpu").model
        assert any(map(is_shared, shared.parameters())), kind
        assert checked_anatomy(shared).structure == checked_anatomy(alone).structure, kind
        with evaluating(shared), evaluating(alone):
            _same(shared(IDS).logits, alone(IDS).logits)


def _main() -> None:
    import swcheck

    shared = swcheck.load("tiny", tensor_parallel=True).model
    alone = swcheck.load("tiny", device="cpu").model
    for check in sys.argv[1:]:
        globals()[check](shared, alone)
        print(f"{check} done", flush=True)


if __name__ == "__main__":
    _main()
