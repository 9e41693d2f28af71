"""The built-in reference engine ``rtn``: the paper's own round-to-nearest, written into an ordinary model.

``rtn:bits=4,block=128,clip=9,keep`` rounds every linear map of the decoder layers (no embedding, no norm, no head) and
leaves plain float tensors. It needs no package, is exact about what it does, and can do both the harmless and the
harmful: the yardstick for the other engines. ``skip=NAME+NAME`` leaves matrices out. The arithmetic is in ``quantize``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from swcheck.base.errors import OptionError
from swcheck.base.records import Loaded, Scheme, SuperWeight
from swcheck.lens.anatomy import Anatomy, anatomy
from swcheck.loading import engines, published_index, skip_option

if TYPE_CHECKING:
    import torch

KNOWN: Final = (
    "bits=4",
    "block=128",
    "per=block|row|tensor",
    "symmetric",
    "reading=code|paper",
    "clip=9",
    "keep (super weights) or keep=N (the N largest of each matrix)",
    "skip=NAME+NAME (matrices left as they are)",
)


@dataclass(frozen=True)
class Recipe:
    """One way to round: what stands behind ``rtn:``, with the defaults of what is not named.

    ``block`` is a run of consecutive elements, ``per`` says whether it is used; ``clip`` is z, None for no clipping;
    ``keep`` is None, 0 for the super weights, or how many of the largest values of each matrix are put back.
    """

    bits: int = 4
    block: int = 128
    per: str = "block"
    symmetric: bool = False
    reading: str = "code"
    clip: float | None = None
    keep: int | None = None

    def rounded(self, weight: torch.Tensor) -> torch.Tensor:
        """``weight`` clipped and rounded; nothing is put back yet."""
        from swcheck.quantizers import rounding

        block = {"block": self.block, "row": rounding.per_row(weight), "tensor": None}[self.per]
        cut = weight if self.clip is None else rounding.clipped(weight, self.clip, block=block)
        if self.symmetric:
            return rounding.absmax(cut, self.bits, block=block)
        return rounding.minmax(cut, self.bits, block=block, reading=self.reading)


def parse(spec: str) -> Recipe:
    """The recipe that ``spec`` names. Raises ``OptionError`` with what is known for anything else."""
    given: dict[str, object] = {}
    for part in filter(None, (part.strip() for part in spec.split(","))):
        name, equals, value = (word.strip() for word in part.partition("="))
        reader = _READERS.get(name)
        if reader is None:
            raise OptionError(f"{part!r} in rtn:{spec}", f"known: {', '.join(KNOWN)}", "rtn:bits=4,block=128")
        if name in given:
            raise OptionError(f"{name!r} in rtn:{spec}", "it is given twice", "once is enough")
        try:
            given[name] = reader(value if equals else None)
        except (TypeError, ValueError) as error:
            known = next(words for words in KNOWN if words.startswith(name))
            raise OptionError(f"{part!r} in rtn:{spec}", f"no value {name} can have", f"write {known}") from error
    _check_together(spec, given)
    return Recipe(**given)  # type: ignore[arg-type]


def _check_together(spec: str, given: dict[str, object]) -> None:
    if "block" in given and given.get("per", "block") != "block":
        raise OptionError(f"rtn:{spec}", f"both block={given['block']} and per={given['per']}", "name one of the two")
    if given.get("symmetric") and "reading" in given:
        raise OptionError(f"rtn:{spec}", "the two readings of the step are of the asymmetric grid", "drop one of them")
    if given.get("bits") == 1 and (given.get("symmetric") or given.get("reading") == "paper"):
        raise OptionError(f"rtn:{spec}", "with one bit this grid has a single level", "use bits=2 or more")


def _flag(value: str | None) -> bool:
    if value is not None:
        raise ValueError
    return True


def _number(low: float, high: float, kind: type[int | float]) -> Callable[[str | None], float]:
    def read(value: str | None) -> float:
        number = kind(value)  # type: ignore[arg-type]
        if not low <= number <= high:
            raise ValueError
        return number

    return read


def _one_of(*names: str) -> Callable[[str | None], str]:
    def read(value: str | None) -> str:
        if value not in names:
            raise ValueError
        return value

    return read


def _keep(value: str | None) -> float:
    return 0 if value is None else _number(1, 2**31, int)(value)


_READERS: Final[dict[str, Callable[[str | None], object]]] = {
    "bits": _number(1, 16, int),
    "block": _number(1, 2**31, int),
    "per": _one_of("block", "row", "tensor"),
    "symmetric": _flag,
    "reading": _one_of("code", "paper"),
    "clip": _number(0, 1e6, float),
    "keep": _keep,
}


@dataclass(frozen=True)
class Rtn:
    """The engine of the name ``rtn``."""

    name: str = "rtn"

    def check(self, spec: str) -> None:
        """Raise ``OptionError`` for a ``spec`` that is no recipe, as ``load`` does, before anything is loaded."""
        self._read(spec)

    def _read(self, spec: str) -> tuple[Recipe, tuple[str, ...]]:
        words, names = skip_option.read_skip(f"rtn:{spec}", f"rtn,{spec}")
        return parse(words.removeprefix("rtn").removeprefix(",")), names

    def load(self, spec: str, *, reference: str | None, device: str | None, dtype: str | None) -> Loaded:
        """A fresh ``reference`` with the linear maps of its layers rounded as ``spec`` says."""
        recipe, names = self._read(spec)
        if reference is None:
            raise OptionError(f"rtn:{spec}", "no reference to round", "pytest --model=REFERENCE --candidate=rtn:bits=4")
        loaded = engines.load(reference, device=device, dtype=dtype)
        skipped = skip_option.modules_to_skip(f"rtn:{spec}", loaded.model, names)
        weights = [one for one in _weights(anatomy(loaded.model), reference) if one[0] not in skipped]
        held = _super_weights(loaded) if recipe.keep == 0 else ()
        for name, weight in weights:
            places = [(w.row, w.column) for w in held if name == anatomy(loaded.model).down_name(w.layer)]
            _write(recipe, weight, places)
        scheme = Scheme("absmax" if recipe.symmetric else "rtn", recipe.bits)
        return Loaded(loaded.model, loaded.tokenizer, f"rtn:{spec}", loaded.text, loaded.source, scheme)


ENGINE: Final = Rtn()


def _weights(body: Anatomy, reference: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Every matrix of the layers with its qualified name."""
    from torch import nn

    from swcheck.lens.linear_maps import plain_weight

    for number, layer in enumerate(body.layers):
        for path, module in layer.named_modules():
            name, weight = f"{body.path}.{number}.{path}", plain_weight(module)
            if weight is not None:
                yield name, weight
            elif module is body.down_projections[number] or isinstance(module, nn.Linear):
                found = f"{reference} keeps {name} as {type(module).__name__}, not as plain floats"
                raise OptionError("a reference to round", found, "give the model before quantization")


def _super_weights(loaded: Loaded) -> tuple[SuperWeight, ...]:
    """The published super weights of the model, completed by what is found in it."""
    from swcheck.superweights.locating.locate import locate

    known = published_index.find(loaded.name)
    found = locate(loaded.model, loaded.tokenizer, seeds=known.super_weights if known else ())
    if not found.super_weights:
        raise OptionError(f"keep the super weights of {loaded.name}", found.reason, "keep=1, or leave keep out")
    return found.super_weights


def _write(recipe: Recipe, weight: torch.Tensor, places: list[tuple[int, int]]) -> None:
    from swcheck.quantizers import rounding

    rounded = rounding.keep(recipe.rounded(weight), weight, places)
    weight.copy_(rounding.keep_largest(rounded, weight, min(recipe.keep or 0, weight.numel())))
