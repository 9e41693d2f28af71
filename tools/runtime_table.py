"""Writes ``docs/runtimes.md``: ``python -m tools.runtime_table [--model=DIR --text=FILE] [--server=TITLE@URL] [RUNTIME...]``.

Run it where the runtimes are installed. Parity of floats and the cost of a gate, then candidates of 8 and 4 bits and
destroyed ones, of the embedded models and of one in a directory. Rows that are not measured stay as they are: those of a
runtime that is not installed or not named, of the directory, and of a server of ``tiny`` where none is given.
"""

from __future__ import annotations

import argparse
import gc
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch

from swcheck import Loaded, Verdict, all_verdicts, anatomy, assert_perplexity_within, assert_predictions_preserved, load
from swcheck import token_windows as windows_of
from swcheck.lens.likelihood import token_nats
from swcheck.superweights.measurements.located import located
from swcheck.superweights.subject.as_subject import as_subject

PAGE: Final = Path(__file__).parents[1] / "docs" / "runtimes.md"
PACKAGES: Final = {"llamacpp": "xllamacpp", "onnx": "onnxruntime", "openvino": "openvino"}
FLOATS: Final = {"llamacpp": "f32", "onnx": "f32", "openvino": "f32,precision=f32"}
SCHEMES: Final = {"llamacpp": ("q8_0", "q4_0"), "onnx": ("int8", "int4"), "openvino": ("int8", "int4")}
ROUNDS: Final = 3
BLOCK_WIDTH: Final = 32
PLAIN: Final = 1000
PARITY: Final = (
    "| model | runtime | KL, nats | perplexity | activation | own scoring, s | perplexity and KL | all checks |"
)
CANDIDATES: Final = "| model | candidate | super weight | activation | perplexity | KL, nats | dependence | verdict |"


@dataclass(frozen=True)
class Model:
    """A reference: how it is called, what loads it, and the windows that are scored, ``(B, T)``."""

    title: str
    spec: str
    text: str = ""
    count: int = 32
    length: int = 256

    def reference(self) -> Any:
        """Return it, with its windows."""
        loaded = load(self.spec, device="cpu")
        ids = windows_of(loaded.tokenizer, self.text or loaded.text, count=self.count, length=self.length)
        return as_subject(loaded, token_ids=ids)


def cells(verdicts: dict[str, Verdict]) -> dict[str, str]:
    """Return what was measured by each check, as a cell; a dash where it is not applicable."""
    formats = {"predictions": "{:.1e}", "dependence": "{:.2f}"}
    found = {}
    for name, verdict in verdicts.items():
        value = verdict.facts.get("kl", verdict.measured) if name == "predictions" else verdict.measured
        plain = "x{:.4f}" if value is None or value < PLAIN else "x{:,.0f}"
        found[name] = "-" if value is None else formats.get(name, plain).format(value)
    return found


def seconds(action: Callable[[], object], clock: Callable[[], float], rounds: int) -> float:
    """Return the least time of an action."""
    taken = []
    for _ in range(rounds):
        start = clock()
        action()
        taken.append(clock() - start)
    return min(taken)


def parity(model: Model, title: str, candidate: Loaded, *, in_process: bool) -> str:
    """Return a row: an unquantized candidate against its reference, and what a gate of it costs over its own scoring."""
    reference = model.reference()
    found = cells(all_verdicts(as_subject(candidate), reference))
    clock, rounds = (time.process_time, ROUNDS) if in_process else (time.perf_counter, 1)
    runtime: Any = candidate.model
    own = seconds(lambda: token_nats(runtime, reference.token_ids), clock, rounds)

    def some() -> None:
        ours = as_subject(candidate)
        for check in (assert_perplexity_within, assert_predictions_preserved):
            check(ours, reference)

    two = seconds(some, clock, rounds)
    whole = seconds(lambda: all_verdicts(as_subject(candidate), reference), clock, rounds)
    shown = (found["predictions"], found["perplexity"], found["super activations"])
    return f"| {model.title} | {title} | {' | '.join(shown)} | {own:.2f} | x{two / own:.2f} | x{whole / own:.2f} |"


@contextmanager
def llama_cpp_server(model: Model) -> Iterator[str]:
    """Run llama.cpp's own server over a model of floats; yield its address."""
    import xllamacpp
    from swcheck_llamacpp.writing import write

    loaded = load(model.spec, device="cpu")
    with TemporaryDirectory() as folder:
        file = Path(folder, "model.gguf")
        write(loaded.model, loaded.tokenizer, file, "f32")
        asked = xllamacpp.CommonParams()
        asked.model.path, asked.hostnames, asked.port = str(file), ["127.0.0.1"], 0
        asked.n_ctx, asked.n_parallel, asked.cpuparams.n_threads, asked.warmup = 512, 1, 1, False
        server = xllamacpp.Server(asked)
        yield server.listening_address
        del server, asked
        gc.collect()


def parity_rows(models: list[Model], named: list[str], servers: list[str]) -> Iterator[str]:
    """Yield the rows of the first table."""
    for model in models:
        for engine in named:
            title = f"{engine} ({PACKAGES[engine]} {version(PACKAGES[engine])})"
            yield parity(model, title, loaded_in(f"{engine}:{FLOATS[engine]}", model.spec), in_process=True)
    few = Model("tiny", "tiny", count=4, length=128)
    if "llamacpp" in named:
        with llama_cpp_server(few) as url:
            title = f"server (llama.cpp of xllamacpp {version('xllamacpp')}), 4 windows of 128"
            yield parity(few, title, loaded_in(f"server:{url}", "tiny"), in_process=False)
    for server in servers:
        title, _, url = server.partition("@")
        yield parity(Model("tiny", "tiny"), f"server ({title})", loaded_in(f"server:{url}", "tiny"), in_process=False)


def loaded_in(spec: str, reference: str) -> Loaded:
    """Return a candidate on the CPU."""
    return load(spec, reference=reference, device="cpu")


@contextmanager
def destroyed(model: Model) -> Iterator[tuple[str, str]]:
    """Yield what is wrong and the folder of a copy: super weights zeroed, or of a model without any a norm scaled."""
    reference, loaded = model.reference(), load(model.spec, device="cpu")
    body = anatomy(loaded.model)
    weights = located(reference).super_weights
    with torch.no_grad(), TemporaryDirectory() as folder:
        for one in weights:
            body.down_map(one).weight[one.row, one.column] = 0
        if not weights:
            loaded.model.model.layers[2].post_attention_layernorm.weight *= 3
        for part in (loaded.model, loaded.tokenizer):
            part.save_pretrained(folder)
        yield ("super weights zeroed" if weights else "a norm scaled x3"), folder


def candidate_rows(models: list[Model], named: list[str]) -> Iterator[str]:
    """Yield the rows of the second table."""
    for model in models:
        reference = model.reference()
        body = anatomy(reference.module)
        names = [f"model.layers.{layer}.mlp.down_proj" for layer in range(len(body.layers))]
        spared = f",skip={'+'.join(names)}" if body.inner % BLOCK_WIDTH else ""
        note = ", down projections spared" if spared else ""
        with destroyed(model) as (words, folder):
            for engine in named:
                for scheme in SCHEMES[engine]:
                    given = "" if engine == "onnx" else spared
                    row = f"{engine}:{scheme}", note if given else ""
                    yield candidate_row(model, f"`{row[0]}`{row[1]}", f"{row[0]}{given}", model.spec, reference)
                eight = f"{engine}:{SCHEMES[engine][0]}"
                given = "" if engine == "onnx" else spared
                yield candidate_row(model, f"`{eight}`, {words}", f"{eight}{given}", folder, reference)


def candidate_row(model: Model, title: str, spec: str, base: str, reference: Any) -> str:
    """Return a row: what a runtime makes of ``base`` against the reference."""
    verdicts = all_verdicts(as_subject(loaded_in(spec, base)), reference)
    found = cells(verdicts)
    red = [verdict for verdict in verdicts.values() if verdict.red]
    order = ("super weights", "super activations", "perplexity", "predictions", "dependence")
    words = f"red: {red[0].cause} (`{red[0].cause_kind}`)" if red else "green"
    return f"| {model.title} | {title} | {' | '.join(found[name] for name in order)} | {words} |"


def table(header: str, present: str, made: Iterator[str]) -> str:
    """Return a table: the rows of ``present``, those that were made in their places, new ones at the end."""
    rows = {row_key(line): line for line in present.splitlines() if line.startswith("| ") and line != header}
    rows = {key: line for key, line in rows.items() if "---" not in line}
    for line in made:
        sys.stderr.write(f"{line}\n")
        rows[row_key(line)] = line
    lines = sorted(rows.values(), key=lambda line: line.split("|")[1])
    return "\n".join([header, "|" + " --- |" * (header.count("|") - 1), *lines]) + "\n"


def row_key(line: str) -> tuple[str, str]:
    """Return what a row is about: its model, and its runtime without the version."""
    cells = [one.strip() for one in line.split("|")]
    return cells[1], re.sub(r" [\d.]+\)", ")", cells[2])


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("runtimes", nargs="*", choices=[*PACKAGES, []])
    parser.add_argument("--model")
    parser.add_argument("--text")
    parser.add_argument("--server", action="append", default=[])
    asked = parser.parse_args()
    installed = [engine for engine in PACKAGES if find_spec(f"swcheck_{engine}")]
    named = [] if asked.server and not asked.runtimes else list(asked.runtimes or installed)
    models = [Model("tiny", "tiny", count=128), Model("tiny-pair", "tiny-pair")]
    if asked.model:
        models.append(Model(Path(asked.model).name, asked.model, Path(asked.text).read_text(encoding="utf-8")))
    text = PAGE.read_text(encoding="utf-8")
    for name, header, made in (
        ("parity", PARITY, parity_rows(models, named, asked.server)),
        ("candidates", CANDIDATES, candidate_rows(models[1:], named)),
    ):
        block = re.compile(rf"(<!-- {name} -->\n)(.*?)(<!-- /{name} -->)", re.DOTALL)
        found = block.search(text)
        new = table(header, found[2] if found else "", made)
        text = block.sub(lambda match, new=new: match[1] + new + match[3], text)
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
