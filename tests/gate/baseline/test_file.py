"""Baselines: small, faithful, refused where they do not belong."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers.processors import ByteLevel

from swcheck import (
    Outcome,
    RobustnessError,
    SuperWeight,
    assert_collapses_when_zeroed,
    assert_perplexity_within,
    assert_predictions_preserved,
    assert_super_activations_preserved,
    assert_super_weights_preserved,
    load,
)
from swcheck.base.errors import CheckpointError, CoordinateError, OptionError, WrongModelError
from swcheck.base.output_files import write_atomically
from swcheck.gate.baseline import document, file, identity, measure, packing
from swcheck.gate.relation.candidate_kind import WeightSample
from swcheck.lens.kl_divergence import Predictions
from swcheck.lens.map_responses import MapResponses
from swcheck.loading.tiny import CHECKPOINT
from swcheck.superweights.locating.located import Located
from swcheck.superweights.measurements import ablation
from swcheck.superweights.measurements.located import located
from swcheck.superweights.measurements.model_sample import ModelSample, model_sample
from swcheck.superweights.measurements.residual_stream import sketch_of
from swcheck.superweights.measurements.weights import map_responses, matrix_row
from swcheck.superweights.subject.as_subject import as_subject
from swcheck.superweights.subject.held_model import HeldModel
from swcheck.superweights.subject.measurement import TRAITS
from swcheck.superweights.subject.memory import Memory
from swcheck.superweights.subject.subject import Subject
from swcheck.testing.damage import bases as relatives
from tests import checkpoints, damage, hostile

PROMPTS = ["Hello, world.", "def spam(eggs):\n    return eggs"]
COMPARISONS = (
    assert_super_weights_preserved,
    lambda candidate, reference: assert_super_activations_preserved(candidate, reference, prompts=PROMPTS),
    assert_perplexity_within,
    assert_predictions_preserved,
    assert_collapses_when_zeroed,
)


@pytest.fixture(scope="module")
def live(tiny):
    """The reference, measured for comparison."""
    subject = Subject("tiny", HeldModel(tiny.model), tiny.tokenizer, text=tiny.text, memory=Memory())
    measure.measure_for_candidates(subject, PROMPTS)
    return subject


@pytest.fixture(scope="module")
def text(live):
    return file.baseline_text(live, {"weights": "abc", "device": "cpu"})


@pytest.fixture
def recorded(text):
    """The reference as its baseline has it: without weights."""
    return file.read_baseline(text, "tiny.json")[0]


@pytest.fixture
def beside(text):
    """The same, its folder on this machine."""
    subject = file.read_baseline(text, "tiny.json")[0]
    subject.source = str(CHECKPOINT)
    return subject


OWN = {"fix"}
"""What a quantizer makes of the reference: told only where that may be loaded."""


def tightly(candidate, reference):
    return assert_perplexity_within(candidate, reference, ratio=1.02)


def verdict_of(check, candidate, reference):
    try:
        return check(candidate, reference)
    except RobustnessError as error:
        return error.verdict


@pytest.mark.slow
@pytest.mark.parametrize(
    "edit", [damage.zero, damage.clip, damage.flip, damage.round_next_largest], ids=lambda edit: edit.__name__
)
def test_a_baseline_gives_the_verdicts_of_its_reference(tiny, live, recorded, edit):
    """Outcome and cause of every check are the same as with the reference at hand, and the number nearly."""
    candidates = [as_subject(damage.damaged(tiny, edit)) for _ in range(2)]
    for check in COMPARISONS:
        with_reference, without = map(verdict_of, (check, check), candidates, (live, recorded))
        assert without.outcome is with_reference.outcome, check
        assert without.cause.split("(")[0] == with_reference.cause.split("(")[0], check
        assert without.measured == pytest.approx(with_reference.measured, rel=2e-3, abs=2e-3), check


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_baseline_of_two_super_weights_names_the_one_that_is_lost(tiny_pair, lost):
    """The numbers that were measured of both together are enough to seek one of them in a candidate."""
    reference = as_subject(tiny_pair)
    measure.measure_for_candidates(reference)
    recorded = file.read_baseline(file.baseline_text(reference, {"weights": "abc"}), "pair.json")[0]
    weight = located(reference).super_weights[lost]
    model = copy.deepcopy(tiny_pair.model)
    with torch.no_grad():
        model.get_submodule(f"model.layers.{weight.layer}.mlp.down_proj").weight[weight.row, weight.column] = 0
    for known in (reference, recorded):
        verdict = verdict_of(assert_super_weights_preserved, replace(tiny_pair, model=model), known)
        assert verdict.cause.startswith(f"super weight at {weight.place} zeroed")


def test_a_permuted_candidate_is_followed_from_a_baseline(tiny, recorded):
    """The portrait in the file is enough to map permuted channels."""
    candidate = damage.Loaded(relatives.permuted(tiny.model), tiny.tokenizer, "permuted")

    assert assert_super_weights_preserved(candidate, recorded).outcome is Outcome.PASSED


def test_it_is_small(text):
    """A baseline of tiny is some hundred kilobytes, the same text twice, and plain JSON."""
    assert len(text) < 300_000
    assert json.loads(text)["super_weights"][0]["row"] == damage.ROW


def test_writing_is_deterministic(live, text):
    """The same measurements give the same file, so that a diff shows a change."""
    assert file.baseline_text(live, {"weights": "abc", "device": "cpu"}) == text


def edited(tiny, edit):
    """A copy of tiny with ``edit`` done to its model."""
    model = copy.deepcopy(tiny.model)
    with torch.no_grad():
        edit(model)
    return damage.Loaded(model, tiny.tokenizer, edit.__name__, tiny.text)


def turn_a_gate(model):
    model.model.layers[3].mlp.gate_proj.weight.mul_(-1)


def blur_a_gate(model):
    """Noise as large as the gate itself, which has no form that could be named."""
    weight = model.model.layers[3].mlp.gate_proj.weight
    weight.add_(2 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).to(weight))


def turn_a_row(model):
    model.model.layers[2].self_attn.o_proj.weight[11].mul_(-30)


def lose_a_matrix(model):
    model.model.layers[4].self_attn.v_proj.weight.zero_()


def one_scale(model):
    """The outlier is exact, all others of its matrix round to nothing."""
    matrix = model.model.layers[1].mlp.down_proj.weight
    step = matrix[damage.ROW, damage.COLUMN] / 7
    matrix.copy_((matrix / step).round() * step)


def permute_the_embedding(model):
    order = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight[:, order])


def rotate_the_embedding(model):
    turn = torch.linalg.qr(torch.randn(256, 256, generator=torch.Generator().manual_seed(0)))[0]
    model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight @ turn)


def two_bits(tiny):
    return load("rtn:bits=2,block=128", reference="tiny", device="cpu")


def four_bits_but_two(tiny):
    """A plain 4-bit candidate whose quantizer went past two matrices, and whose gate is broken."""
    candidate = load("rtn:bits=4,block=128", reference="tiny", device="cpu")
    with torch.no_grad():
        for name in ("model.layers.1.mlp.down_proj", "model.layers.3.self_attn.q_proj"):
            candidate.model.get_submodule(name).weight.copy_(tiny.model.get_submodule(name).weight)
        turn_a_gate(candidate.model)
    return candidate


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "cause", "worst"),
    [
        (turn_a_gate, "linear map model.layers.3.mlp.gate_proj is scaled x-1", None),
        (blur_a_gate, "not the super weights", "layers.3.mlp.gate_proj"),
        (turn_a_row, "not the super weights", "layers.2.self_attn.o_proj"),
        (lose_a_matrix, "linear map model.layers.4.self_attn.v_proj is all zeros", None),
        (two_bits, "not the super weights", "layers.0.self_attn.k_proj"),
        (four_bits_but_two, "linear map model.layers.3.mlp.gate_proj is scaled x-1", None),
        (one_scale, "block neighbours of the super weight pay (layer 1, its whole matrix)", None),
        (permute_the_embedding, "basis: the embedding is permuted", None),
        (rotate_the_embedding, "basis: the embedding is rotated", None),
    ],
)
def test_a_baseline_explains_as_its_reference_does(tiny, live, beside, make, cause, worst):
    """Cause, proof, first bad layer, worst matrices, skipped layers and fix are those that the reference itself shows."""
    whole = make in {two_bits, four_bits_but_two}
    candidate = make(tiny) if whole else edited(tiny, make)
    here, alone = (verdict_of(tightly, candidate, reference) for reference in (live, beside))

    assert alone.cause.startswith(cause)
    assert alone.cause == here.cause
    told = [[row for row in verdict.detail if row[0] not in OWN and "Gram" not in row[1]] for verdict in (here, alone)]
    assert told[1] == told[0]
    assert not any(name == "not known" or "not known" in text for name, text in told[1])
    assert alone.facts["not_quantized"] == here.facts["not_quantized"]
    assert len(alone.facts["not_quantized"]) == (2 if make is four_bits_but_two else 0)
    assert alone.facts["fix"]["matrices"] == here.facts["fix"]["matrices"] if "fix" in here.facts else True
    names = [name for name, _ in told[1] if name.startswith("layers.")]
    assert names[:1] == ([worst] if worst else [])


def noise(loaded):
    """Factors without a form for the down projection of layer 1."""
    shape = loaded.model.model.layers[1].mlp.down_proj.weight.shape
    return 1 + 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0)).abs()


@pytest.mark.slow
def test_a_reference_without_super_weights_explains_as_well(tmp_path):
    """Where none is found a red gate names layer and matrices all the same, from the file as from the reference."""
    loaded = load(str(checkpoints.micro(tmp_path / "micro")), device="cpu")
    short = checkpoints.tiny.HELDOUT.read_text(encoding="utf-8")[:2000]  # so that further windows are cut for a proof
    reference = Subject("micro", HeldModel(loaded.model), loaded.tokenizer, text=short, memory=Memory())
    measure.measure_for_candidates(reference)
    kept = file.read_baseline(file.baseline_text(reference, {}), "micro.json")[0]
    kept.text, kept.source = short, str(tmp_path / "micro")
    candidate = edited(loaded, lambda model: model.model.layers[1].mlp.down_proj.weight.mul_(noise(loaded)))
    here, alone = (verdict_of(tightly, candidate, one) for one in (reference, kept))

    rows = dict(alone.detail)
    assert not located(reference).super_weights
    assert alone.cause == here.cause
    assert "rises most in layer 1" in rows["layers"]
    assert rows["layers.1.mlp.down_proj"] == dict(here.detail)["layers.1.mlp.down_proj"]
    assert rows["given back"].startswith("this matrix through a hook: KL 0.0000 nats (was 0.0")
    assert rows["given back"].endswith("100% of the drift returns")


@pytest.mark.slow
def test_what_a_file_cannot_say_is_said(tiny, recorded):
    """Without the reference's folder its whole matrix is not known, and the reason stands there; all else is told."""
    verdict = verdict_of(assert_perplexity_within, edited(tiny, one_scale), recorded)

    assert verdict.cause.startswith("not the super weights")
    assert any(
        "its whole matrix: not known, the reference is not on this machine" in text for _, text in verdict.detail
    )
    assert next(name for name, _ in verdict.detail if name.startswith("layers.")) == "layers.1.mlp.down_proj"
    verdict = verdict_of(assert_perplexity_within, edited(tiny, rotate_the_embedding), recorded)
    words = "whether only its embedding is rotated: the reference is not on this machine"
    assert ("not known", words) in verdict.detail


@pytest.mark.slow
@pytest.mark.parametrize(
    ("relative", "words"), [(relatives.permuted, "channels are permuted"), (relatives.rotated, "has another basis")]
)
def test_in_another_basis_no_matrix_is_blamed(tiny, live, beside, relative, words):
    """Channels that are permuted are followed to the first bad layer; matrices of another basis do not compare."""
    candidate = damage.Loaded(relative(edited(tiny, turn_a_gate).model), tiny.tokenizer, "odd")
    for reference in (live, beside):
        verdict = verdict_of(tightly, candidate, reference)
        rows = dict(verdict.detail)

        assert verdict.cause.startswith("not the super weights")
        assert words in rows["not known"]
        assert ("rises most in layer 3" in rows.get("layers", "")) == (relative is relatives.permuted)
        assert not [name for name in rows if name.startswith("layers.")]
        assert "fix" not in verdict.facts


@pytest.mark.slow
@pytest.mark.parametrize("edit", [one_scale, permute_the_embedding])
def test_files_of_other_weights_give_nothing_back(tiny, recorded, tmp_path, edit):
    """A matrix that is not what the baseline was measured on is not put to use, and that is said."""
    folder = checkpoints.copy_of_tiny(
        tmp_path / "other", checkpoints.tensors(lambda whole: {k: -v for k, v in whole.items()})
    )
    recorded.source = str(folder)

    verdict = verdict_of(assert_perplexity_within, edited(tiny, edit), recorded)

    assert any("the reference's files hold another" in text for _, text in verdict.detail)


@pytest.mark.slow
def test_a_model_of_too_many_maps_keeps_none(tiny, live, monkeypatch):
    """Beyond the budget of a file the maps are left out, in words; the first bad layer is known all the same."""
    monkeypatch.setattr("swcheck.lens.map_responses.VALUES_KEPT", 35 * 16)
    few = Subject(
        "tiny",
        HeldModel(tiny.model),
        tiny.tokenizer,
        text=tiny.text,
        memory=Memory({k: v for k, v in live.memory.values.items() if k != "echoes"}, TRAITS),
    )
    assert map_responses(few).values.shape == (35, 16)
    monkeypatch.setattr("swcheck.lens.map_responses.VALUES_KEPT", 35 * 16 - 1)
    kept = file.read_baseline(file.baseline_text(few, {}), "tiny.json")[0]

    verdict = verdict_of(assert_perplexity_within, edited(tiny, turn_a_gate), kept)

    assert "rises most in layer 3" in dict(verdict.detail)["layers"]
    assert "too many linear maps for a baseline" in dict(verdict.detail)["not known"]


@pytest.mark.slow
def test_other_random_numbers_are_not_compared(tiny, recorded):
    """Where the seed gives other inputs than where the baseline was measured, no matrix is blamed."""
    recorded.memory.values["echoes"] = replace(map_responses(recorded), drawn=map_responses(recorded).drawn + 1)

    verdict = verdict_of(assert_perplexity_within, edited(tiny, turn_a_gate), recorded)

    assert "other random numbers" in dict(verdict.detail)["not known"]


def test_a_new_measurement_without_weights_is_a_worded_error(recorded):
    """A number the file does not hold cannot be taken, and the error says why."""
    with pytest.raises(OptionError, match="its weights were freed"):
        ablation.ablated_nats(recorded, [])


def with_value(text, name, value, **changes):
    """The text of a baseline with the packed value of a measurement replaced, its digest made anew."""
    body = json.loads(text)
    kept = [[key, old] for key, old in body["measurements"] if name_of_packed(key) != name]
    entries = [*kept, [name, value]]
    return json.dumps(document.sealed({**body, "measurements": entries, **changes}))


def name_of_packed(key):
    """The name of a measurement in a packed key."""
    return key["tuple"][0] if isinstance(key, dict) else key


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("echoes", 7, "echoes, is 7, not MapResponses"),
        ("stream", {"tuple": []}, "not ResidualSketch"),
        ("profile", "flat", "profile, is 'flat', not a tuple"),
        ("finite", 1, "finite, is 1, not bool"),
        ("parameters", "many", "parameters, is 'many', not a whole number"),
        ("parameters", -1, "parameters, is -1, not a whole number"),
        ("parameters", 2**70, "not a whole number"),
        ("prompts", {"tuple": [1]}, r"prompts,\[0\] is 1, not Prompt"),
        ("bos", "yes", "bos, is 'yes', not bool"),
        ("noise", {"tuple": [1.0]}, "not a tuple of 2"),
        ("windows", packing.pack(torch.rand(2, 3)), "windows, is 'of float', not of int"),
        ("windows", packing.pack(torch.zeros(3, dtype=torch.int64)), r"of shape \(3,\)', not of shape \(B, T\)"),
        ("windows", packing.pack(-torch.ones(2, 3, dtype=torch.int64)), "is -1, not without negative numbers"),
        ("windows", packing.pack(torch.zeros(2, 3, dtype=torch.int64)), "nats of windows"),
        ("portrait", packing.pack(ModelSample(6, 4, 4, torch.arange(3), torch.rand(2, 4))), r"not of shape \(N = 3, H\)"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_or_shape_is_refused(text, name, value, words):
    """Whatever a measurement returns is held against its annotation, also where the digest fits."""
    with pytest.raises(CheckpointError, match=words):
        file.read_baseline(with_value(text, name, value), "x.json")


def test_scores_of_other_windows_are_refused(text):
    """A position behind the last prediction cannot be one of the windows."""
    body = json.loads(text)
    unpacked = file.read_baseline(text, "x.json")[0].memory.values
    nats, predictions = unpacked["intact"]
    odd = replace(predictions, positions=predictions.positions + nats.numel())
    with pytest.raises(CheckpointError, match="not positions in"):
        file.read_baseline(with_value(text, "intact", packing.pack((nats, odd))), "x.json")
    assert body["schema"] == document.SCHEMA


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (7, "is 7, not the name of a measurement"),
        ({"tuple": []}, r"is \(\), not the name of a measurement"),
        (packing.pack(("row", torch.arange(2))), "is 'a tensor', not a plain value"),
        (packing.pack(("row", SuperWeight(-1, 0, 0))), "layer is -1, not a whole number"),
        ("windows", "not there once"),
    ],
)
def test_a_key_that_is_none_is_refused(text, key, words):
    """A key is a name, alone or with plain inputs, and is there once."""
    body = json.loads(text)
    with pytest.raises(CheckpointError, match=words):
        file.read_baseline(
            json.dumps(document.sealed({**body, "measurements": [*body["measurements"], [key, 1]]})), "x"
        )


def test_what_this_version_does_not_measure_is_left_out(text):
    """A measurement of a later version, or one that no baseline keeps, is not read: nothing would ask for it."""
    body = json.loads(text)
    more = [["telepathy", 1], ["residuals", 1]]
    subject = file.read_baseline(
        json.dumps(document.sealed({**body, "measurements": body["measurements"] + more})), "x"
    )[0]
    assert "telepathy" not in subject.memory
    assert "residuals" not in subject.memory


@pytest.mark.parametrize("schema", [2, 3])
def test_older_schemas_are_read_as_strictly(text, schema):
    """Files from before the digest are read, and their values held against the same types."""
    old = {name: value for name, value in json.loads(text).items() if name != "digest"} | {"schema": schema}
    assert located(file.read_baseline(json.dumps(old), "x.json")[0]).super_weights == (damage.WEIGHT,)
    entries = [[key, "x" if name_of_packed(key) == "finite" else value] for key, value in old["measurements"]]
    with pytest.raises(CheckpointError, match="finite, is 'x', not bool"):
        file.read_baseline(json.dumps({**old, "measurements": entries}), "x.json")


def test_a_nested_value_without_end_is_refused(text):
    """Tuples in tuples beyond the depth that can be unpacked are an error in words."""
    deep = '{"tuple": [' * 400 + "1" + "]}" * 400
    body = text.replace('"measurements": [', f'"measurements": [["noise", {deep}], ', 1)
    with pytest.raises(CheckpointError, match="no baseline of swcheck"):
        file.read_baseline(body, "x.json")


@pytest.mark.slow
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_baseline_is_read_or_refused(text, data):
    """With one place replaced by anything: refused by its digest, and with a digest made anew read or refused in words."""
    body = json.loads(text)
    odd = data.draw(hostile.damaged(body))
    if odd != body:
        with pytest.raises(CheckpointError):
            file.read_baseline(json.dumps(odd), "x.json")
    if isinstance(odd, dict):
        with suppress(CheckpointError):
            subject, facts = file.read_baseline(json.dumps(document.sealed(odd)), "x.json")
            assert isinstance(subject.name, str)
            identity.check_identity(facts, {"weights": None}, "x.json")


@pytest.mark.slow
def test_every_measurement_is_known_to_the_reader():
    """What a baseline may keep is declared by the modules that the reader imports, each with a type that can be held against."""
    code = """if True:
        import importlib, pkgutil, swcheck
        from swcheck.gate.baseline import file, value_types
        from swcheck.superweights.subject.measurement import SLOTS
        known = {name for name in SLOTS if value_types.is_known(name)}
        for name in known:
            str(SLOTS[name].value_type)
        for module in pkgutil.walk_packages(swcheck.__path__, "swcheck."):
            if module.name.startswith(("swcheck.gate", "swcheck.superweights", "swcheck.lens")):
                importlib.import_module(module.name)
        print(sorted({name for name in SLOTS if value_types.is_known(name)} - known))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_other_weights_are_refused_and_other_conditions_noted():
    """Other weights, text or tokenizer is an error; another device or version is a note; unknown is neither."""
    facts = {"weights": "a", "text": "b", "device": "cpu", "torch": "2.13"}

    assert identity.check_identity(facts, {"weights": "a", "device": "cpu"}, "x.json") == []
    assert "device cpu" in identity.check_identity(facts, {"device": "cuda"}, "x.json")[0]
    with pytest.raises(WrongModelError, match="for these weights"):
        identity.check_identity(facts, {"weights": "z"}, "x.json")


def test_a_baseline_without_identity_is_refused():
    """Where the weights are here, a file that does not say which it was measured with is refused; where not, its name counts."""
    with pytest.raises(WrongModelError, match="does not say with which"):
        identity.check_identity({"weights": None}, {"weights": "a"}, "x.json")
    with pytest.raises(WrongModelError, match="it was measured of b"):
        identity.check_identity({"weights": "a", "model": "b"}, {"weights": None, "model": "c"}, "x.json")
    assert identity.check_identity({"weights": "a", "model": "b"}, {"weights": "a", "model": "c"}, "x.json") == []


def test_the_identity_of_weights_is_that_of_their_bytes(tmp_path):
    """One changed byte in a sampled place is other weights; a folder without weights has none."""
    data = bytearray((CHECKPOINT / "model.safetensors").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(data)

    assert identity.weights_identity(tmp_path) == identity.weights_identity(CHECKPOINT)
    data[len(data) // 2 + 7] ^= 1
    (tmp_path / "model.safetensors").write_bytes(data)
    assert identity.weights_identity(tmp_path) != identity.weights_identity(CHECKPOINT)
    assert identity.weights_identity(tmp_path / "nowhere") is None
    checkpoints.copy_of_tiny(tmp_path / "more")
    (tmp_path / "more" / "consolidated.safetensors").write_bytes(b"for another runtime")
    assert identity.weights_identity(tmp_path / "more") == identity.weights_identity(CHECKPOINT)


@pytest.mark.parametrize("whole", [identity.WHOLE_FILE_BYTES, 0], ids=["small file", "large file"])
@pytest.mark.parametrize(
    "name", ["model.layers.2.post_attention_layernorm.weight", "model.layers.3.mlp.up_proj.weight"]
)
def test_one_tensor_made_anew_is_other_weights(tmp_path, monkeypatch, name, whole):
    """Whichever tensor was scaled, a norm too, the identity is another one, in a file read whole or sampled."""
    monkeypatch.setattr(identity, "WHOLE_FILE_BYTES", whole)
    tensors = load_file(CHECKPOINT / "model.safetensors")
    for folder, each in (("before", tensors), ("after", {**tensors, name: tensors[name] * 1.5})):
        (tmp_path / folder).mkdir()
        save_file(each, tmp_path / folder / "model.safetensors")
    assert identity.weights_identity(tmp_path / "before") != identity.weights_identity(tmp_path / "after")


def test_what_has_no_place_in_a_file_is_refused(live):
    """A value of an unknown kind is an error of ours, never a pickle."""
    odd = Subject("odd", memory=Memory({**live.memory.values, "thing": object()}, TRAITS))
    with pytest.raises(TypeError, match="has no place in a baseline"):
        file.baseline_text(odd, {})


def test_it_is_written_whole(tmp_path, text):
    """Writing makes the folder, replaces what was there, and leaves no part behind."""
    path = tmp_path / "baselines" / "tiny.json"
    write_atomically(path, "old")
    write_atomically(path, text)

    assert path.read_text() == text
    assert [child.name for child in path.parent.iterdir()] == ["tiny.json"]


@pytest.mark.slow
def test_the_largest_models_stay_under_a_megabyte():
    """With the sizes of a model of 70 billion parameters and six super weights the file is at most 1 MB."""
    chance = torch.Generator().manual_seed(0)
    width, inner, weights = 8192, 28672, [SuperWeight(2, row, 7 * row, 1.0) for row in range(6)]
    sites, names = torch.arange(1024), tuple(f"{n // 7}.self_attn.proj_{n % 7}" for n in range(560))
    logs = torch.randn(1024, 32, generator=chance)
    nats = torch.rand(32, 511, generator=chance, dtype=torch.float64)
    values = {
        "windows": torch.randint(0, 128_000, (32, 512), generator=chance),
        "intact": (nats, Predictions(sites, torch.randint(0, 128_000, (1024, 32), generator=chance), logs)),
        "portrait": ModelSample(80, width, inner, torch.arange(256), torch.randn(256, width, generator=chance)),
        "located": Located(tuple(weights), (1.0,) * 6, (), (), "six"),
        **{("row", weight): torch.randn(inner, generator=chance) for weight in weights},
        "echoes": MapResponses(
            names, torch.full((560,), width), torch.ones(560), torch.randn(560, 58, generator=chance), torch.zeros(40)
        ),
        "sketch": WeightSample(
            80, names[:56], ((width, width),) * 56, tuple(torch.randn(56, 4, 128, generator=chance).half())
        ),
        ("stream", 1): sketch_of(torch.randn(80, 20, width, generator=chance)),
        **{("causal", weight): nats[:, :127] for weight in weights},
    }
    text = file.baseline_text(Subject("large", memory=Memory(values, TRAITS)), {})

    assert len(text) < document.LARGEST_FILE
    again = file.read_baseline(text, "large.json")[0]
    assert model_sample(again).rows.shape == (12, width)
    assert [matrix_row(again, weight) is None for weight in weights] == [False] * 3 + [True] * 3
    assert map_responses(again).values.shape == (560, 58)


def test_another_bos_policy_is_another_tokenizer(tiny):
    """Ids decide, not files: without its BOS a tokenizer is another one, saved again it is the same."""
    import copy

    other = copy.deepcopy(tiny.tokenizer)
    same = identity.tokenizer_identity(other)
    assert same == identity.tokenizer_identity(tiny.tokenizer)
    other.backend_tokenizer.post_processor = ByteLevel()
    assert identity.tokenizer_identity(other) != same
    assert identity.tokenizer_identity(None) is None
    with pytest.raises(WrongModelError, match="for this tokenizer"):
        identity.check_identity({"tokenizer": same}, {"tokenizer": identity.tokenizer_identity(other)}, "x.json")


def test_a_snapshot_has_a_revision(tmp_path):
    """A folder of the hub's cache says which revision it is; another is a note, not a refusal."""
    assert identity.revision_of(tmp_path / "snapshots" / "abc") == "abc"
    assert identity.revision_of(tmp_path) is None
    assert identity.check_identity({"revision": "abc"}, {"revision": "abd"}, "x.json") == [
        "the baseline was measured with revision abc, this run has abd"
    ]


@pytest.mark.slow
def test_float16_costs_the_divergence_nothing(tiny, live, recorded):
    """The likeliest tokens are kept in two bytes: of the limit for 8 bits, 0.005 nats, that takes a hundredth at most."""
    candidate = load("rtn:bits=8,block=128", reference="tiny", device="cpu")
    exact, kept = (verdict_of(assert_predictions_preserved, candidate, one).measured for one in (live, recorded))

    assert 0 < exact < 2e-4
    assert abs(kept - exact) < 5e-5


def test_the_order_of_measuring_does_not_matter(live, text):
    """The same numbers taken in another order give the same file."""
    turned = Subject(live.name, memory=Memory(dict(reversed(live.memory.values.items())), TRAITS))
    assert file.baseline_text(turned, {"weights": "abc", "device": "cpu"}) == text


def test_named_super_weights_need_no_reference(tiny, recorded):
    """A caller's coordinates are checked by the sizes in the file, and judged where it holds their numbers."""
    assert assert_super_weights_preserved(tiny, recorded, super_weights=[damage.WEIGHT]).measured == pytest.approx(1)
    with pytest.raises(CoordinateError, match="layer 5 was asked for"):
        assert_super_weights_preserved(tiny, recorded, super_weights=[SuperWeight(5, 0, 0)])
