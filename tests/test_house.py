"""The house: which room may import which, where heavy guests live, and what an import costs."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

import swcheck

ROOT = Path(swcheck.__file__).parent
TESTS = Path(__file__).parent

# From top to bottom: a room imports only what stands behind it.
STAIRS = """
suite.test_paper suite.test_candidate suite.test_model suite
plugin reporter collection stash cli
study.claims study.runner
study.prune
study.activations
study.stopwords
study.scaling
study.weights
study.w8a8
study.where
study.surgery
study.paper study.chapter study.plots study.setup study.record study
options session outlier checks baseline judge predictions dependence pair diagnosis remedy proof elsewhere fate case lent activations cached coverage prompted causal solo
settings
overrides
report
conformance
zeroshot tiny.card subject ratios rtn drift limits kinship kind location spike stress intervene probes observe stored
tiny.cloze tiny.lastword prompts measure quantize anatomy request respelling
engines huggingface hub checkpoint index schemes skip noise tiers text files strategies tiny.train tiny.corpus tiny lines errors reading fold records
""".split()

# The only rooms that may import what is slow to load, or not ours; what is needed for types alone costs nothing.
GUESTS = {
    "datasets": {"zeroshot"},
    "huggingface_hub": {"hub", "zeroshot"},
    "hypothesis": {"strategies", "suite"},
    "lm_eval": {"zeroshot"},
    "numpy": {"zeroshot"},
    "cycler": {"study"},
    "matplotlib": {"study"},
    "pytest": {"collection", "plugin", "reporter", "stash", "suite"},
    "safetensors": {"huggingface", "stored"},
    "tabulate": {"report"},
    "tokenizers": {"tiny"},
    "tqdm": {"study", "tiny"},
    "transformers": {"huggingface", "tiny"},
}
LIGHT = "checkpoint cli engines errors files hub index limits lines options overrides plugin records report session settings study tiny tiny.corpus".split()


class Import(NamedTuple):
    """One import of a file: what, in which line, and whether for types alone."""

    name: str
    line: int
    for_types: bool


def imports(source: str) -> Iterator[Import]:
    """Every import of a source text, those inside functions and by ``import_module`` of a constant included."""
    tree = ast.parse(source)
    typing = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for part in node.body
        for child in ast.walk(part)
    }
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names = [node.args[0].value] if isinstance(node.args[0], ast.Constant) else []
        yield from (Import(name, node.lineno, node in typing) for name in names)


def room_of(file: Path) -> str:
    """The name of a room: its file, dotted, without the package; the front door is empty."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


ROOMS = {room_of(file): file for file in sorted(ROOT.rglob("*.py"))}
SOURCES = {room: file.read_text(encoding="utf-8") for room, file in ROOMS.items()}


def target(name: str) -> str:
    """The room that an import of the package's own leads to; what the front door gives comes from a room as well."""
    inside = name.removeprefix("swcheck").removeprefix(".")
    if inside in swcheck._ROOMS:
        return swcheck._ROOMS[inside]
    while inside not in ROOMS:
        inside = inside.rpartition(".")[0]
    return inside


def own(room: str) -> list[tuple[str, Import]]:
    """The rooms that a room imports, itself left out."""
    found = [(target(one.name), one) for one in imports(SOURCES[room]) if one.name.split(".")[0] == "swcheck"]
    return [(other, one) for other, one in found if other != room]


WALKED = sorted(room for room in ROOMS if room)


# --- the stairs --------------------------------------------------------------------------------------------------------


def test_every_room_is_on_the_stairs():
    """Every room has its one place on the stairs of this file, above whatever it imports, and no other has."""
    assert set(WALKED) - set(STAIRS) == set()
    assert set(STAIRS) - set(WALKED) == set()
    assert len(set(STAIRS)) == len(STAIRS)


@pytest.mark.parametrize("room", WALKED)
def test_imports_go_down(room):
    """No room imports one that stands above it, nor the front door, whether in a function or for types."""
    below = STAIRS[STAIRS.index(room) + 1 :] if room in STAIRS else WALKED
    upward = [
        f"{room} imports {other or 'swcheck'} (line {one.line})" for other, one in own(room) if other not in below
    ]
    assert upward == []


def test_no_cycle():
    """No two rooms import each other, over however many corners."""
    try:
        TopologicalSorter({room: {other for other, _ in own(room)} for room in WALKED}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("room", ROOMS)
def test_never_outwards(room):
    """No room imports a plugin distribution or a test, nor writes to the terminal with ``print``, nor asserts."""
    names = {one.name.split(".")[0] for one in imports(SOURCES[room])}
    assert not {name for name in names if name in {"plugins", "tests", "conftest"} or name.startswith("swcheck_")}
    tree = ast.parse(SOURCES[room])
    calls = [node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert not {"print", "eval", "exec"} & set(calls)
    assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree))


@pytest.mark.parametrize("source", ["import swcheck.location", "from swcheck import location", "import_module('swcheck.location')",
                                    "def f():\n    from swcheck.location import Rules", "from swcheck.location import locate"])  # fmt: skip
def test_every_kind_of_import_is_seen(source):
    """However a room is imported, the reader of this file sees it."""
    assert [target(one.name) for one in imports(source)] == ["location"]
    assert [target(one.name) for one in imports("from swcheck import assert_perplexity_within")] == ["checks"]


def test_types_are_told_apart():
    """What is imported for types alone is known as such, and nothing else."""
    source = "import a\nif TYPE_CHECKING:\n    import b\nelse:\n    import c\n"
    assert [(one.name, one.for_types) for one in imports(source)] == [("a", False), ("b", True), ("c", False)]


# --- guests ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", ROOMS)
def test_guests(room):
    """Apart from torch, a library that is not the standard one is imported in its own rooms only."""
    foreign = {one.name.split(".")[0] for one in imports(SOURCES[room]) if not one.for_types}
    foreign -= {"swcheck", "torch", *sys.stdlib_module_names}
    assert {name for name in foreign if room.split(".")[0] not in GUESTS.get(name, ())} == set()


@pytest.mark.parametrize("names", [["swcheck"], ["swcheck", "swcheck.plugin"], [f"swcheck.{room}" for room in LIGHT]],
                         ids=["front door", "plugin", "light rooms"])  # fmt: skip
def test_light(names):
    """Importing the front door, the plugin and all light rooms loads no torch, transformers, hypothesis or numpy."""
    heavy = ("torch", "transformers", "hypothesis", "numpy")
    code = f"import sys, {', '.join(names)}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/")
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


# --- the front door ----------------------------------------------------------------------------------------------------


def test_the_front_door():
    """The front door lists its names in order, and types, rooms and ``dir`` agree on them."""
    assert swcheck.__all__ == sorted(swcheck._ROOMS)
    assert dir(swcheck) == sorted([*swcheck.__all__, "__version__"])
    typed = {one.name.split(".")[2]: one.name.split(".")[1] for one in imports(SOURCES[""]) if one.for_types}
    assert {name: room for name, room in typed.items() if name in swcheck._ROOMS} == swcheck._ROOMS


def test_no_such_name():
    """A name that the front door does not have is refused as any module refuses it."""
    with pytest.raises(AttributeError, match="module 'swcheck' has no attribute 'loacte'"):
        _ = swcheck.loacte


def test_version():
    """The front door knows the version of the installed distribution."""
    assert swcheck.__version__.count(".") == 2


@pytest.mark.parametrize("name", swcheck.__all__)
def test_docstrings(name):
    """Every function and class of the front door, and every public method of its classes, says what it does."""
    thing = getattr(swcheck, name)
    public = [part for key, part in vars(thing).items() if not key.startswith("_")] if inspect.isclass(thing) else []
    parts = [part.fget if isinstance(part, property) else part for part in public]
    own_words = [thing, *(part for part in parts if inspect.isfunction(part))]
    assert [part.__name__ for part in own_words if not (part.__doc__ or "").strip()] == []
    assert not (is_dataclass(thing) and thing.__doc__.startswith(f"{name}("))


@pytest.mark.parametrize("room", ROOMS)
def test_room_signs(room):
    """Every room says at its door what it is for."""
    assert ast.get_docstring(ast.parse(SOURCES[room]))


# --- the tests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", sorted(TESTS.rglob("test_*.py")), ids=lambda file: file.relative_to(TESTS).as_posix())
def test_tests_are_sentences(file):
    """Every test says in words what it claims, and no name stands for two tests of a file."""
    found = [
        node
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    names = sorted(node.name for node in found)
    assert [one for one, other in pairwise(names) if one == other] == []
    words = {node.name: " ".join((ast.get_docstring(node) or "").split()) for node in found}
    assert [name for name, text in words.items() if not text.endswith(".")] == []


def test_no_name_of_the_front_door_is_a_room():
    """A room of a public name would take its place in the package once it is imported."""
    assert {name for name in swcheck.__all__ if (ROOT / f"{name}.py").exists() or (ROOT / name).is_dir()} == set()


def test_the_front_door_gives_the_same_thing_twice():
    """Every public name is what it was, after every room has been imported."""
    before = {name: getattr(swcheck, name) for name in swcheck.__all__}
    again = {name: getattr(swcheck, name) for name in swcheck.__all__}

    assert all(callable(thing) for thing in before.values())
    assert again == before
