"""Tests the tests: ``python -m tools.reliability.mutants [--most N] [--state FILE] [--list] [MODULE ...]``.

Each mutant is one module with one thing changed: a comparison, an ``and``, a number, a condition turned round, a ``return``,
``raise`` or call left out. The tests of that module run on it in a process of its own; a mutant that they do not notice
survives, and is printed with its line. Words in messages are not changed. Every mutant is tried; of the modules whose
tests run models ``SAMPLED`` are drawn, and with ``--most`` that many of each, always the same ones. ``--state`` keeps
what was noticed in a file, so that a run goes on where it was ended: only what is new or survived is tried.

mutmut and cosmic-ray start a whole Python for each mutant, half a minute with torch on two cores; here torch, transformers and
pytest are imported once and forked.
"""

from __future__ import annotations

import argparse
import ast
import copy
import gc
import hashlib
import importlib.abc
import importlib.util
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PATIENCE: Final = 10
"""A mutant whose tests take so many times as long as those of the module, and half a minute, has made an endless loop."""

SAMPLED: Final = 20
"""So many mutants are drawn of a module whose tests run models."""

TESTS: Final[dict[str, tuple[str, ...]]] = {
    "base.limits": ("base/test_limits.py",),
    "base.statistics": ("base/test_statistics.py",),
    "base.reading.bounded": ("base/reading", "loading/files"),
    "base.reading.schema": ("base/reading", "loading/files"),
    "base.reading.text_file": ("base/reading",),
    "loading.files.safetensors_header": ("loading/files/test_safetensors_header.py",),
    "loading.files.config_file": ("loading/files/test_config_file.py",),
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

MODEL_TESTS: Final[dict[str, tuple[str, ...]]] = {
    "gate.checks.contributions": ("gate/checks/test_contributions.py",),
    "gate.checks.dependence": ("gate/test_assertions.py",),
    "gate.checks.activations": ("gate/test_assertions.py",),
}
"""Those that judge by running models."""

SWAPPED: Final = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
}  # fmt: skip
NAMES: Final = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True)
class Mutant:
    """One changed copy of a module: the line, what was changed, and the tree."""

    line: int
    change: str
    tree: ast.Module


def mutants(source: str) -> Iterator[Mutant]:
    """Yield every mutant of a module."""
    tree = ast.parse(source)
    for number, node in enumerate(ast.walk(tree)):
        for change in _changes(node):
            other = copy.deepcopy(tree)
            twin = next(one for place, one in enumerate(ast.walk(other)) if place == number)
            before = ast.unparse(node)
            _apply(other, twin, change)
            after = "nothing" if change == "left out" else ast.unparse(twin)
            yield Mutant(
                getattr(node, "lineno", 0), f"{before[:70]}  ->  {after[:70]}", ast.fix_missing_locations(other)
            )


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


def noticed(name: str, tree: ast.Module, tests: Sequence[str], seconds: int) -> bool:
    """Return whether the tests fail, or do not end in time, where the module ``name`` is ``tree``."""
    child = os.fork()
    if not child:
        code = 1
        try:
            signal.alarm(seconds)
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
            file = ROOT.joinpath(*name.split(".")).with_suffix(".py")
            sys.meta_path.insert(0, _Loader(name, file, tree))
            import pytest

            # plain asserts: pytest's rewriting finds our modules, which are a plugin's, before the changed one is
            words = "-x -q --assert=plain -p no:cacheprovider --hypothesis-seed=0".split()
            words += "-p no:xdist -p no:anyio -p no:unraisableexception".split()
            words += ["-m", "not slow and not benchmark", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
            code = int(pytest.main([*words, *tests]))
        finally:
            os._exit(min(code, 100))
    _, status = os.waitpid(child, 0)
    return status != 0


class _State:
    """Which mutants were noticed, by module, its source and the place in it; kept in a file if there is one."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.known = set(file.read_text(encoding="utf-8").splitlines()) if file and file.exists() else set()

    def add(self, key: str) -> None:
        self.known.add(key)
        if self.file:
            with self.file.open("a", encoding="utf-8") as out:
                out.write(f"{key}\n")


def tried(short: str, most: int | None, state: _State) -> tuple[int, int, int]:
    """Try the mutants of a module; print those that survive. Return how many there are, were drawn, and were noticed."""
    name, paths = f"swcheck.{short}", [f"tests/{test}" for test in {**TESTS, **MODEL_TESTS}[short]]
    source = ROOT.joinpath(*name.split(".")).with_suffix(".py").read_text(encoding="utf-8")
    every = list(enumerate(mutants(source)))
    count = min(most or (SAMPLED if short in MODEL_TESTS else len(every)), len(every))
    random.Random(0).shuffle(every)
    drawn = sorted(every[:count], key=lambda one: one[0])
    digest, start = hashlib.sha256(source.encode()).hexdigest()[:12], time.monotonic()
    if noticed(name, ast.parse(source), paths, 3600):
        raise AssertionError(f"the tests of {short} fail on the module as it is")
    seconds, killed = int(30 + PATIENCE * (time.monotonic() - start)), 0
    for place, mutant in drawn:
        key = f"{short} {digest} {place}"
        if key in state.known or noticed(name, mutant.tree, paths, seconds):
            state.add(key)
            killed += 1
        else:
            sys.stdout.write(f"survived: {short}:{mutant.line}: {mutant.change}\n")
            sys.stdout.flush()
    sys.stdout.write(
        f"{short}: {killed} of {count} noticed ({killed / count:.0%}), {len(every)} in all, {time.monotonic() - start:.0f} s\n"
    )
    sys.stdout.flush()
    return len(every), count, killed


def main() -> int:
    """Try the mutants of each module; print the share that was noticed, and each survivor."""
    parser = argparse.ArgumentParser(description="Mutants of the modules that read and judge.")
    parser.add_argument("modules", nargs="*", default=[*TESTS, *MODEL_TESTS])
    parser.add_argument("--most", type=int, help="draw so many of each module")
    parser.add_argument("--state", type=Path, help="a file that keeps what was noticed")
    parser.add_argument("--list", action="store_true", help="only count the mutants")
    parser.add_argument("--write", action="store_true", help="write the rows of docs/reliability.md")
    options = parser.parse_args()
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
    state = _State(options.state)
    found = {short: tried(short, options.most, state) for short in options.modules}
    if options.write:
        _write(found, f" --most {options.most}" if options.most else "")
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
            much = f"{drawn:,} of {every:,} mutants of {len(part)} modules that {kind}"
            rows.append(("tests of the tests: one thing changed in a module", much, words))
    write_rows("mutants", rows, arguments.strip())


if __name__ == "__main__":
    raise SystemExit(main())
