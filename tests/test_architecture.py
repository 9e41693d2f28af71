"""The architecture: which folder may import which, where other libraries live, what an import costs, how large things are.

The order of the folders is written in ``ARCHITECTURE.md`` and read from there.
"""

from __future__ import annotations

import ast
import inspect
import re
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import is_dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

import swcheck

PACKAGE = Path(swcheck.__file__).parent
ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"

STAIR = re.findall(r"^\| `([\w/]+)` \|", (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"), flags=re.M)
"""The folders, and the two modules beside them, from the top to the ground."""

LIBRARIES = {
    "cycler": {"study/common"},
    "datasets": {"study/zeroshot"},
    "filelock": {"run"},
    "huggingface_hub": {"loading", "study/zeroshot"},
    "hypothesis": {"strategies"},
    "jinja2": {"run/reports"},
    "lm_eval": {"study/zeroshot"},
    "matplotlib": {"study/common", "study/chapters"},
    "numpy": {"study/zeroshot"},
    "pytest": {"plugin", "run/pytest_hooks", "suite"},
    "safetensors": {"loading"},
    "shtab": {"run/command_line"},
    "tabulate": {"base", "run/reports"},
    "tqdm": {"base/terminal"},
    "transformers": {"gate/training", "loading"},
    "xdist": {"run/pytest_hooks"},
}
"""The only folders that may import a library that is neither of the standard library nor torch."""

LIGHT = (
    "swcheck", "swcheck.plugin", "swcheck.base.errors", "swcheck.base.records", "swcheck.base.limits",
    "swcheck.base.terminal.wrapping", "swcheck.base.output_files", "swcheck.loading.engines", "swcheck.loading.hub",
    "swcheck.loading.checkpoint", "swcheck.loading.published_index", "swcheck.loading.engine_request",
    "swcheck.quantizers.rtn", "swcheck.run.options", "swcheck.run.settings", "swcheck.run.session",
    "swcheck.run.limit_overrides", "swcheck.run.reference_cache", "swcheck.run.command_line.main", "swcheck.study.catalogue",
)  # fmt: skip
"""Modules that import neither torch nor transformers, numpy or hypothesis."""

LONGEST_MODULE, LONGEST_CLASS = 350, 150
MEDIAN_FUNCTION, LONG_FUNCTION = 6, 17
"""Lines without the docstring: the median of all functions, and their 90th percentile."""

FOLDERS_AT_THE_TOP, FILES_AT_THE_TOP, MODULES_IN_A_FOLDER, LINES_OF_A_SIGN = 10, 5, 13, 10


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


def module_of(file: Path) -> str:
    """The dotted name of a module inside the package; empty for the front door."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_of(file): file for file in sorted(PACKAGE.rglob("*.py")) if file.name != "__main__.py"}
SOURCES = {module: file.read_text(encoding="utf-8") for module, file in MODULES.items()}
TREES = {module: ast.parse(source) for module, source in SOURCES.items()}
INNER = sorted(module for module in MODULES if module and len(TREES[module].body) > 1)
"""The modules that hold code: the front door, and the docstring that stands for a folder, are left out."""


def folder_of(module: str) -> str:
    """The folder of a module, as the stair names it; the module itself where it lies at the top."""
    parent = MODULES[module].parent.relative_to(PACKAGE).as_posix()
    return module if parent == "." else parent


def target(name: str) -> str:
    """The module that an import of the package's own leads to; a name of the front door leads where it comes from."""
    inside = name.removeprefix("swcheck").removeprefix(".")
    if inside in swcheck._MODULES:
        return swcheck._MODULES[inside]
    while inside not in MODULES:
        inside = inside.rpartition(".")[0]
    return inside


def own_imports(module: str) -> list[tuple[str, Import]]:
    """The modules of the package that a module imports, itself left out."""
    found = [(target(one.name), one) for one in imports(SOURCES[module]) if one.name.split(".")[0] == "swcheck"]
    return [(other, one) for other, one in found if other != module]


# --- the stair ---------------------------------------------------------------------------------------------------------


def test_every_folder_is_on_the_stair():
    """The table of ``ARCHITECTURE.md`` names every folder of the package once, and nothing else."""
    assert sorted(STAIR) == sorted({folder_of(module) for module in INNER})


@pytest.mark.parametrize("module", INNER)
def test_imports_go_down_the_stair(module):
    """No module imports from a folder above its own, nor the front door's module, in a function or for types."""
    own = STAIR.index(folder_of(module))
    upward = [
        f"{module} imports {other or 'swcheck'} (line {one.line})"
        for other, one in own_imports(module)
        if not other or STAIR.index(folder_of(other)) < own
    ]
    assert upward == []


@pytest.mark.slow
def test_no_module_imports_itself_around_a_corner():
    """No two modules import each other, directly or through others."""
    try:
        TopologicalSorter({module: {other for other, _ in own_imports(module)} for module in INNER}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.slow
@pytest.mark.parametrize("module", INNER)
def test_private_modules_and_names_stay_in_their_folder(module):
    """Nothing that begins with an underscore is imported from another folder."""
    foreign = [
        one.name
        for other, one in own_imports(module)
        if folder_of(other) != folder_of(module) and any(part.startswith("_") for part in one.name.split("."))
    ]
    assert foreign == []


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_imported_from_outside(module):
    """No module imports a plugin distribution, a tool or a test, writes with ``print``, or asserts."""
    names = {one.name.split(".")[0] for one in imports(SOURCES[module])}
    assert not {name for name in names if name in {"plugins", "tests", "tools"} or name.startswith("swcheck_")}
    nodes = list(ast.walk(TREES[module]))
    calls = {
        node.func.id
        for node in nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and ast.unparse(node) != "exec('')"
    }
    assert not {"print", "eval", "exec"} & calls
    assert not any(isinstance(node, ast.Assert) for node in nodes)


@pytest.mark.parametrize("source", [
    "import swcheck.lens.architecture.anatomy", "from swcheck.lens.architecture import anatomy", "import_module('swcheck.lens.architecture.anatomy')",
    "from swcheck import anatomy", "def f():\n    from swcheck.lens.architecture.anatomy import Family",
    "from swcheck.lens.architecture.anatomy import anatomy",
])  # fmt: skip
def test_every_kind_of_import_is_seen(source):
    """However a module is imported, this file sees it."""
    assert [target(one.name) for one in imports(source)] == ["lens.architecture.anatomy"]


def test_imports_for_types_are_told_apart():
    """What is imported for types alone is known as such, and nothing else."""
    source = "import a\nif TYPE_CHECKING:\n    import b\nelse:\n    import c\n"
    assert [(one.name, one.for_types) for one in imports(source)] == [("a", False), ("b", True), ("c", False)]


# --- libraries ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", INNER)
def test_a_library_is_imported_in_its_own_folders_only(module):
    """Apart from torch and the standard library, each library has a few folders that may import it."""
    foreign = {one.name.split(".")[0] for one in imports(SOURCES[module]) if not one.for_types}
    foreign -= {"swcheck", "torch", *sys.stdlib_module_names}
    assert {name for name in foreign if folder_of(module) not in LIBRARIES.get(name, ())} == set()


@pytest.mark.parametrize(
    "names", [["swcheck"], ["swcheck", "swcheck.plugin"], LIGHT], ids=["front door", "plugin", "all"]
)
def test_light_modules_import_nothing_heavy(names):
    """Importing the front door, the plugin and all light modules loads no torch, transformers, hypothesis or numpy."""
    heavy = ("torch", "transformers", "hypothesis", "numpy")
    code = f"import sys, {', '.join(names)}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/")
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


# --- sizes -------------------------------------------------------------------------------------------------------------


def test_the_top_of_the_package_is_small():
    """The package has at most ten folders and five files at its top."""
    entries = [entry for entry in PACKAGE.iterdir() if entry.name != "__pycache__"]
    assert sum(entry.is_dir() for entry in entries) <= FOLDERS_AT_THE_TOP
    assert sum(entry.is_file() for entry in entries) <= FILES_AT_THE_TOP


def test_no_folder_has_more_than_a_dozen_modules():
    """A folder has about a dozen modules at most, its own ``__init__`` left out."""
    counts = Counter(
        file.parent.relative_to(PACKAGE).as_posix() for file in MODULES.values() if file.name != "__init__.py"
    )
    assert {folder: count for folder, count in counts.items() if count > MODULES_IN_A_FOLDER} == {}


def lines_of(node: ast.AST) -> int:
    """The lines that a node spans."""
    return node.end_lineno - node.lineno + 1


def lines_of_code(function: ast.FunctionDef) -> int:
    """The lines of a function, its docstring left out."""
    return lines_of(function) - (lines_of(function.body[0]) if ast.get_docstring(function) else 0)


def test_modules_classes_and_functions_are_short():
    """The longest module and class, and the median and 90th percentile of the functions' lengths, are within limits."""

    nodes = [node for tree in TREES.values() for node in ast.walk(tree)]
    classes = [lines_of(node) for node in nodes if isinstance(node, ast.ClassDef)]
    functions = sorted(lines_of_code(node) for node in nodes if isinstance(node, ast.FunctionDef))
    assert {module for module, source in SOURCES.items() if source.count("\n") > LONGEST_MODULE} == set()
    assert max(classes) <= LONGEST_CLASS
    assert statistics.median(functions) <= MEDIAN_FUNCTION
    assert functions[int(len(functions) * 0.9)] <= LONG_FUNCTION


# --- the front door ----------------------------------------------------------------------------------------------------


def test_the_front_door_lists_its_names():
    """The public names are in order, and types, modules and ``dir`` agree on them."""
    assert swcheck.__all__ == sorted(swcheck._MODULES)
    assert dir(swcheck) == sorted([*swcheck.__all__, "__version__"])
    typed = [one.name.removeprefix("swcheck.").rpartition(".") for one in imports(SOURCES[""]) if one.for_types]
    assert {name: module for module, _, name in typed if name in swcheck._MODULES} == swcheck._MODULES


def test_an_unknown_name_is_refused():
    """A name that the front door does not have is refused as any module refuses it."""
    with pytest.raises(AttributeError, match="module 'swcheck' has no attribute 'loacte'"):
        _ = swcheck.loacte


def test_the_version_is_known():
    """The front door knows the version of the installed distribution."""
    assert swcheck.__version__.count(".") == 2


@pytest.mark.parametrize("name", swcheck.__all__)
def test_public_names_are_documented(name):
    """Every public function and class, and every public method of the classes, has a docstring."""
    thing = getattr(swcheck, name)
    public = [part for key, part in vars(thing).items() if not key.startswith("_")] if inspect.isclass(thing) else []
    parts = [part.fget if isinstance(part, property) else part for part in public]
    described = [thing, *(part for part in parts if inspect.isfunction(part))]
    assert [part.__name__ for part in described if not (part.__doc__ or "").strip()] == []
    assert not (is_dataclass(thing) and thing.__doc__.startswith(f"{name}("))


def test_no_public_name_is_a_module():
    """A module of a public name would take its place in the package once it is imported."""
    assert {name for name in swcheck.__all__ if (PACKAGE / f"{name}.py").exists() or (PACKAGE / name).is_dir()} == set()


def test_a_public_name_is_the_same_thing_twice():
    """Every public name can be called or instantiated, and is the same object at every access."""
    before = {name: getattr(swcheck, name) for name in swcheck.__all__}

    assert all(callable(thing) for thing in before.values())
    assert {name: getattr(swcheck, name) for name in swcheck.__all__} == before


# --- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is(module):
    """Every module has a docstring; that of a folder is at most ten lines long."""
    words = ast.get_docstring(TREES[module])
    assert words
    if module and MODULES[module].name == "__init__.py" and folder_of(module) != "suite":
        assert len(words.splitlines()) <= LINES_OF_A_SIGN


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


def test_tests_mirror_the_folders():
    """A test file lies in the folder of the module that it is named after, where there is such a module."""
    folders = {folder_of(module).rstrip("/") for module in INNER}
    others = {"plugin", "benchmarks", "tools", "docs"}
    found = {file.parent.relative_to(TESTS).as_posix() for file in TESTS.rglob("test_*.py")}
    assert {folder for folder in found if folder not in folders | others | {"."}} == set()
