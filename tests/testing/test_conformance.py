"""The shared check of engines: good ones pass, and every way to be wrong is refused with the culprit named."""

from __future__ import annotations

import copy
import math
import sys
from dataclasses import dataclass, field, replace
from types import MethodType

import pytest
import torch
from torch import nn

import swcheck
from swcheck.base.errors import EngineError, OptionError
from swcheck.base.records import Loaded, Scheme, SuperWeight
from swcheck.lens.architecture.anatomy import anatomy
from swcheck.lens.intervene import zeroed
from swcheck.loading import huggingface, skip_option
from swcheck.quantizers import rtn
from swcheck.testing.conformance import check_engine, own_dequantization, save_narrowed_tiny
from swcheck.testing.engine_case import UNKNOWN_SCHEME
from swcheck.testing.engine_checkpoint import state_fingerprint
from tests.planted import Packed

pytestmark = pytest.mark.slow


WEIGHT = SuperWeight(1, 97, 301)
SCHEMES = ["int8", "also-int8"]


def pack(model):
    """Every down projection as int8 codes."""
    for layer in model.model.layers:
        layer.mlp.down_proj = Packed(layer.mlp.down_proj)


@dataclass
class Toy:
    """An engine that packs down projections; ``fault`` spoils the model it made, ``result`` what it returns."""

    fault: object = None
    result: object = staticmethod(lambda loaded: loaded)
    name: str = "toy"
    count: list = field(default_factory=list)

    def load(self, spec, *, reference, device, dtype):
        if spec not in SCHEMES:
            raise EngineError(f"scheme {spec!r} of toy", f"known: {', '.join(SCHEMES)}")
        self.count.append(spec)
        loaded = swcheck.load(reference, device=device, dtype=dtype)
        pack(loaded.model)
        if self.fault:
            self.fault(loaded.model)
        return self.result(replace(loaded, name=f"toy:{spec}", scheme=Scheme("absmax", 8)))


def refusal(engine, schemes=("int8",), **more):
    """The three lines of a refusal: what was asked, what was found, what to try."""
    with pytest.raises(AssertionError) as caught:
        check_engine(engine, schemes, **more)
    asked, found, attempt = str(caught.value).split("\n")
    assert found.startswith("  found: ")
    assert attempt.startswith("  try: ")
    return asked, found.removeprefix("  found: "), attempt.removeprefix("  try: ")


# --- good engines ------------------------------------------------------------------------------------------------------


def test_the_built_in_engine():
    """``rtn`` passes by name, plain weights and all, and what was read is the super weight of tiny."""
    one, other = check_engine("rtn", ["bits=4", "bits=8,per=row"])
    for reading in (one, other):
        assert reading.weight == WEIGHT
        assert reading.input == pytest.approx(150, rel=0.03)
        assert reading.contribution == pytest.approx(2.625, rel=1e-4)
        assert reading.one_hot == pytest.approx(2.625, rel=1e-4)
        assert reading.dequantized == pytest.approx(2.625, rel=1e-4)
        assert reading.saved == "equal"
    assert (one.scheme, other.loaded_scheme.weight_bits) == ("bits=4", 8)


def test_a_packed_engine():
    """A module without a weight, and without a word about it, is read by contribution and probe alone."""
    toy = Toy()
    (reading,) = check_engine(toy, ["int8"])
    assert reading.dequantized is None
    assert reading.contribution == pytest.approx(2.625, rel=1e-4)
    assert toy.count == ["int8", "int8"]


def test_given_super_weights_and_dequantization():
    """Other weights are looked at where they are named, and an engine's own reader is compared with the rest."""
    largest = SuperWeight(0, 1, 2)
    readings = check_engine(
        Toy(), ["int8"], super_weights=[WEIGHT, largest], dequantize=lambda module: module.unpacked().weight
    )
    assert [reading.weight for reading in readings] == [WEIGHT, largest]
    assert all(reading.dequantized is not None for reading in readings)


def test_half_precision():
    """In bfloat16 the readings differ by its rounding, and that is within the tolerance."""
    (reading,) = check_engine("rtn", ["bits=4"], dtype="bfloat16")
    assert reading.contribution == pytest.approx(2.625, rel=reading.tolerance)


def test_what_cannot_be_saved_is_said():
    """A format that refuses to be saved is no fault of the engine, and is named."""

    def unsaveable(model):
        def refuse(_self, *_args, **_kwargs):
            raise NotImplementedError

        model.save_pretrained = MethodType(refuse, model)

    (reading,) = check_engine(Toy(unsaveable), ["int8"])
    assert reading.saved == "refused: NotImplementedError"


def test_a_save_that_is_no_candidate():
    """A checkpoint that loads as another model is no way to release this one, though saved twice it is the same."""

    def forgetful(model):
        def save_pretrained(_self, folder):
            swcheck.load("tiny", device="cpu").model.save_pretrained(folder)

        model.save_pretrained = MethodType(save_pretrained, model)

    lines = refusal(Toy(lambda model: (spoil(model), forgetful(model))))
    assert lines[0] == "toy:int8: a saved candidate that answers as before"
    assert "% off" in lines[1]


def spoil(model):
    model.model.layers[2].mlp.down_proj.scale *= 1.5


def test_a_save_that_says_something_else(monkeypatch):
    """Directory and engine are held to the same limits; an unknown directory has those of an unknown scheme."""
    assert check_engine("rtn", ["bits=8"])[0].saved == "equal"
    monkeypatch.setattr(huggingface, "scheme_of", lambda _config: Scheme("rtn", 3))
    lines = refusal("rtn", ["bits=8"])
    assert lines[:2] == (
        "rtn:bits=8: the same limits for the saved candidate",
        "the directory 3-bit, the engine 8-bit weights",
    )


def test_an_engine_by_chance():
    """Where two loads differ, their checkpoints are not compared."""

    def jitter(model):
        model.model.layers[0].mlp.down_proj.scale *= 1 + 1e-3 * torch.rand(())

    (reading,) = check_engine(Toy(jitter), ["int8"])
    assert reading.saved == "not compared: two loads differ"


def skipping(toy, spec):
    """``toy`` with what ``,skip=`` names put back from the reference, as an engine that knows the option does."""
    words, names = skip_option.split_skip(spec)
    loaded = toy(words)
    plain = swcheck.load("tiny", device="cpu").model
    for name in skip_option.modules_to_skip(f"toy:{spec}", plain, names):
        parent, _, child = name.rpartition(".")
        setattr(loaded.model.get_submodule(parent), child, plain.get_submodule(name))
    return loaded


class Skipping(Toy):
    """Keeps what it is asked to keep."""

    def load(self, spec, *, reference, device, dtype):
        return skipping(
            lambda words: super(Skipping, self).load(words, reference=reference, device=device, dtype=dtype), spec
        )


class Deaf(Toy):
    """Takes the option and ignores it."""

    def load(self, spec, *, reference, device, dtype):
        return super().load(skip_option.split_skip(spec)[0], reference=reference, device=device, dtype=dtype)


class Obliging(Toy):
    """Keeps what it is asked to keep, and is silent about a name that is none."""

    def load(self, spec, *, reference, device, dtype):
        words, names = skip_option.split_skip(spec)
        known = [name for name in names if name.endswith("_proj")]
        whole = f"{words},skip={'+'.join(known)}" if known else words
        return skipping(
            lambda rest: super(Obliging, self).load(rest, reference=reference, device=device, dtype=dtype), whole
        )


class Lazy(Skipping):
    """Asked to keep one matrix, it quantizes none."""

    def load(self, spec, *, reference, device, dtype):
        if "skip=" not in spec:
            return super().load(spec, reference=reference, device=device, dtype=dtype)
        skip_option.modules_to_skip(spec, swcheck.load("tiny", device="cpu").model, skip_option.split_skip(spec)[1])
        return replace(swcheck.load("tiny", device="cpu"), scheme=Scheme("absmax", 8))


def test_skip_is_looked_at_where_it_is_offered():
    """The built-in engine and a good one keep the named matrix; an engine without the option is not held to it."""
    assert check_engine("rtn", ["bits=4"])[0].skip == "kept"
    assert check_engine(Skipping(), ["int8"])[0].skip == "kept"
    assert check_engine(Toy(), ["int8"])[0].skip == "not offered"


@pytest.mark.parametrize(
    ("engine", "asked", "found"),
    [
        (Deaf(), "model.layers.1.mlp.down_proj as the reference has it", "% off"),
        (Obliging(), "an error: nothing has this name", "it was loaded"),
        (Lazy(), "down projections of 8 bits", "skipped layers 0, 2, 3, 4"),
    ],
)
def test_skip_offered_wrongly(engine, asked, found):
    """An option that is ignored, takes any name, or leaves out the rest as well would prove a fix that is none."""
    lines = refusal(engine)
    assert asked in lines[0]
    assert found in lines[1]


# --- wrong wiring ------------------------------------------------------------------------------------------------------


class WithoutReference:
    name = "toy"

    def load(self, spec, *, device, dtype):
        raise AssertionError


class WithoutLoad:
    name = "toy"


class Eager(Toy):
    """Loads whatever it is asked for."""

    def load(self, spec, *, reference, device, dtype):
        return super().load("int8", reference=reference, device=device, dtype=dtype)


class Wordless(Toy):
    """Lets its own KeyError out."""

    def load(self, spec, *, reference, device, dtype):
        return {"int8": None}[spec]


class Secretive(Toy):
    """Refuses, and does not say what it knows."""

    def load(self, spec, *, reference, device, dtype):
        if spec == UNKNOWN_SCHEME:
            raise EngineError(f"scheme {spec!r}", "unknown")
        raise AssertionError


@pytest.mark.parametrize(
    ("engine", "asked", "found"),
    [
        (WithoutReference(), "engine 'toy'", "WithoutReference: load() lacks reference"),
        (WithoutLoad(), "engine 'toy'", "WithoutLoad: load() lacks"),
        (object(), "the name of object", "None"),
        (Toy(name="toy:8"), "the name of Toy", "'toy:8'"),
        (Toy(name=""), "the name of Toy", "''"),
        ("bitsandbites", "engine 'bitsandbites'", "installed: "),
        (Eager(), f"toy:{UNKNOWN_SCHEME}: an error", "it was loaded"),
        (Wordless(), f"toy:{UNKNOWN_SCHEME}: a worded error", f"KeyError: '{UNKNOWN_SCHEME}'"),
        (Secretive(), f"toy:{UNKNOWN_SCHEME}: an error that lists the schemes", "unknown"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_wrong_wiring(engine, asked, found):
    """Name, signature and the answer to an unknown scheme are checked before anything is loaded."""
    lines = refusal(engine)
    assert lines[0].startswith(asked)
    assert found in lines[1]
    assert isinstance(engine, str | Eager) or not getattr(engine, "count", [])


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch\n", "that alone imports torch"),
        ("import nothing_of_this_name\n", "No module named 'nothing_of_this_name'"),
    ],
)
def test_a_module_that_is_heavy_or_broken(tmp_path, monkeypatch, source, found):
    """What importing the engine's module does is looked at in a process of its own, before it is imported here."""
    (tmp_path / "heavy_engine.py").write_text(f"{source}ENGINE = None\n")
    info = tmp_path / "heavy_engine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: heavy-engine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[swcheck.engines]\nheavy = heavy_engine:ENGINE\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    asked, said, _ = refusal("heavy")
    assert asked == "import heavy_engine, engine 'heavy'"
    assert found in said
    assert "heavy_engine" not in sys.modules


class Asked(Toy):
    """Can be asked before it loads, by a function that a test gives."""

    def __init__(self, check):
        super().__init__()
        self.check = check


def known(spec):
    """What ``Toy`` raises, before it loads."""
    if spec not in SCHEMES:
        raise EngineError(f"scheme {spec!r} of toy", f"known: {', '.join(SCHEMES)}")


def other_words(spec):
    if spec not in SCHEMES:
        raise EngineError(f"{spec!r}", "it is none")


def too_strict(spec):
    raise EngineError(f"{spec!r}", "it is none")


def test_check_is_looked_at_where_it_is_offered():
    """An engine that can be asked passes if it takes and refuses what ``load`` does, in the same words."""
    assert check_engine(Asked(known), ["int8"])[0].scheme == "int8"


@pytest.mark.parametrize(
    ("check", "found"),
    [
        (lambda _spec: None, "check('no-such-scheme'): nothing is raised"),
        (other_words, "check('no-such-scheme'): 'no-such-scheme' found: it is none"),
        (too_strict, "check('int8'): 'int8' found: it is none"),
    ],
)
def test_check_offered_wrongly(check, found):
    """A check that lets everything pass, has words of its own, or refuses what loads would mislead whoever asks."""
    assert refusal(Asked(check))[:2] == ("toy: check() as load()", found)


def test_no_scheme_to_check():
    """A check of nothing is an error: it could not fail."""
    with pytest.raises(OptionError, match="no scheme to check"):
        check_engine("rtn", [])


# --- wrong candidates --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "asked", "found"),
    [
        (lambda loaded: loaded.model, "a swcheck.Loaded", "LlamaForCausalLM"),
        (lambda loaded: replace(loaded, scheme=None), "how it is quantized", "None"),
        (lambda loaded: replace(loaded, tokenizer=None), "a tokenizer and a name", "no tokenizer"),
        (lambda loaded: replace(loaded, name=""), "a tokenizer and a name", "no name"),
        (lambda loaded: replace(loaded, model=loaded.model.train()), "evaluation mode", "training"),
        (
            lambda loaded: replace(loaded, model=nn.Linear(2, 2).eval()),
            "the anatomy",
            "a pass over 5 tokens ends in TypeError",
        ),
    ],
)
def test_a_wrong_record(result, asked, found):
    """What load() returns is a whole record of a causal language model."""
    lines = refusal(Toy(result=result))
    assert lines[0].startswith("toy:int8: ")
    assert asked in lines[0]
    assert found in lines[1]


def drop_a_layer(model):
    del model.model.layers[4]


def go_around(model):
    """The kernel of an MLP that never calls its down projection."""
    mlp = model.model.layers[2].mlp
    fused = mlp.down_proj.unpacked()

    def forward(self, x):
        return fused(self.act_fn(self.gate_proj(x)) * self.up_proj(x))

    mlp.forward = MethodType(forward, mlp)


def overflow(model):
    model.model.layers[3].mlp.down_proj.scale *= math.inf


def skip_two(model):
    """A quantizer that leaves two layers as they were, without a word."""
    plain = swcheck.load("tiny", device="cpu").model.model.layers
    for layer in (0, 3):
        model.model.layers[layer].mlp.down_proj = plain[layer].mlp.down_proj


def lie(model):
    """A module whose own dequantization is not what it computes with."""
    liar = type("Liar", (Packed,), {"dequantize": lambda self: 1.07 * self.unpacked().weight})
    model.model.layers[1].mlp.down_proj.__class__ = liar


def ignore_edits(model):
    """A plain layer whose kernel keeps a copy of its own: what is written into the weight is ignored."""
    mlp = model.model.layers[1].mlp
    plain = mlp.down_proj.unpacked()
    kept = plain.weight.detach().clone()
    plain.register_forward_hook(lambda _module, args, _output: nn.functional.linear(args[0], kept.to(args[0].dtype)))
    mlp.down_proj = plain


def mix_rows(model):
    """A plain layer, and after it something that adds the mean of all rows to each."""
    mlp = model.model.layers[1].mlp
    mlp.down_proj = mlp.down_proj.unpacked()
    mlp.down_proj.register_forward_hook(lambda _module, _args, output: output + output.mean(-1, keepdim=True))


def count_passes(model):
    """A module that writes down how often it ran."""
    down = model.model.layers[0].mlp.down_proj
    down.register_buffer("passes", torch.zeros(1))
    down.register_forward_hook(lambda module, _args, _output: module.passes.add_(1) and None)


def drift(model):
    """A head that gives a little more in every pass."""
    passes = []
    model.lm_head.register_forward_hook(lambda _module, _args, output: passes.append(1) or output * (1 + len(passes)))


def repack(model):
    """The first pass transposes the codes, and a save does not know of it."""

    def transpose(module, _args):
        if not getattr(module, "repacked", False):
            module.repacked = True
            module.order = module.codes.t().contiguous()
            module.codes = module.order.view_as(module.codes)

    class Repacking(Packed):
        def forward(self, x):
            codes = self.order.t() if getattr(self, "repacked", False) else self.codes
            return nn.functional.linear(x, (codes * self.scale).to(x.dtype))

    down = model.model.layers[1].mlp.down_proj
    down.__class__ = Repacking
    down.register_forward_pre_hook(transpose)


@pytest.mark.parametrize(
    ("fault", "asked", "found"),
    [
        (drop_a_layer, "the anatomy of the reference, 5 layers", "4 layers, widths 256 and 512"),
        (go_around, "hooks fire at every down projection", "none in layer 2: the pass goes around the module"),
        (overflow, "finite logits", "NaN or infinity"),
        (skip_two, "down projections of 8 bits", "the quantizer skipped layers 0, 3"),
        (lie, "layer 1 [97, 301] = +2.625 read alike", "+2.625 by contribution, +2.8088 by its own dequantization"),
        (ignore_edits, "layer 1 [97, 301] = +2.625 times 0 writes", "an edit of the weight is ignored"),
        (mix_rows, "times 0 changes its row alone", "rows [0, 1, 2, 3, 4] change"),
        (count_passes, "no trace in the state dict", "1 tensors differ, first model.layers.0.mlp.down_proj.passes"),
        (drift, "the same logits after as before", "they differ"),
        (repack, "a checkpoint saved after the check", "first model.layers.1.mlp.down_proj.codes"),
    ],
)
def test_a_wrong_candidate(fault, asked, found):
    """Each fault that an engine was seen to have, or could have, is named at the first place where it shows."""
    lines = refusal(Toy(fault))
    assert lines[0].startswith("toy:int8: ")
    assert asked in lines[0]
    assert found in lines[1]


# --- its parts ---------------------------------------------------------------------------------------------------------


def test_a_kernel_with_its_own_copy_is_overridden_from_outside(tiny):
    """A module that is no plain layer is never written to, so a kernel that ignores writes is no obstacle."""

    class Caching(nn.Linear):
        kept = None

        def forward(self, x):
            self.kept = self.weight.detach().clone() if self.kept is None else self.kept
            return nn.functional.linear(x, self.kept)

    model = copy.deepcopy(tiny.model)
    ids = torch.tensor([[0, 5, 9, 33]])
    with torch.no_grad(), zeroed(tiny.model, [WEIGHT]):
        expected = tiny.model(ids).logits
    model.model.layers[1].mlp.down_proj.__class__ = Caching
    with torch.no_grad():
        model(ids)
        with zeroed(model, [WEIGHT]):
            assert torch.allclose(model(ids).logits, expected, rtol=1e-3, atol=1e-3)


def test_fingerprint(tiny):
    """One bit of one tensor changes one entry, and looking changes none."""
    model = copy.deepcopy(tiny.model)
    before = state_fingerprint(model)
    assert state_fingerprint(model) == before
    with torch.no_grad():
        model.model.norm.weight[3] += 1
    after = state_fingerprint(model)
    assert [name for name in before if before[name] != after[name]] == ["model.norm.weight"]


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Identity(), None),
        (nn.Linear(3, 2), "weight"),
        (type("Packing", (nn.Module,), {"dequantize": lambda _self: torch.ones(2, 3)})(), "ones"),
        (type("Wordy", (nn.Module,), {"dequantize": lambda _self: "no"})(), None),
    ],
)
def test_own_dequantization(module, expected):
    """A plain weight is itself, a module's own dequantize is asked, and what is no matrix is no answer."""
    found = own_dequantization(module)
    if expected is None:
        assert found is None
    else:
        assert torch.equal(found, module.weight if expected == "weight" else torch.ones(2, 3))


def test_narrowed(tmp_path, tiny):
    """The copy has fewer inner neurons, and computes what tiny does without the others."""
    cut = swcheck.load(save_narrowed_tiny(tmp_path, 480), device="cpu")
    assert anatomy(cut.model).inner == 480
    whole = copy.deepcopy(tiny.model)
    with torch.no_grad():
        for layer in whole.model.layers:
            layer.mlp.down_proj.weight[:, 480:] = 0
        ids = torch.tensor([[0, 5, 9, 33]])
        assert torch.allclose(cut.model(ids).logits, whole(ids).logits, rtol=1e-4, atol=1e-4)


def test_nothing_is_printed(capfd):
    """What an engine says while it loads is caught."""

    def chatter(_model):
        sys.stdout.write("welcome\n")
        sys.stderr.write("\rloading 1\rloading 2\n")

    check_engine(Toy(chatter), ["int8"])
    assert capfd.readouterr() == ("", "")


def test_the_engine_is_named_rtn():
    """The check of an engine object needs no entry point."""
    assert check_engine(rtn.ENGINE, ["bits=8"])[0].scheme == "bits=8"
    assert isinstance(rtn.ENGINE.load("bits=8", reference="tiny", device="cpu", dtype=None), Loaded)


class Clumsy(Toy):
    """Falls over its own scheme."""

    def load(self, spec, *, reference, device, dtype):
        super().load(spec, reference=reference, device=device, dtype=dtype)
        return Scheme("absmax", 8, method="twice")


def test_an_error_without_words_is_the_engines_fault():
    """What ``load`` raises from its depths is an ``AssertionError`` that names the scheme and the error."""
    asked, found, _ = refusal(Clumsy())
    assert asked.startswith("toy:int8")
    assert found == "TypeError: Scheme.__init__() got multiple values for argument 'method'"
