"""The parts of a causal language model: its decoder layers, and in each layer its down projections.

Usual paths are known (``architecture.families``); others are found in a short forward pass (``architecture.structure``).
H residual width, F inner width, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

from swcheck.base.errors import ArchitectureError, CoordinateError, NotObservedError, OptionError
from swcheck.base.records import SuperWeight

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import torch
    from torch import nn

    from swcheck.lens.architecture.families import Family
    from swcheck.lens.architecture.places import Place, Structure

Expert: TypeAlias = "int | str | None"
"""Which down projection of a layer: None for the dense one, the number of an expert, or a name ("shared")."""


class MapKey(NamedTuple):
    """The address of one down projection in a model."""

    layer: int
    expert: Expert = None


@dataclass(frozen=True, eq=False)
class DownMap:
    """One down projection.

    ``module`` computes it: a linear map, or a module that has the matrices of all experts in a 3-D parameter; then
    ``index`` is the number of this one. ``name`` is the qualified name.
    """

    key: MapKey
    name: str
    module: nn.Module = field(repr=False)
    place: Place = field(repr=False)
    index: int | None = None

    @property
    def module_name(self) -> str:
        """The qualified name of ``module``."""
        return self.name if self.index is None else self.name.removesuffix(f".{self.place.parameter}[{self.index}]")

    @property
    def weight(self) -> torch.Tensor | None:
        """The weight ``(H, F)`` itself, not a copy; None where the module does not keep it plainly."""
        from swcheck.lens.architecture.storage import is_plain, plain_weight

        if self.place.parameter is None:
            return plain_weight(self.module)
        stack = self.place.stack(self.module)
        if self.index is None or stack is None or not is_plain(stack):
            return None
        matrix: torch.Tensor = stack.data[self.index]
        return matrix.T if self.place.is_transposed else matrix

    @property
    def has_weight(self) -> bool:
        """Whether the module keeps its weight plainly."""
        from swcheck.lens.architecture.storage import has_plain_weight

        return has_plain_weight(self.module) if self.place.parameter is None else self.weight is not None

    @property
    def inner(self) -> int | None:
        """F, None where the module does not say it."""
        return self.place.inner_width(self.module)

    @property
    def is_reachable(self) -> bool:
        """Whether its weights can be read and overridden: False for an expert that is computed packed, with all others."""
        return self.index is None or self.has_weight

    def check_reachable(self, asked: str) -> None:
        """Raise ``NotObservedError`` for what was ``asked`` of an expert that is not reachable."""
        if not self.is_reachable:
            found = f"{type(self.module).__name__} keeps it packed, and no hook reaches a single expert"
            raise NotObservedError(f"{asked} of {self.name}", found, "look at the model before quantization")

    @property
    def is_routed(self) -> bool:
        """Whether only the tokens that a router chooses reach the map."""
        return self.index is not None or isinstance(self.key.expert, int)

    @property
    def is_added(self) -> bool:
        """Whether the residual stream gets just what the map writes.

        False where a router's weight, a norm or a multiplier lies between, or a later branch reads it first.
        """
        return self.place.is_added


@dataclass(frozen=True)
class Anatomy:
    """The parts of one model.

    ``hidden`` and ``inner`` are the widths H and F, None where neither the down projections nor the config give them;
    ``inner`` is the largest where they differ. ``structure`` says where the down projections are.
    ``refusal`` says why a model has none that are known, see ``bare_anatomy``.
    """

    family: Family
    layers: tuple[nn.Module, ...]
    structure: Structure
    hidden: int | None
    inner: int | None
    refusal: str = ""

    @property
    def path(self) -> str:
        """The qualified name of the list of decoder layers."""
        return self.structure.layers

    @property
    def down_projections(self) -> tuple[nn.Module, ...]:
        """The module of the dense down projection of each layer.

        Raises ``ArchitectureError`` for a model that has none in some layer; ``down_maps`` has those of experts.
        """
        return tuple(self.down_map(MapKey(layer)).module for layer in range(len(self.layers)))

    def down_map(self, key: MapKey | SuperWeight | int) -> DownMap:
        """Return the down projection at an address, that of a super weight, or the dense one of a layer.

        Raises ``CoordinateError`` where the model has none there.
        """
        wanted = MapKey(key) if isinstance(key, int) else MapKey(key.layer, key.expert)
        self.check_layers([wanted.layer])
        maps = list(self.down_maps(wanted.layer))
        for one in maps:
            if one.key == wanted:
                return one
        addresses = [one.key.expert for one in maps]
        numbers = [address for address in addresses if isinstance(address, int)]
        words = ["a dense down projection"] * (None in addresses)
        words += [f"experts {numbers[0]} to {numbers[-1]}"] if numbers else []
        words += [f"expert {address}" for address in addresses if isinstance(address, str)]
        found = f"layer {wanted.layer} has {' and '.join(words) or 'no down projection'}"
        asked = "the dense down projection" if wanted.expert is None else f"expert {wanted.expert}"
        raise CoordinateError(
            f"{asked} of layer {wanted.layer} was asked for", found, "`swcheck locate` shows coordinates"
        )

    def down_maps(self, layer: int) -> Iterator[DownMap]:
        """Yield every down projection of one layer."""
        for place in self.structure.places[layer]:
            name, module = f"{self.path}.{layer}.{place.path}", self.layers[layer].get_submodule(place.path)
            if place.parameter is None:
                yield DownMap(MapKey(layer, place.expert), name, module, place)
                continue
            stack = place.stack(module)
            for index in range(0 if stack is None else len(stack)):
                expert = index if place.expert is None else f"{place.expert} {index}" if index else place.expert
                yield DownMap(MapKey(layer, expert), f"{name}.{place.parameter}[{index}]", module, place, index)

    def down_name(self, layer: int, expert: Expert = None) -> str:
        """Return the qualified name of one down projection."""
        return self.down_map(MapKey(layer, expert)).name

    def check(self, super_weights: Iterable[SuperWeight]) -> None:
        """Raise ``CoordinateError`` for the first coordinate that lies outside the model."""
        for weight in super_weights:
            check_inside([weight], len(self.layers), self.hidden, None)
            inner = self.down_map(weight).inner
            check_inside([weight], len(self.layers), self.hidden, self.inner if inner is None else inner)

    def check_layers(self, layers: Iterable[int]) -> None:
        """Raise ``CoordinateError`` for the first layer that the model does not have."""
        for layer in layers:
            if _is_outside(layer, len(self.layers)):
                found = f"this model has {numbered('layer', len(self.layers))}"
                raise CoordinateError(f"layer {layer} was asked for", found, "layers count from 0")


def check_inside(super_weights: Iterable[SuperWeight], layers: int, hidden: int | None, inner: int | None) -> None:
    """Raise ``CoordinateError`` for the first coordinate outside a model of these sizes.

    A size of None is unknown and allows any number from 0 on. Raises ``OptionError`` for what is not a ``SuperWeight``.
    """
    for weight in super_weights:
        if not isinstance(weight, SuperWeight):
            raise OptionError("a SuperWeight", repr(weight), "SuperWeight(layer=2, row=3968, column=7003)")
        for name, size in {"layer": layers, "row": hidden, "column": inner}.items():
            index = getattr(weight, name)
            if _is_outside(index, size):
                raise CoordinateError(
                    f"{name} {index} was asked for (super weight at {weight})",
                    f"this model has {numbered(name, size)}",
                    "check that the coordinates belong to this model: (layer, row, column) counts from 0, "
                    "row is the output channel of down_proj",
                )


def numbered(name: str, size: int | None) -> str:
    """Return words for all numbers of what there are ``size`` of, counted from 0; None if that is not known."""
    if size in {0, 1}:
        return f"no {name}" if size == 0 else f"{name} 0 alone"
    return f"{name}s 0 to {'?' if size is None else size - 1}"


def check_module(model: Any) -> None:
    """Raise ``OptionError`` unless ``model`` is a torch module.

    A frequent mistake is to pass what ``load`` returns, which is a record with the module in ``.model``.
    """
    from torch import nn

    if not isinstance(model, nn.Module):
        attempt = "its .model" if hasattr(model, "model") else "load('tiny').model"
        raise OptionError("a torch module", f"{type(model).__name__}", attempt)


_TRACED: Final[WeakKeyDictionary[Any, Any]] = WeakKeyDictionary()
"""What a forward pass showed, by model: a structure, whose paths stay true when modules are exchanged, or an error."""


def anatomy(model: nn.Module) -> Anatomy:
    """Find the parts of ``model``, also of a wrapped one (PEFT, a compiled model).

    A model of no known family is run once over a few tokens; what was found is remembered as long as the model lives.
    Raises ``ArchitectureError`` where no down projection is found, or the pass shows a model of another kind, and
    ``OptionError`` for what is not a module.
    """
    from swcheck.lens.architecture.families import TRACED, structure_by_family
    from swcheck.lens.architecture.structure import check_has_down_projections

    check_module(model)
    family, structure = structure_by_family(model) or (TRACED, _traced(model))
    check_has_down_projections(model, structure)
    return _anatomy_of(model, family, structure)


def bare_anatomy(model: nn.Module) -> Anatomy:
    """Return ``anatomy(model)``, or for a causal language model that it refuses its layers alone.

    ``refusal`` then says why. Where not even the layers are known there are none.
    """
    from swcheck.lens.architecture.families import TRACED
    from swcheck.lens.architecture.places import Structure

    try:
        return anatomy(model)
    except ArchitectureError as error:
        found = _TRACED.get(model)
        structure = found if isinstance(found, Structure) else Structure("", ())
        return replace(_anatomy_of(model, TRACED, structure), refusal=error.found)


def _anatomy_of(model: nn.Module, family: Family, structure: Structure) -> Anatomy:
    layers: Any = model.get_submodule(structure.layers) if structure.layers else ()
    hidden, inner = _widths(model, layers, structure)
    return Anatomy(family, tuple(layers), structure, hidden, inner)


def checked_anatomy(model: nn.Module) -> Anatomy:
    """Return ``anatomy(model)``, held against a forward pass over a few tokens, which also fills in ``is_added``.

    A packed model of a known family that cannot be followed is believed. Raises what ``anatomy`` raises.
    """
    body = anatomy(model)
    if body.structure.hidden is not None:  # it was found in such a pass
        return body
    try:
        return replace(body, structure=_traced(model, body.structure))
    except ArchitectureError:
        if all(one.has_weight for layer in range(len(body.layers)) for one in body.down_maps(layer)):
            raise
        places = tuple(tuple(replace(place, is_added=True) for place in layer) for layer in body.structure.places)
        return replace(body, structure=replace(body.structure, places=places))


def _traced(model: nn.Module, known: Structure | None = None) -> Structure:
    from swcheck.lens.architecture.structure import traced

    found: Structure | ArchitectureError | None = _TRACED.get(model)
    if isinstance(found, ArchitectureError):
        raise ArchitectureError(found.asked, found.found, found.attempt)
    if found is None or not _exists(model, found):
        try:
            found = _TRACED[model] = traced(model, known)
        except ArchitectureError as error:
            # without its cause, whose traceback would hold the model for good
            _TRACED[model] = ArchitectureError(error.asked, error.found, error.attempt)
            raise
    return found


def _exists(model: nn.Module, structure: Structure) -> bool:
    try:
        layers: Any = model.get_submodule(structure.layers)
        for number, places in enumerate(structure.places):
            for place in places:
                layers[number].get_submodule(place.path)
    except (AttributeError, IndexError):
        return False
    return len(layers) == len(structure.places)


def _is_outside(index: int, size: int | None) -> bool:
    return index < 0 or (size is not None and index >= size)


def _widths(model: nn.Module, layers: Sequence[nn.Module], structure: Structure) -> tuple[int | None, int | None]:
    """Return H, and the largest F, as the down projections declare them, else as the pass or the config says.

    Packed modules have no readable shape.
    """
    from swcheck.lens.architecture.storage import output_width

    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    places = {
        (layer.get_submodule(place.path), place)
        for layer, inside in zip(layers, structure.places, strict=True)
        for place in inside
    }
    declared = (output_width(module) for module, place in places if place.parameter is None)
    hidden = (
        structure.hidden or next((width for width in declared if width), None) or getattr(config, "hidden_size", None)
    )
    inner = max((width for module, place in places if (width := place.inner_width(module))), default=None)
    return hidden, inner or getattr(config, "intermediate_size", None)
