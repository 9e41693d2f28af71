"""The shared check of an engine: one line in a third party's tests says whether swcheck can see inside what it makes.

    from swcheck.conformance import check_engine
    check_engine("bitsandbytes", ["int8", "nf4"])

Each scheme is loaded for real from a small reference. What is wrong with the engine is an ``AssertionError`` that says
what was asked, what was found and what to try; what cannot be done because of the reference is a ``SwcheckError``.
"""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, NoReturn

import torch

from swcheck import engines
from swcheck.anatomy import anatomy, device_of
from swcheck.errors import EngineError, OptionError, SwcheckError, first_words
from swcheck.intervene import scaled
from swcheck.limits import kind_of_scheme
from swcheck.location import PROMPT, locate
from swcheck.measure import evaluating
from swcheck.noise import captured
from swcheck.observe import Sight, contributions, observe, plain_weight
from swcheck.records import Engine, Loaded, Scheme, SuperWeight

if TYPE_CHECKING:
    from torch import nn

WEIGHT_ONLY: Final = 2**-7
"""Two ways of reading one scalar differ by the rounding of a bfloat16 output, once in each of two passes."""

ACTIVATIONS_TOO: Final = 0.03
"""Where activations are quantized as well, the sink sets the grid that the rest of its token is rounded on."""

SIXTEEN_BITS: Final = 2**-9
"""What a map that was left unquantized may answer off, for the middle token: the rounding of a bfloat16."""

ALIKE: Final = {2: 0.05, 4: 0.01}
"""What a saved candidate may answer off, by the bytes of its floats: a kernel chosen anew adds in another order, and
what quantization of the inputs changes is 1.5 %. A corrupt checkpoint is far away (bitsandbytes' repacked one: 91 %)."""

UNKNOWN: Final = "no-such-scheme"
NOT_OFFERED: Final = "not offered"
ALPHAS: Final = (0.0, 3.0)
HEAVY: Final = ("torch", "transformers", "numpy")


@dataclass(frozen=True)
class Reading:
    """What one scheme makes of one scalar: its input at the sink, and the weight as each way of reading gives it.

    ``contribution`` divides what the scalar writes by its input; ``one_hot`` does so with all other inputs at zero;
    ``dequantized`` is the module's own word, None where it has none. ``saved`` says how the checkpoints compared,
    ``seconds`` is what one load took, ``skip`` says whether ``,skip=NAME`` keeps a matrix or is not offered.
    """

    scheme: str
    weight: SuperWeight
    input: float
    contribution: float
    one_hot: float
    dequantized: float | None
    tolerance: float
    saved: str
    seconds: float
    loaded_scheme: Scheme
    skip: str = NOT_OFFERED


@dataclass(frozen=True)
class _Case:
    """One scheme of one engine under test, with the reference beside it."""

    engine: Engine
    scheme: str
    spec: str
    reference: Loaded
    ids: torch.Tensor
    weights: tuple[SuperWeight, ...]
    device: str
    dtype: str | None
    dequantize: Callable[[nn.Module], torch.Tensor | None]

    @property
    def title(self) -> str:
        return f"{self.engine.name}:{self.scheme}"

    def load(self) -> Loaded:
        with captured():
            return self.engine.load(self.scheme, reference=self.spec, device=self.device, dtype=self.dtype)

    def refuse(self, asked: str, found: str, attempt: str) -> NoReturn:
        _refuse(f"{self.title}: {asked}", found, attempt)


def check_engine(
    engine: Engine | str,
    schemes: Iterable[str],
    *,
    reference: str = "tiny",
    super_weights: Sequence[SuperWeight] = (),
    device: str = "cpu",
    dtype: str | None = None,
    dequantize: Callable[[nn.Module], torch.Tensor | None] | None = None,
) -> tuple[Reading, ...]:
    """Load every scheme of ``engine`` and look at it as swcheck does; returns what was read.

    ``engine`` is the name of an installed entry point, or the engine itself. ``super_weights`` are those to look at,
    by default the ones located in ``reference``. ``dequantize`` gives the weight ``(H, F)`` of one of the engine's
    linear maps where the module itself offers no public way; None where there is none. Raises ``AssertionError`` for
    whatever the engine does wrong.
    """
    names = tuple(schemes)
    if not names:
        raise OptionError(f"check engine {engine}", "no scheme to check", 'check_engine("rtn", ["bits=4"])')
    chosen = _wired(engine, names[0])
    loaded = engines.load(reference, device=device, dtype=dtype)
    ids = torch.tensor([loaded.tokenizer(PROMPT)["input_ids"]], dtype=torch.int64, device=device_of(loaded.model))
    weights = tuple(super_weights) or locate(loaded.model, token_ids=ids).super_weights
    if not weights:
        raise OptionError(f"super weights of {reference}", "none was located", "name some: super_weights=[...]")
    reader = dequantize or own_dequantization
    cases = [_Case(chosen, name, reference, loaded, ids, weights, device, dtype, reader) for name in names]
    _check_unknown(cases[0], names)
    kept = _check_skip(cases[0])
    return tuple(replace(reading, skip=kept) for case in cases for reading in _check_scheme(case))


def own_dequantization(module: nn.Module) -> torch.Tensor | None:
    """The weight ``(H, F)`` as the module says it is: its plain tensor, else what its own ``dequantize`` gives."""
    plain = plain_weight(module)
    if plain is not None:
        return plain
    weight = getattr(module, "weight", None)
    for owner in (weight, module):
        give = getattr(type(owner), "dequantize", None)
        if give is None or give is torch.Tensor.dequantize:
            continue  # every tensor has this method; on an ordinary one it says nothing
        with torch.no_grad():
            found = give(owner)
        if isinstance(found, torch.Tensor) and found.ndim == 2 and found.is_floating_point():
            return found
    return None


def fingerprint(model: nn.Module) -> dict[str, str]:
    """A digest of every tensor that a checkpoint of ``model`` would hold, the parts of packed ones included."""
    return {name: _digest(value) for name, value in model.state_dict().items()}


def narrowed(folder: Path, inner: int) -> str:
    """A copy of ``tiny`` with only the first ``inner`` of its 512 inner neurons, saved in ``folder``; the super weight,
    at column 301, may go with the rest. For tests of widths that no group divides.
    """
    loaded = engines.load("tiny", device="cpu")
    for layer in anatomy(loaded.model).layers:
        mlp: Any = layer.mlp
        for part, kept in (
            (mlp.gate_proj, (slice(inner),)),
            (mlp.up_proj, (slice(inner),)),
            (mlp.down_proj, (slice(None), slice(inner))),
        ):
            part.weight = torch.nn.Parameter(part.weight.detach()[kept].clone())
    loaded.model.config.intermediate_size = inner
    with captured():
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
    return str(folder)


# --- the engine itself -------------------------------------------------------------------------------------------------


def _wired(engine: Engine | str, scheme: str) -> Engine:
    """The engine, its wiring checked; one that is installed must not import anything heavy before it loads."""
    if isinstance(engine, str):
        if engine in engines.installed():
            _check_light(engine, scheme)
        try:
            return engines.engine(engine)
        except EngineError as error:
            raise AssertionError(str(error)) from error
    name, kind = getattr(engine, "name", None), type(engine)
    if not isinstance(name, str) or not name or any(mark in name for mark in ":/\\.~ "):
        _refuse(
            f"the name of {kind.__qualname__}", repr(name), "a plain word, as in the entry point: name = 'my-engine'"
        )
    try:
        engines.check_wiring(engine, name, f"{kind.__module__}:{kind.__qualname__}")
    except EngineError as error:
        raise AssertionError(str(error)) from error
    return engine


def _check_light(name: str, scheme: str) -> None:
    """Refuse an installed engine that imports torch or another heavy package before it is asked to load anything."""
    asked = f"import {engines.installed()[name].module}, engine {name!r}"
    code = f"import sys; from swcheck.engines import ask, installed; ask(installed()[{name!r}].load(), {scheme!r})"
    code += f"; print('heavy:', *[n for n in {HEAVY!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603 - our own
    if done.returncode:
        _refuse(asked, " ".join(done.stderr.strip().splitlines()[-3:]), "repair or remove it")
    heavy = done.stdout.strip().splitlines()[-1].split()[1:]
    if heavy:
        _refuse(asked, f"that alone imports {', '.join(heavy)}", "import it inside load(), and in no check()")


def _check_unknown(case: _Case, known: Sequence[str]) -> None:
    """A scheme that the engine does not know is refused in words, and those it knows are named."""
    asked = f"{case.engine.name}:{UNKNOWN}"
    try:
        with captured():
            case.engine.load(UNKNOWN, reference=case.spec, device=case.device, dtype=case.dtype)
    except SwcheckError as error:
        words = {name.replace("=", ",").split(",")[0] for name in known if not any(mark in name for mark in "/\\.")}
        if words and not any(word in str(error) for word in words):
            _refuse(f"{asked}: an error that lists the schemes", str(error).replace("\n", " "), "name all of them")
        _check_asked(case, known, str(error))
    except Exception as error:  # an engine may raise anything here, and that is what is tested
        found = f"{type(error).__name__}: {error}"
        _refuse(f"{asked}: a worded error", found, "raise swcheck.errors.EngineError(asked, found, attempt)")
    else:
        _refuse(f"{asked}: an error", "it was loaded", "raise swcheck.errors.EngineError for what you do not know")


def _check_asked(case: _Case, known: Sequence[str], refusal: str) -> None:
    """``check(spec)``, which an engine may have, takes what ``load`` takes, and refuses what it refuses, in its words."""
    if not hasattr(case.engine, "check"):
        return
    said: dict[str, str] = {}
    for scheme in (*known, UNKNOWN):
        try:
            case.engine.check(scheme)
        except Exception as error:  # as above
            said[scheme] = str(error)
    unlike = next((f"check({scheme!r}): {said[scheme]}" for scheme in known if scheme in said), "")
    if not unlike and said.get(UNKNOWN) != refusal:
        unlike = f"check({UNKNOWN!r}): {said.get(UNKNOWN, 'nothing is raised')}"
    if unlike:
        _refuse(f"{case.engine.name}: check() as load()", unlike, "let load() begin with what check() does")


def _check_skip(case: _Case) -> str:
    """``,skip=NAME`` leaves that map as the reference has it, and no other; a name that is none is refused."""
    layer = case.weights[0].layer
    name = anatomy(case.reference.model).down_name(layer)
    kept = replace(case, scheme=f"{case.scheme},skip={name}")
    try:
        loaded = _loaded(kept)
    except SwcheckError:
        return NOT_OFFERED
    sight, _ = _look(kept, loaded.model)
    body = anatomy(case.reference.model)
    error = _answers_off(body.down_projections[layer], sight.inputs[layer], sight.outputs[layer])
    if not error <= SIXTEEN_BITS:
        kept.refuse(
            f"{name} as the reference has it", f"it answers {error:.2%} off", "hand the name on, or refuse the option"
        )
    if loaded.scheme is not None:
        _check_quantized(kept, sight, loaded.scheme, kept=(layer,))
    wrong = replace(case, scheme=f"{case.scheme},skip={name}_no_such_module")
    try:
        wrong.load()
    except SwcheckError:
        return "kept"
    return wrong.refuse("an error: nothing has this name", "it was loaded", "swcheck.skip.linear_maps knows the names")


def _answers_off(plain: nn.Module, x: torch.Tensor, written: torch.Tensor) -> float:
    """By how much of its norm the answer to the middle token differs from that of the reference's map."""
    weight = plain_weight(plain)
    if weight is None:
        return 0.0
    exact = torch.nn.functional.linear(x.detach(), weight.to(x.dtype)).float()
    return float(((exact - written.detach().float()).norm(dim=-1) / exact.norm(dim=-1).clamp_min(1e-12)).median())


# --- one scheme --------------------------------------------------------------------------------------------------------


def _check_scheme(case: _Case) -> list[Reading]:
    begun = time.perf_counter()
    loaded = _loaded(case)
    seconds = time.perf_counter() - begun
    scheme = _check_record(case, loaded)
    fresh = fingerprint(loaded.model)
    _check_anatomy(case, loaded)
    sight, logits = _look(case, loaded.model)
    _check_quantized(case, sight, scheme)
    before = fingerprint(loaded.model)
    readings = [_read(case, loaded, sight, weight, scheme, seconds) for weight in case.weights]
    for reading in readings:
        for alpha in ALPHAS:
            _check_scaled(case, loaded.model, reading, alpha, logits)
    _check_traces(case, loaded.model, before, logits)
    saved = _check_saved(case, loaded, fresh, logits)
    return [replace(reading, saved=saved) for reading in readings]


def _loaded(case: _Case) -> Any:
    """What the engine makes of its scheme; what it raises without words of its own is its fault."""
    try:
        return case.load()
    except SwcheckError:
        raise
    except Exception as error:  # whatever an engine raises
        found = f"{type(error).__name__}: {first_words(error)}"
        raise AssertionError(f"{case.title}: a model\n  found: {found}\n  try: repair its load()") from error


def _check_record(case: _Case, loaded: Any) -> Scheme:
    if not isinstance(loaded, Loaded):
        case.refuse("load() returns a swcheck.Loaded", type(loaded).__name__, "Loaded(model, tokenizer, name, ...)")
    if loaded.tokenizer is None or not loaded.name:
        found = "no tokenizer" if loaded.tokenizer is None else "no name"
        case.refuse("a tokenizer and a name", found, "Loaded(model, base.tokenizer, f'{self.name}:{spec}', ...)")
    if not isinstance(loaded.scheme, Scheme):
        case.refuse("how it is quantized", repr(loaded.scheme), "Loaded(..., scheme=Scheme('absmax', 8))")
    if loaded.model.training:
        case.refuse("a model in evaluation mode", "it is in training mode", "model.eval() before it is returned")
    device = device_of(loaded.model)
    if device.type != torch.device(case.device).type:
        case.refuse(f"a model on {case.device}", f"it is on {device}", "use the device that load() is given")
    return loaded.scheme


def _check_anatomy(case: _Case, loaded: Loaded) -> None:
    try:
        ours = anatomy(loaded.model)
    except SwcheckError as error:
        case.refuse("the anatomy of the reference", error.found, "return the transformers module, or a wrapper of it")
    theirs = anatomy(case.reference.model)
    found, wanted = ((len(body.layers), body.hidden, body.inner) for body in (ours, theirs))
    if found != wanted:
        words = "{} layers, widths {} and {}"
        case.refuse(f"the anatomy of the reference, {words.format(*wanted)}", words.format(*found), "quantize, no more")


def _look(case: _Case, model: nn.Module) -> tuple[Sight, torch.Tensor]:
    """One pass on the prompt: what every down projection read and wrote, and the logits."""
    layers = range(len(anatomy(model).layers))
    with captured(), evaluating(model), observe(model, residual=layers, inputs=layers, outputs=layers) as sight:
        logits = model(case.ids, use_cache=False).logits.float()
    silent = [layer for layer in layers if layer not in sight.inputs or layer not in sight.outputs]
    if silent:
        found = f"none in {_listed(silent)}: the pass goes around the module"
        case.refuse("hooks fire at every down projection", found, "call the module, not its weight")
    if not torch.isfinite(logits).all():
        case.refuse(
            "finite logits", "NaN or infinity", "check the scheme against the reference's outliers, or its dtype"
        )
    return sight, logits


def _check_quantized(case: _Case, sight: Sight, scheme: Scheme, *, kept: Sequence[int] = ()) -> None:
    """Every down projection but those ``kept`` computes something else than the reference's would, unless the scheme
    changes nothing.
    """
    if scheme.weight_bits >= 16:
        return
    plain = anatomy(case.reference.model).down_projections
    looked = [layer for layer in sight.inputs if layer not in kept]
    skipped = [layer for layer in looked if _same_map(plain[layer], sight.inputs[layer], sight.outputs[layer])]
    if skipped:
        found = f"the quantizer skipped {_listed(skipped)}: what it writes is the reference's, to the bit"
        attempt = "widths that the group does not divide are a usual reason: another group, or an error instead"
        case.refuse(f"down projections of {scheme.weight_bits:g} bits", found, attempt)


def _same_map(plain: nn.Module, x: torch.Tensor, written: torch.Tensor) -> bool:
    """Whether the reference's map makes nine tenths of the same numbers from the same inputs."""
    weight = plain_weight(plain)
    if weight is None:
        return False
    exact = torch.nn.functional.linear(x.detach(), weight.to(x.dtype))
    slack = 1e-5 * exact.abs().clamp_min(1e-6) if x.dtype.itemsize > 2 else torch.zeros(())
    return float(((exact - written.detach()).abs() <= slack).float().mean()) > 0.9


def _read(case: _Case, loaded: Loaded, sight: Sight, weight: SuperWeight, scheme: Scheme, seconds: float) -> Reading:
    """One scalar in three ways, which have to agree."""
    module = anatomy(loaded.model).down_projections[weight.layer]
    inputs = sight.inputs[weight.layer][0].detach()
    x = inputs[int(inputs[:, weight.column].float().abs().argmax())]
    size = float(x[weight.column])
    alone = torch.zeros_like(x)
    alone[weight.column] = x[weight.column]
    with captured():
        by_contribution = float(contributions(module, x, weight.row, [weight.column])[0]) / size
        by_probe = float(contributions(module, alone, weight.row, [weight.column])[0]) / size
        matrix = case.dequantize(module)
    own = None if matrix is None else float(matrix.detach()[weight.row, weight.column])
    tolerance = WEIGHT_ONLY if scheme.activation_bits >= 16 else ACTIVATIONS_TOO
    for way, value in {"one-hot": by_probe, "its own dequantization": own}.items():
        if value is not None and not abs(value - by_contribution) <= tolerance * abs(by_contribution):
            found = f"{by_contribution:+.5g} by contribution, {value:+.5g} by {way}"
            attempt = "say in Scheme.activation_bits if inputs are quantized; else one of the two reads something else"
            case.refuse(f"{weight} read alike to {tolerance:.1%}", found, attempt)
    return Reading(case.scheme, weight, size, by_contribution, by_probe, own, tolerance, "", seconds, scheme)


def _check_scaled(case: _Case, model: nn.Module, reading: Reading, alpha: float, logits: torch.Tensor) -> None:
    """Inside the block the module writes alpha times the contribution in its row, and the same elsewhere."""
    weight, layer = reading.weight, reading.weight.layer
    sight, _ = _look(case, model)
    plain = sight.outputs[layer][0].float()
    token = int(sight.inputs[layer][0, :, weight.column].float().abs().argmax())
    with captured(), scaled(model, [weight], alpha):
        inside, changed = _look(case, model)
    written = inside.outputs[layer][0].float()
    share = reading.contribution * reading.input
    found, wanted = float(written[token, weight.row]), float(plain[token, weight.row]) + (alpha - 1) * share
    if not abs(found - wanted) <= reading.tolerance * max(abs(share), abs(wanted)):
        words = "an edit of the weight is ignored" if math.isclose(found, float(plain[token, weight.row])) else "wrong"
        attempt = "keep the module a black box: no plain nn.Linear whose weight is not what it computes with"
        case.refuse(f"{weight} times {alpha:g} writes {wanted:+.5g}", f"{found:+.5g}: {words}", attempt)
    written[:, weight.row] = plain[:, weight.row]
    if not torch.equal(written, plain):
        found_rows = (written != plain).any(0).nonzero().flatten().tolist()
        case.refuse(
            f"{weight} times {alpha:g} changes its row alone", f"rows {found_rows[:5]} change", "round row by row"
        )
    if torch.equal(changed, logits):
        case.refuse(f"{weight} times {alpha:g} is felt", "the logits are the same", "let the module's output be used")


def _check_traces(case: _Case, model: nn.Module, before: Mapping[str, str], logits: torch.Tensor) -> None:
    after = fingerprint(model)
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    if changed:
        case.refuse(
            "no trace in the state dict", f"{len(changed)} tensors differ, first {changed[0]}", "copy, then write"
        )
    if not torch.equal(_look(case, model)[1], logits):
        case.refuse("the same logits after as before", "they differ", "let a pass depend on its input alone")


def _check_saved(case: _Case, loaded: Loaded, fresh: Mapping[str, str], logits: torch.Tensor) -> str:
    """A checkpoint written now equals one of a second candidate that was never looked at, and loaded it is the same."""
    model: Any = loaded.model
    with TemporaryDirectory() as folder:
        first, second = Path(folder, "before"), Path(folder, "after")
        untouched = case.load()
        if fingerprint(untouched.model) != fresh:
            return "not compared: two loads differ"
        try:
            with captured():
                untouched.model.save_pretrained(first)
        except Exception as error:  # whatever a format raises that cannot be saved
            return f"refused: {type(error).__name__}"
        try:
            with captured():
                model.save_pretrained(second)
        except Exception as error:  # as above; but a fresh one could be saved
            case.refuse(
                "saved after the check as before it", f"{type(error).__name__}: {error}", "keep what a save needs"
            )
        differing = _differing(first, second)
        again = "" if differing else _check_reloaded(case, loaded, second, logits)
    if differing:
        found = f"{len(differing)} tensors differ, first {differing[0]}"
        case.refuse(
            "a checkpoint saved after the check equals one saved before", found, "let no pass repack the weights"
        )
    return f"equal{again}"


def _check_reloaded(case: _Case, loaded: Loaded, folder: Path, logits: torch.Tensor) -> str:
    """What the built-in loader makes of the checkpoint answers as the candidate does, and is held to the same limits.

    Returns nothing, or why there is no such model: transformers knows no loader of this kind, or it is an adapter.
    """
    with captured():
        loaded.tokenizer.save_pretrained(folder)
        try:
            again = engines.load(str(folder), device=case.device)
        except SwcheckError as error:
            return f", and not loaded again: {type(error).__name__}"
    off = float((_look(case, again.model)[1] - logits).norm() / logits.norm())
    if not off <= ALIKE.get(loaded.model.dtype.itemsize, min(ALIKE.values())):
        found = f"its logits are {off:.1%} off"
        case.refuse("a saved candidate that answers as before", found, "check what a save leaves out")
    kinds = kind_of_scheme(again.scheme), kind_of_scheme(loaded.scheme)
    if again.scheme is not None and kinds[0] != kinds[1]:
        found = f"the directory {kinds[0]}, the engine {kinds[1]}"
        case.refuse("the same limits for the saved candidate", found, "say in Scheme what the config says")
    return ""


def _differing(one: Path, other: Path) -> list[str]:
    """The names of tensors that two checkpoints do not share to the byte."""
    before, after = _tensors(one), _tensors(other)
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))


def _tensors(folder: Path) -> dict[str, str]:
    """A digest of every tensor of the safetensors files of a folder, and of any other weight file as a whole."""
    found: dict[str, str] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix in {".pt", ".bin", ".gguf"}:
            found[file.name] = hashlib.blake2b(file.read_bytes()).hexdigest()
        elif file.suffix == ".safetensors":
            raw = file.read_bytes()
            start = 8 + int.from_bytes(raw[:8], "little")
            entries = json.loads(raw[8:start])
            for name in entries.keys() - {"__metadata__"}:
                low, high = entries[name]["data_offsets"]
                head = f"{entries[name]['dtype']} {entries[name]['shape']}".encode()
                found[name] = hashlib.blake2b(head + raw[start + low : start + high]).hexdigest()
    return found


def _digest(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return repr(value)
    parts: Any = getattr(value, "__tensor_flatten__", None)
    if parts is not None:
        return " ".join(_digest(getattr(value, name)) for name in parts()[0])
    raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(raw.numpy().tobytes(), digest_size=16).hexdigest() + f" {value.dtype} {tuple(value.shape)}"


def _listed(layers: Sequence[int]) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(str(layer) for layer in layers)}"


def _refuse(asked: str, found: str, attempt: str) -> NoReturn:
    raise AssertionError(f"{asked}\n  found: {' '.join(found.split())}\n  try: {attempt}")
