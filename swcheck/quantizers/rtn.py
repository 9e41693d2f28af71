"""The built-in engine ``rtn``: the paper's round-to-nearest, written into an ordinary model.

``rtn:bits=4,block=128,clip=9,keep`` rounds every linear map of the decoder layers (no embedding, norm or head) and
leaves plain float tensors. It needs no package, and its arithmetic is known exactly. It can quantize harmlessly and
harmfully, so it is the yardstick for other engines. ``skip=NAME+NAME`` leaves matrices out. The arithmetic is in
``rounding``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from swcheck.base.errors import OptionError
from swcheck.base.records import Loaded, Scheme, SuperWeight
from swcheck.lens.architecture.anatomy import Anatomy, anatomy
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
"""The options of a spec, as an error message lists them."""


@dataclass(frozen=True)
class Recipe:
    """One way to round: the options after ``rtn:``, with defaults for the rest.

    ``block`` is a run of consecutive elements, used if ``per`` is "block". ``clip`` is z, None for no clipping.
    ``keep`` is None for nothing, 0 for the super weights, or how many of the largest values of each matrix are put
    back.
    """

    bits: int = 4
    block: int = 128
    per: str = "block"
    symmetric: bool = False
    reading: str = "code"
    clip: float | None = None
    keep: int | None = None

    def rounded(self, weight: torch.Tensor) -> torch.Tensor:
        """Return ``weight`` clipped and rounded, with nothing put back yet."""
        from swcheck.quantizers import rounding

        block = {"block": self.block, "row": rounding.row_block(weight), "tensor": None}[self.per]
        clipped_weight = weight if self.clip is None else rounding.clip_z_score(weight, self.clip, block=block)
        if self.symmetric:
            return rounding.absmax(clipped_weight, self.bits, block=block)
        return rounding.minmax(clipped_weight, self.bits, block=block, reading=self.reading)


def parse(spec: str) -> Recipe:
    """Return the recipe that ``spec`` names. Raises ``OptionError``, which lists the options, for anything else."""
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


def _read_flag(value: str | None) -> bool:
    if value is not None:
        raise ValueError
    return True


def _number_reader(low: float, high: float, kind: type[int | float]) -> Callable[[str | None], float]:
    def read(value: str | None) -> float:
        number = kind(value)  # type: ignore[arg-type]
        if not low <= number <= high:
            raise ValueError
        return number

    return read


def _choice_reader(*names: str) -> Callable[[str | None], str]:
    def read(value: str | None) -> str:
        if value not in names:
            raise ValueError
        return value

    return read


def _read_keep(value: str | None) -> float:
    return 0 if value is None else _number_reader(1, 2**31, int)(value)


_READERS: Final[dict[str, Callable[[str | None], object]]] = {
    "bits": _number_reader(1, 16, int),
    "block": _number_reader(1, 2**31, int),
    "per": _choice_reader("block", "row", "tensor"),
    "symmetric": _read_flag,
    "reading": _choice_reader("code", "paper"),
    "clip": _number_reader(0, 1e6, float),
    "keep": _read_keep,
}


@dataclass(frozen=True)
class Rtn:
    """The engine called ``rtn``."""

    name: str = "rtn"
    tensor_parallel: bool = False

    def check(self, spec: str) -> None:
        """Raise ``OptionError`` for a ``spec`` that is no recipe, as ``load`` does, before anything is loaded."""
        self._read(spec)

    def _read(self, spec: str) -> tuple[Recipe, tuple[str, ...]]:
        recipe, skipped_names = skip_option.read_skip(f"rtn:{spec}", f"rtn,{spec}")
        return parse(recipe.removeprefix("rtn").removeprefix(",")), skipped_names

    def load(self, spec: str, *, reference: str | None, device: str | None, dtype: str | None) -> Loaded:
        """Load a fresh ``reference`` and round the linear maps of its layers as ``spec`` says.

        Raises ``OptionError`` without a reference, or for a reference whose linear maps are not plain floats.
        """
        recipe, skipped_names = self._read(spec)
        if reference is None:
            raise OptionError(f"rtn:{spec}", "no reference to round", "pytest --model=REFERENCE --candidate=rtn:bits=4")
        loaded = engines.load(reference, device=device, dtype=dtype, tensor_parallel=self.tensor_parallel)
        skipped = skip_option.modules_to_skip(f"rtn:{spec}", loaded.model, skipped_names)
        body = anatomy(loaded.model)
        _check_plain(body, reference)
        super_weights = _super_weights(loaded) if recipe.keep == 0 else ()
        for name, weight in _weights(body):
            if name in skipped:
                continue
            places = [(w.row, w.column) for w in super_weights if name == body.down_name(w.layer, w.expert)]
            _round_in_place(recipe, weight, places)
        scheme = Scheme("absmax" if recipe.symmetric else "rtn", recipe.bits)
        return Loaded(loaded.model, loaded.tokenizer, f"rtn:{spec}", loaded.text, loaded.source, scheme)


ENGINE: Final = Rtn()


def _check_plain(body: Anatomy, reference: str) -> None:
    """Raise ``OptionError`` for the first linear map of the layers that is not plain floats."""
    from torch import nn

    from swcheck.lens.architecture.storage import has_plain_weight

    for number, layer in enumerate(body.layers):
        downs = list(body.down_maps(number))
        for path, module in layer.named_modules():
            is_map = isinstance(module, nn.Linear) or any(module is one.module for one in downs if not one.has_weight)
            if is_map and not has_plain_weight(module):
                name = f"{body.path}.{number}.{path}"
                found = f"{reference} keeps {name} as {type(module).__name__}, not as plain floats"
                raise OptionError("a reference to round", found, "give the model before quantization")


def _weights(body: Anatomy) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every matrix of the layers with its qualified name."""
    from swcheck.lens.linear_maps import plain_matrices

    for matrix in plain_matrices(body):
        yield f"{body.path}.{matrix.layer}.{matrix.path}", matrix.weight


def _super_weights(loaded: Loaded) -> tuple[SuperWeight, ...]:
    """Return the published super weights of the model, completed by those located in it."""
    from swcheck.superweights.locating.locate import locate

    known = published_index.find(loaded.name)
    found = locate(loaded.model, loaded.tokenizer, seeds=known.super_weights if known else ())
    if not found.super_weights:
        raise OptionError(f"keep the super weights of {loaded.name}", found.reason, "keep=1, or leave keep out")
    return found.super_weights


def _round_in_place(recipe: Recipe, weight: torch.Tensor, places: list[tuple[int, int]]) -> None:
    from swcheck.loading.parallel.shards import own_rows
    from swcheck.quantizers import rounding

    rounded = rounding.with_kept(recipe.rounded(weight), weight, places)
    rows = own_rows(weight)
    rows.tensor.copy_(rows.of(rounding.with_largest_kept(rounded, weight, min(recipe.keep or 0, weight.numel()))))
