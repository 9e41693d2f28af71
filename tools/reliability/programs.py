"""Random programs of nested interventions leave no trace: ``python -m tools.reliability.programs [--programs 1000] [SPEC ...]``.

A program nests up to five blocks that change or watch a model, runs passes in them, and may fail at any place: with a
coordinate outside of the model, an exception in a block, tokens that the model does not know, an interrupt inside a
layer. Afterwards everything in ``traces`` has to be as before. SPEC are candidates of ``tiny``; by default small models
of random weights, plain, packed, tied and with experts, and one candidate of each installed engine, with fewer programs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from swcheck.base.errors import SwcheckError
from swcheck.base.isolation import bounded, captured_output, restored_environment, undisturbed
from swcheck.base.records import SuperWeight
from swcheck.lens.architecture.anatomy import MapKey, anatomy
from swcheck.lens.architecture.storage import evaluating, plain_weight
from swcheck.lens.intervene import maps_zeroed, output_channel_zeroed, scalars_zeroed, scaled, set_to, zeroed
from swcheck.lens.likelihood import perplexity
from swcheck.lens.linear_maps import contributions, effective_weight, linear_maps
from swcheck.lens.nulls import without_largest, without_matched
from swcheck.lens.observe import observe
from swcheck.lens.replace import embedding_replaced, maps_replaced, parameters_replaced, residual_replaced
from tools.reliability.traces import differences, state_of

IDS: Final = torch.tensor([[0, 5, 9, 33, 2]])


@dataclass(frozen=True)
class Step:
    """One block or pass of a program: its name, a number to choose places by, and a factor."""

    name: str
    number: int
    factor: float


class BrokenError(Exception):
    """Raised by a program in the middle of a block."""


def _weights(model: Any, step: Step) -> list[SuperWeight]:
    """Return two scalars of the model; every seventh number gives one outside of it."""
    body, number = anatomy(model), step.number
    layers, outside = len(body.layers), number % 7 == 6
    hidden, inner = body.hidden or 1, body.inner or 1
    one = SuperWeight(number % layers, number % hidden, number % inner, step.factor)
    return [
        one,
        SuperWeight((number + 1) % layers, number % hidden + outside * hidden, (3 * number) % inner, step.factor),
    ]


def _down(model: Any, step: Step) -> Any:
    downs = anatomy(model).down_projections
    return downs[step.number % len(downs)]


def _plain(model: Any, step: Step) -> torch.Tensor:
    weight = plain_weight(_down(model, step))
    if weight is None:
        raise BrokenError
    return weight


def _first_map(model: Any, step: Step) -> Any:
    maps = linear_maps(model)
    if not maps:  # all of them are packed
        raise BrokenError
    return maps[step.number % len(maps)]


def _maps_replaced(model: Any, step: Step) -> AbstractContextManager[Any]:
    one = _first_map(model, step)
    weight = torch.full_like(one.weight, step.factor, dtype=torch.float32)
    weight = weight.T if type(one.module).__name__ == "Conv1D" else weight
    return maps_replaced(
        model, {f"{anatomy(model).path}.{one.layer}.{one.path}": (lambda: weight) if step.number % 2 else weight}, {}
    )


def _parameters_replaced(model: Any, step: Step) -> AbstractContextManager[Any]:
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    name = names[step.number % len(names)]
    old = model.get_parameter(name)
    if type(old) is not torch.nn.Parameter or not old.is_floating_point():
        raise BrokenError
    return parameters_replaced(model, {name: torch.full_like(old, step.factor)})


BLOCKS: Final[dict[str, Callable[[Any, Step], AbstractContextManager[Any]]]] = {
    "zeroed": lambda model, step: zeroed(model, _weights(model, step)),
    "scaled": lambda model, step: scaled(model, _weights(model, step), step.factor),
    "set": lambda model, step: set_to(model, _weights(model, step)),
    "maps zeroed": lambda model, step: maps_zeroed(model, [MapKey(step.number % 5)]),
    "channel zeroed": lambda model, step: output_channel_zeroed(_down(model, step), step.number % 20),
    "scalars zeroed": lambda model, step: scalars_zeroed(_plain(model, step), [(0, 0), (1, step.number % 3), (0, 0)]),
    "maps replaced": _maps_replaced,
    "parameters replaced": _parameters_replaced,
    "residual replaced": lambda model, step: residual_replaced(
        model, step.number % 5, step.number % 8, torch.full((1, 3), step.factor)
    ),
    "embedding replaced": lambda model, _step: embedding_replaced(
        model, torch.zeros(1, 3, model.get_input_embeddings().weight.shape[1])
    ),
    "matched": lambda model, step: without_matched(model, _weights(model, step)[:1], step.number),
    "largest": lambda model, step: without_largest(model, _weights(model, step)[:1], min(1.0, abs(step.factor))),
    "observed": lambda model, step: observe(
        model, residual=[step.number % 5], inputs=[step.number % 4], stop=step.number % 2 == 0
    ),
    "captured": lambda _model, _step: captured_output(),
    "environment": lambda _model, _step: restored_environment(SWCHECK_A="1"),
    "undisturbed": lambda _model, _step: undisturbed(),
    "bounded": lambda _model, _step: bounded(60, 2**33),
    "evaluating": lambda model, _step: evaluating(model),
}


def _pass(model: Any, _step: Step) -> None:
    with torch.no_grad():
        model(IDS, use_cache=False)


def _unknown_token(model: Any, _step: Step) -> None:
    with torch.no_grad():
        model(torch.tensor([[10**9]]), use_cache=False)


def _interrupted(model: Any, step: Step) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    layers = anatomy(model).layers
    hook = layers[step.number % len(layers)].register_forward_hook(interrupt)
    try:
        _pass(model, step)
    finally:
        hook.remove()


def _raised(_model: Any, _step: Step) -> None:
    raise BrokenError


ACTIONS: Final[dict[str, Callable[[Any, Step], object]]] = {
    "a pass": _pass,
    "an unknown token": _unknown_token,
    "an interrupt": _interrupted,
    "an exception": _raised,
    "perplexity": lambda model, _step: perplexity(model, IDS),
    "one weight": lambda model, step: effective_weight(_down(model, step), step.number % 8, step.number % 5, at=2.0),
    "contributions": lambda model, step: contributions(
        _down(model, step), torch.ones(anatomy(model).inner or 1), step.number % 8, [0, step.number % 5]
    ),
}

STEPS: Final = st.builds(
    Step,
    st.sampled_from([*BLOCKS, *BLOCKS, *ACTIONS]),
    st.integers(0, 60),
    st.sampled_from([0.0, 1.0, -2.0, 0.01, 1e30, float("inf")]),
)
PROGRAMS: Final = st.lists(STEPS, min_size=1, max_size=8)


def run(model: Any, program: Sequence[Step]) -> str:
    """Run a program: each block holds all steps behind it. Return what ended it, a word of ours or the end."""
    try:
        _run(model, list(program))
    except (SwcheckError, BrokenError, KeyboardInterrupt, IndexError, RuntimeError) as error:
        return type(error).__name__
    return "end"


def _run(model: Any, program: list[Step]) -> None:
    if not program:
        return
    step, rest = program[0], program[1:]
    if step.name in ACTIONS:
        ACTIONS[step.name](model, step)
        _run(model, rest)
        return
    with BLOCKS[step.name](model, step):
        _run(model, rest)


def tried(model: Any, count: int, seed: int = 0) -> dict[str, int]:
    """Run ``count`` programs; return how often each way to end was seen. Raises ``AssertionError`` for a trace."""
    ends: dict[str, int] = {}
    before = state_of(model)

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(PROGRAMS)
    def check(program: list[Step]) -> None:
        state = {**before, **{name: value for name, value in state_of(model).items() if name.startswith("random")}}
        ended = run(model, program)
        found = differences(state, state_of(model))
        assert not found, f"{found} after {program}"
        ends[ended] = ends.get(ended, 0) + 1

    check.hypothesis.inner_test.__module__ = __name__  # type: ignore[attr-defined]
    torch.manual_seed(seed)
    check()
    return ends


def small_models() -> dict[str, Any]:
    """Return four models of random weights, which share the programs: plain, with packed down projections, with tied and Conv1D maps, with experts."""
    from tests.planted import Packed
    from tools.small_models import small_model

    models: dict[str, Any] = {name: small_model(name).eval() for name in ("llama", "gpt2", "mixtral")}
    packed = small_model("llama").eval()
    for layer in packed.model.layers:
        layer.mlp.down_proj = Packed(layer.mlp.down_proj)
    return {**models, "llama, packed": packed}


ENGINES: Final = (
    "rtn:bits=4", "bitsandbytes:int8", "bitsandbytes:nf4", "torchao:int8-weight-only", "torchao:int4-weight-only", "quanto:int8",
    "hqq:4bit", "gguf:q4_0", "compressed-tensors:W4A16", "gptq:4bit", "autoround:W4A16",
)  # fmt: skip


def main() -> int:
    """Run the programs on every model; print how they ended; return 1 for a trace."""
    from swcheck import installed_engines, load
    from tools.reliability.page import write_rows

    parser = argparse.ArgumentParser(description="Random programs of interventions.")
    parser.add_argument("specs", nargs="*")
    parser.add_argument("--programs", type=int, default=1000)
    parser.add_argument("--write", action="store_true", help="write the rows of docs/reliability.md")
    options = parser.parse_args()
    engines = options.specs or [spec for spec in ENGINES if spec.partition(":")[0] in installed_engines()]
    faults, done, total = [], [], 0
    models: dict[str, Callable[[], Any]] = (
        {} if options.specs else {name: (lambda m=m: m) for name, m in small_models().items()}
    )
    models |= {spec: (lambda s=spec: load(s, reference="tiny", device="cpu").model) for spec in engines}
    for name, make in models.items():
        count = options.programs // (20 if ":" in name else 4)
        try:
            ends = tried(make(), count)
        except AssertionError as error:
            faults.append(f"{name}: {str(error).splitlines()[0]}")
        else:
            done.append(name)
            total += sum(ends.values())
            sys.stdout.write(f"{name}: {sum(ends.values())} programs, {ends}\n")
    sys.stdout.write("".join(f"{fault}\n" for fault in faults))
    if options.write:
        words = (
            "; ".join(faults)
            or "parameters and buffers to the bit, objects, hooks, flags, random states, environment: as before"
        )
        named = f" on {' '.join(options.specs)}" if options.specs else ""
        row = (f"nested interventions that fail at any step{named}", f"{total:,} programs on {', '.join(done)}", words)
        write_rows("programs", [row], f"--programs {' '.join([str(options.programs), *options.specs])}")
    return int(bool(faults))


if __name__ == "__main__":
    raise SystemExit(main())
