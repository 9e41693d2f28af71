"""Tests the tests: ``python -m tools.reliability.mutants [--most N] [--models] [--state FILE] [MODULE ...]``.

Each mutant is one module with one thing changed: a comparison, an ``and``, a number, a condition turned round, a ``return``,
``raise`` or call left out. The tests that reach the changed function run on it in a process of their own; a mutant that they
do not notice survives, and is printed with its line. Words in messages are not changed. Every mutant is tried; with
``--most`` so many of each module are drawn, always the same ones. ``--state`` keeps what was noticed in a file, so that a
run goes on where it was ended: only what is new or survived is tried.

mutmut and cosmic-ray start a whole Python for each mutant, half a minute with torch on two cores. Here the tests of a module
are collected once and run once, to see which of them reach which function and how long they take. Then a process is forked
for each mutant of a function, the code of that function is replaced in it, and the tests run from the quickest on until one
fails. What is changed outside of functions (constants, defaults) needs the module imported anew, before the tests are.
"""

from __future__ import annotations

import argparse
import ast
import copy
import gc
import hashlib
import importlib.abc
import importlib.util
import json
import os
import random
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from itertools import zip_longest
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
PATIENCE: Final = 10
"""A mutant whose tests take so many times as much of the processor as they usually do, and five seconds, has made an endless loop."""

LONGEST: Final = 20
"""Tests that take more seconds of the processor are left out of the search; the last look at a survivor has them too."""

TESTS: Final[dict[str, tuple[str, ...]]] = {
    "base.limits": ("base/test_limits.py",),
    "base.statistics": ("base/test_statistics.py",),
    "base.reading.bounded": ("base/reading", "loading/files"),
    "base.reading.schema": ("base/reading", "loading/files"),
    "base.reading.text_file": ("base/reading",),
    "loading.files.safetensors_header": ("loading/files/test_safetensors_header.py",),
    "loading.files.config_file": ("loading/files/test_config_file.py",),
    "loading.files.tokenizer_file": ("loading/files/test_tokenizer_file.py",),
    "loading.files.shard_index": ("loading/files/test_shard_index.py",),
    "loading.files.gguf_header": ("loading/files/test_gguf_header.py",),
    "loading.files.adapter_files": ("loading/files/test_adapter_files.py",),
    "loading.scheme_from_config": ("loading/test_scheme_from_config.py",),
    "run.limit_overrides": ("run/test_limit_overrides.py",),
    "gate.baseline.document": ("gate/baseline/test_document.py",),
    "gate.relation.candidate_kind": ("gate/relation/test_candidate_kind.py",),
    "superweights.locating.activation_rules": ("superweights/locating/test_activation_rules.py",),
}
"""The modules that read and judge numbers, and the tests of each, relative to ``tests``."""

_OF_EACH: Final = ("gate/checks/test_contributions.py", "gate/test_assertions.py")
"""Tests of every check that compares two models."""

MODEL_TESTS: Final[dict[str, tuple[str, ...]]] = {
    "gate.checks.contributions": (
        *_OF_EACH,
        "gate/checks/test_absent_places.py",
        "gate/test_runtime.py",
        "gate/diagnosis/causes/test_saturation.py",
    ),
    "gate.checks.dependence": (*_OF_EACH, "gate/checks/test_dependence.py", "gate/test_experts.py"),
    "gate.checks.activations": (
        *_OF_EACH,
        "gate/checks/test_activations.py",
        "gate/checks/test_prompted_activations.py",
        "gate/checks/test_absent_places.py",
        "gate/test_runtime.py",
        "gate/diagnosis/causes/test_saturation.py",
        "gate/diagnosis/test_explain.py::test_an_activation_lost_in_its_own_layer_is_told_from_a_lost_weight",
    ),
}
"""Those that judge by running models, and the tests that are meant for each; all of ``gate`` would take hours."""

SWAPPED: Final = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
}  # fmt: skip
NAMES: Final = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True)
class Mutant:
    """One changed copy of a module: the line, what was changed, the tree, and ``lines``.

    These are the first lines of the outermost function around the change and of those in it; none outside of functions.
    """

    line: int
    change: str
    tree: ast.Module
    lines: frozenset[int]


def mutants(source: str) -> Iterator[Mutant]:
    """Yield every mutant of a module."""
    tree = ast.parse(source)
    functions = _functions(tree)
    for number, node in enumerate(ast.walk(tree)):
        for change in _changes(node):
            other = copy.deepcopy(tree)
            twin = next(one for place, one in enumerate(ast.walk(other)) if place == number)
            before = ast.unparse(node).partition("\n")[0]
            _apply(other, twin, change)
            after = "nothing" if change == "left out" else ast.unparse(twin).partition("\n")[0]
            words, line = f"{before[:70]}  ->  {after[:70]}", getattr(node, "lineno", 0)
            yield Mutant(line, words, ast.fix_missing_locations(other), functions.get(node, frozenset()))


def _functions(tree: ast.Module) -> dict[ast.AST, frozenset[int]]:
    """Return for each node in the body of a function the first lines of its outermost function and of those in that one."""
    found: dict[ast.AST, frozenset[int]] = {}
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.Lambda) and function not in found:
            inside = [node for node in ast.walk(function) if isinstance(node, ast.FunctionDef | ast.Lambda)]
            starts = [
                min(one.lineno, *(d.lineno for d in getattr(one, "decorator_list", ())), one.lineno) for one in inside
            ]
            body = function.body if isinstance(function.body, list) else [function.body]
            found.update(dict.fromkeys((node for part in body for node in ast.walk(part)), frozenset(starts)))
    return found


def _changes(node: ast.AST) -> Iterator[str]:
    """Yield the ways in which a node is changed."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield "operator"
    elif isinstance(node, (ast.BoolOp, ast.BinOp, ast.AugAssign)) and type(node.op) in SWAPPED:
        if not _is_text(node):
            yield "operator"
    elif isinstance(node, (ast.If, ast.IfExp, ast.While)):
        yield "condition"
    elif isinstance(node, ast.Constant) and type(node.value) in {int, float, bool}:
        yield "number"
    elif isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield "nothing returned"
    elif isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield "left out"
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in NAMES:
        yield "name"


def _is_text(node: ast.AST) -> bool:
    return any(isinstance(part, (ast.JoinedStr, ast.Constant)) and not isinstance(getattr(part, "value", 0), (int, float))
               for part in ast.walk(node)) or (isinstance(getattr(node, "right", None), ast.Constant) and (
        getattr(node.right, "value", 0) is None))  # fmt: skip


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _apply(tree: ast.Module, node: ast.AST, change: str) -> None:
    """Change ``node``, which is part of ``tree``."""
    if change == "operator" and isinstance(node, ast.Compare):
        node.ops = [SWAPPED[type(node.ops[0])]()]  # type: ignore[list-item]
    elif change == "operator":
        node.op = SWAPPED[type(node.op)]()  # type: ignore[attr-defined]
    elif change == "condition":
        node.test = ast.UnaryOp(ast.Not(), node.test)  # type: ignore[attr-defined]
    elif change == "number":
        node.value = not node.value if isinstance(node.value, bool) else node.value + 1  # type: ignore[attr-defined]
    elif change == "nothing returned":
        node.value = ast.Constant(None)  # type: ignore[attr-defined]
    elif change == "name":
        node.func.id = NAMES[node.func.id]  # type: ignore[attr-defined]
    else:
        for parent in ast.walk(tree):
            for block in ("body", "orelse", "finalbody"):
                statements = getattr(parent, block, None)
                if isinstance(statements, list) and node in statements:
                    statements[statements.index(node)] = ast.Pass()


class _Loader(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a tree in place of its file."""

    def __init__(self, name: str, file: Path, tree: ast.Module) -> None:
        self.name, self.file, self.tree = name, file, tree

    def find_spec(self, fullname: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.file, loader=self)

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.tree, str(self.file), "exec"), vars(module))  # noqa: S102 - our own module, changed


_WORDS: Final = (
    # plain asserts: pytest's rewriting finds our modules, which are a plugin's, before the changed one is
    "-x", "-q", "--assert=plain", "-p", "no:cacheprovider", "--hypothesis-seed=0", "-p", "no:xdist", "-p", "no:anyio",
    "-p", "no:unraisableexception", "-m", "not benchmark", "-W", "ignore::pytest.PytestAssertRewriteWarning",
)  # fmt: skip


def in_child(work: Callable[[], int], limit: tuple[int, int] = (3600, 7200)) -> int:
    """Do ``work`` in a forked process, silently, within so many seconds of the processor and of the clock; return its code."""
    child = os.fork()
    if not child:
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (limit[0], limit[0] + 1))
            signal.alarm(limit[1])
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
            code = work()
        finally:
            os._exit(min(code, 100))
    return os.waitpid(child, 0)[1]


def _file_of(short: str) -> Path:
    return ROOT.joinpath("swcheck", *short.split(".")).with_suffix(".py")


def noticed_anew(short: str, tree: ast.Module, paths: Sequence[str], limit: tuple[int, int]) -> bool:
    """Return whether tests notice that the module is ``tree``; it and the tests are imported for that."""
    import pytest

    def work() -> int:
        sys.meta_path.insert(0, _Loader(f"swcheck.{short}", _file_of(short), tree))
        return int(pytest.main([*_WORDS, *paths]))

    return in_child(work, limit) != 0


@dataclass(frozen=True)
class _Seen:
    """Of a test that passed: seconds of the processor, and the first lines of the functions of the module that it called."""

    seconds: float
    called: frozenset[int]


class _Collected:
    """A plugin of pytest: runs the collected tests on mutants of functions, each in a process forked from this one."""

    def __init__(
        self, short: str, drawn: Sequence[tuple[int, Mutant]], notes: Path, found: Callable[[int], None]
    ) -> None:
        self.short, self.drawn, self.notes, self.found = short, drawn, notes, found
        self.file = str(_file_of(short))

    def pytest_runtestloop(self, session: Any) -> bool:
        functions = [one for one in gc.get_objects() if isinstance(one, FunctionType)]
        functions = [one for one in functions if one.__code__.co_filename == self.file]
        gc.freeze()  # else each mutant looks for garbage among all of torch
        seen = self._seen(session)
        for place, mutant in self.drawn:
            items = [item for item in session.items if not seen[item.nodeid].called.isdisjoint(mutant.lines)]
            items = [item for item in items if seen[item.nodeid].seconds <= LONGEST]
            items.sort(key=lambda item: seen[item.nodeid].seconds)
            seconds = int(5 + PATIENCE * sum(seen[item.nodeid].seconds for item in items))

            def work(tree: ast.Module = mutant.tree, items: Sequence[Any] = items) -> int:
                _exchange(functions, compile(tree, self.file, "exec"))
                return _failed(session, items)

            if items and in_child(work, (seconds, 20 * seconds)):
                self.found(place)
        return True

    def _seen(self, session: Any) -> dict[str, _Seen]:
        """Run the tests as they are, in a process of its own; return what was seen of each. Raises if one fails."""

        def work() -> int:
            seen: dict[str, tuple[float, list[int]]] = {}
            failed = _failed(session, session.items, lambda item: _watched(item, self.file, seen))
            self.notes.write_text(json.dumps(seen), encoding="utf-8")
            return failed

        if in_child(work):
            raise AssertionError(f"the tests of {self.short} fail on the module as it is")
        return _seen_in(self.notes)


def _seen_in(notes: Path) -> dict[str, _Seen]:
    """Return what ``_Collected`` has written of each test; nothing if it had nothing to do."""
    found = json.loads(notes.read_text(encoding="utf-8")) if notes.exists() else {}
    return {name: _Seen(seconds, frozenset(called)) for name, (seconds, called) in found.items()}


def _last_look(mutant: Mutant, seen: dict[str, _Seen], paths: Sequence[str]) -> tuple[Sequence[str], tuple[int, int]]:
    """Return the tests that a mutant is tried on with its module imported anew, and their limits in seconds.

    These are the tests that call the changed function; those that were tried before are left out if they take long. What no
    test calls may be used while modules are imported: it has all.
    """
    reaching = {name: one.seconds for name, one in seen.items() if not one.called.isdisjoint(mutant.lines)}
    if not reaching:
        return paths, (3600, 7200)
    if sum(reaching.values()) > LONGEST:
        reaching = {name: seconds for name, seconds in reaching.items() if seconds > LONGEST}
    seconds = int(300 + PATIENCE * sum(reaching.values()))
    return [*reaching], (seconds, 6 * seconds)


@contextmanager
def _watched(item: Any, file: str, seen: dict[str, tuple[float, list[int]]]) -> Iterator[None]:
    """Note in ``seen`` how long the block takes, and which functions of ``file`` it calls."""
    called: set[int] = set()

    def trace(frame: Any, _event: str, _argument: Any) -> None:
        if frame.f_code.co_filename == file:
            called.add(frame.f_code.co_firstlineno)

    begun = time.process_time()
    sys.settrace(trace)
    threading.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
        seen[item.nodeid] = (time.process_time() - begun, sorted(called))


def _failed(session: Any, items: Sequence[Any], around: Callable[[Any], Any] = nullcontext) -> int:
    """Run these tests until one fails; return 1 if one does."""
    for item, following in zip_longest(items, items[1:]):
        with around(item):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.testsfailed:
            return 1
    return 0


def _exchange(functions: Sequence[FunctionType], changed: CodeType) -> None:
    """Give functions of a module the code that they have in ``changed``."""
    codes = {(code.co_qualname, code.co_firstlineno): code for code in _codes(changed)}
    for function in functions:
        with suppress(KeyError):
            function.__code__ = codes[function.__code__.co_qualname, function.__code__.co_firstlineno]


def _codes(code: CodeType) -> Iterator[CodeType]:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield inner
            yield from _codes(inner)


class _State:
    """Which mutants were noticed, by module, its source and the place in it; kept in a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def known(self) -> set[str]:
        return set(self.file.read_text(encoding="utf-8").splitlines()) if self.file.exists() else set()

    def add(self, key: str) -> None:
        with self.file.open("a", encoding="utf-8") as out:
            out.write(f"{key}\n")


def tried(short: str, most: int | None, state: _State) -> tuple[int, int, int]:
    """Try the mutants of a module; print those that survive. Return how many there are, were drawn, and were noticed."""
    import pytest

    paths = [f"tests/{test}" for test in {**TESTS, **MODEL_TESTS}[short]]
    source, start = _file_of(short).read_text(encoding="utf-8"), time.monotonic()
    every = list(enumerate(mutants(source)))
    random.Random(0).shuffle(every)
    drawn = sorted(every[: most or len(every)], key=lambda one: one[0])
    digest = hashlib.sha256(source.encode()).hexdigest()[:12]
    keys = {place: f"{short} {digest} {place}" for place, _ in drawn}

    def left() -> list[tuple[int, Mutant]]:
        known = state.known()
        return [(place, mutant) for place, mutant in drawn if keys[place] not in known]

    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder, "seen")
        plugin = _Collected(short, [one for one in left() if one[1].lines], notes, lambda place: state.add(keys[place]))
        if left() and in_child(lambda: int(pytest.main([*_WORDS, *paths], plugins=[plugin]))):
            raise AssertionError(f"the tests of {short} fail on the module as it is")
        seen = _seen_in(notes)
    for place, mutant in left():  # a change of what is used while modules are imported is seen only here
        tests, limit = _last_look(mutant, seen, paths)
        if tests and noticed_anew(short, mutant.tree, tests, limit):
            state.add(keys[place])
    for _, mutant in left():
        sys.stdout.write(f"survived: {short}:{mutant.line}: {mutant.change}\n")
    killed = len(drawn) - len(left())
    words = f"{killed} of {len(drawn)} noticed ({killed / len(drawn):.0%}), {len(every)} in all"
    sys.stdout.write(f"{short}: {words}, {time.monotonic() - start:.0f} s\n")
    sys.stdout.flush()
    return len(every), len(drawn), killed


def main() -> int:
    """Try the mutants of each module; print the share that was noticed, and each survivor."""
    parser = argparse.ArgumentParser(description="Mutants of the modules that read and judge.")
    parser.add_argument("modules", nargs="*", help="left out: all whose tests run no models")
    parser.add_argument("--models", action="store_true", help="those too whose tests run models")
    parser.add_argument("--most", type=int, help="draw so many of each module")
    parser.add_argument("--state", type=Path, help="a file that keeps what was noticed")
    parser.add_argument("--list", action="store_true", help="only count the mutants")
    parser.add_argument("--write", action="store_true", help="write the rows of docs/reliability.md")
    options = parser.parse_args()
    named = " ".join(options.modules)
    options.modules = options.modules or [*TESTS, *(MODEL_TESTS if options.models else ())]
    os.chdir(ROOT)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    if options.list:
        for short in options.modules:
            source = ROOT.joinpath("swcheck", *short.split(".")).with_suffix(".py").read_text(encoding="utf-8")
            sys.stdout.write(f"{short}: {len(list(mutants(source)))}\n")
        return 0
    import hypothesis
    import jsonschema
    import numpy as np
    import pytest
    import torch
    import transformers.models.auto.modeling_auto
    import transformers.models.llama.modeling_llama  # noqa: F401 - imported once, for all that are forked

    del hypothesis, jsonschema, np, pytest, torch
    gc.freeze()  # else each mutant looks for garbage among all of torch
    with tempfile.TemporaryDirectory() as folder:
        state = _State(options.state or Path(folder, "state"))
        found = {short: tried(short, options.most, state) for short in options.modules}
    if options.write:
        _write(found, f"--most {options.most}" * bool(options.most) + " --models" * options.models + f" {named}")
    return 0


def _write(found: dict[str, tuple[int, int, int]], arguments: str) -> None:
    """Write the rows of docs/reliability.md: the modules of numbers, and those that run models."""
    from tools.reliability.page import write_rows

    rows = []
    for kind, modules in (("read and judge", TESTS), ("judge by running models", MODEL_TESTS)):
        part = {short: found[short] for short in modules if short in found}
        if part:
            every, drawn, killed = (sum(column) for column in zip(*part.values(), strict=True))
            words = f"{killed / drawn:.1%} noticed by the quick tests: "
            words += ", ".join(f"`{short}` {noticed / count:.0%}" for short, (_, count, noticed) in part.items())
            much = f"{drawn:,} of {every:,} mutants of {len(part)} module{'s' * (len(part) > 1)}"
            rows.append((f"tests of the tests: one thing changed in a module of those that {kind}", much, words))
    write_rows("mutants", rows, arguments.strip())


if __name__ == "__main__":
    raise SystemExit(main())
