"""Damaged checkpoints, each in a run of its own: ``python -m tools.reliability.attack [--of adapters] [--most N] [--only WORD]``.

A copy of ``tiny`` has one thing changed: a value in the header of its weights, in ``config.json``, in the files of its tokenizer
or in its shard index; a directory, a pipe or a device in a file's place; a file that is cut off. ``swcheck locate`` runs on it
in a forked process of bounded time and memory. It may answer or refuse, in words; a traceback, another exit code, a control
character on the terminal, a file that is written or code that is run is a fault. With ``--of adapters`` it is an adapter on ``tiny`` that is damaged, and what loads it is the engine ``peft``, which has to be
installed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

from swcheck.loading.tiny import CHECKPOINT

Damage: TypeAlias = Callable[[Path], None]
"""Changes something in a copy of tiny."""

VALUES: Final[tuple[Any, ...]] = (
    None, True, -1, 0, 1, 10**9, 2**63, 10**400, 0.5, math.inf, math.nan, "", "x", "\x1b[31mred\x07", "../x", [], [7], {}, {"a": 7},
)  # fmt: skip
SECONDS: Final = 60
"""Seconds of the processor that a run may take; a usual one takes one."""

MEMORY: Final = 2**32
"""Bytes of address space that a run may take beyond what Python has when it starts."""


def _json(name: str, change: Callable[[Any], None]) -> Damage:
    def damage(folder: Path) -> None:
        value = json.loads((folder / name).read_text(encoding="utf-8"))
        change(value)
        (folder / name).write_text(json.dumps(value), encoding="utf-8")

    return damage


def _header(change: Callable[[Any], None], name: str = "model.safetensors") -> Damage:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        end = 8 + struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8:end])
        change(header)
        text = json.dumps(header).encode()
        (folder / name).write_bytes(struct.pack("<Q", len(text)) + text + data[end:])

    return damage


def _bytes(name: str, change: Callable[[bytes], bytes]) -> Damage:
    return lambda folder: _written(folder / name, change((folder / name).read_bytes()))


def _written(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _placed(name: str, make: Callable[[Path], object]) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return damage


def _set(*keys: Any, value: Any) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = value

    return change


def _renamed(old: str, new: str) -> Callable[[Any], None]:
    return lambda document: document.update({new: document.pop(old)})


TENSOR: Final = "model.layers.0.mlp.down_proj.weight"
FILES: Final = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")


def damages() -> Iterator[tuple[str, Damage]]:
    """Yield every damage with its name."""
    yield from _of_headers()
    yield from _of_files()
    yield from _of_fields()
    yield from _of_texts()
    yield from _of_indexes()


def _of_headers() -> Iterator[tuple[str, Damage]]:
    places: tuple[tuple[Any, ...], ...] = (
        (TENSOR, "dtype"), (TENSOR, "shape"), (TENSOR, "shape", 0), (TENSOR, "data_offsets"), (TENSOR, "data_offsets", 1),
        (TENSOR,), ("__metadata__",),
    )  # fmt: skip
    for place in places:
        for value in VALUES:
            yield f"header {place[1:] or place} = {value!r:.40}", _header(_set(*place, value=value))
    for name in ("\x1b]0;x\x07", "", "a\0b", "x" * 5000, "../../x", "=cmd()"):
        yield f"header name {name!r:.20}", _header(_renamed(TENSOR, name))
    for length in (0, 1, 2**31, 2**40, 2**63, 2**64 - 1):
        start = struct.pack("<Q", length)
        yield f"header length {length}", _bytes("model.safetensors", partial(_begun, start))


ADAPTER: Final = "adapter_config.json"
MORE: Final = (
    "megatron_config",
    "adapters",
    "eva_config",
    "corda_config",
    "layer_replication",
    "target_parameters",
    "alora_invocation_tokens",
)
"""Fields of other kinds of adapters, and of other versions of peft."""


def adapter_damages(config: Mapping[str, Any], weights: bytes) -> Iterator[tuple[str, Damage]]:
    """Yield every damage of an adapter's two files with its name."""
    for key in dict.fromkeys((*config, *MORE)):
        for value in VALUES:
            yield f"{ADAPTER} {key} = {value!r:.40}", _json(ADAPTER, _set(key, value=value))
    name = "adapter_model.safetensors"
    for share in (0.0, 0.001, 0.3, 0.999):
        yield f"{name} cut at {share}", _bytes(name, partial(_cut, share))
        yield f"{ADAPTER} cut at {share}", _bytes(ADAPTER, partial(_cut, share))
    header = json.loads(weights[8 : 8 + struct.unpack("<Q", weights[:8])[0]])
    first = next(key for key in header if key != "__metadata__")
    for other in (
        "\x1b]0;x\x07",
        "",
        "a\0b",
        "x" * 5000,
        "base_model.model.lm_head.lora_A.weight",
        first.replace("0", "9"),
    ):
        yield f"{name} tensor {other!r:.20}", _header(_renamed(first, other), name)
    for shape in ([1, 1], [2**20, 2**20], [4], []):
        yield f"{name} shape {shape}", _header(_set(first, "shape", value=shape), name)


def save_adapter(folder: Path) -> None:
    """Save an adapter of rank 4 on the super weight's matrices of tiny, as peft does."""
    from peft import LoraConfig, get_peft_model

    import swcheck

    model = get_peft_model(swcheck.load("tiny", device="cpu").model, LoraConfig(r=4, target_modules=["down_proj"]))
    model.save_pretrained(folder)


def _begun(start: bytes, data: bytes) -> bytes:
    return start + data[len(start) :]


def _cut(share: float, data: bytes) -> bytes:
    return data[: int(share * len(data))]


def _of_files() -> Iterator[tuple[str, Damage]]:
    for name in FILES:
        for share in (0.0, 0.001, 0.3, 0.999):
            yield f"{name} cut at {share}", _bytes(name, partial(_cut, share))
        yield f"{name} of other bytes", _bytes(name, lambda data: b"\xff\xfe" + data[::-1])
        yield f"{name} a directory", _placed(name, Path.mkdir)
        yield f"{name} a pipe", _placed(name, os.mkfifo)
        yield f"{name} a device", _placed(name, lambda path: path.symlink_to("/dev/zero"))
        yield f"{name} a loop", _placed(name, lambda path: path.symlink_to(path.name))
        yield f"{name} nested", _placed(name, lambda path: path.write_text("[" * 100_000))
        yield f"{name} of 64 GB", lambda folder, name=name: os.truncate(folder / name, 2**36)  # type: ignore[misc]


def _of_fields() -> Iterator[tuple[str, Damage]]:
    config, tokenizer = (
        json.loads((CHECKPOINT / name).read_text(encoding="utf-8")) for name in ("config.json", "tokenizer.json")
    )
    more = (
        "num_labels",
        "id2label",
        "rope_scaling",
        "quantization_config",
        "auto_map",
        "text_config",
        "layer_types",
        "is_encoder_decoder",
    )
    words = ("bos_token", "eos_token", "pad_token", "tokenizer_class", "model_max_length", "chat_template", "auto_map")
    places = {
        "config.json": [(key,) for key in (*config, *more)],
        "tokenizer.json": [*((key,) for key in tokenizer), *(("model", key) for key in tokenizer["model"])],
        "tokenizer_config.json": [(key,) for key in words],
    }
    for name, keys in places.items():
        for place in keys:
            for value in VALUES:
                yield f"{name} {'.'.join(place)} = {value!r:.40}", _json(name, _set(*place, value=value))


def _of_texts() -> Iterator[tuple[str, Damage]]:
    step = {"type": "Replace", "pattern": {"String": "e"}, "content": "e" * 9999}
    yield (
        "tokenizer.json that multiplies",
        _json("tokenizer.json", _set("normalizer", value={"type": "Sequence", "normalizers": [step] * 3})),
    )
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}"
    yield "a chat template without end", _json("tokenizer_config.json", _set("chat_template", value=endless))


def _of_indexes() -> Iterator[tuple[str, Damage]]:
    shards = (
        "../x.safetensors",
        "/etc/passwd",
        "",
        ".",
        "x" * 3000,
        "\x1b[2J.safetensors",
        "a\0b.safetensors",
        7,
        None,
        [FILES[0]],
    )
    for shard in shards:
        index = json.dumps({"metadata": {}, "weight_map": {TENSOR: shard}}).encode()
        yield f"shard {shard!r:.20}", _placed("model.safetensors.index.json", partial(_written, data=index))


def ended(damage: Damage, source: Path, run: Callable[[Path], int]) -> str:
    """Run something on a damaged copy of ``source``; return what is wrong with how it ended, nothing if it answered or refused."""
    with tempfile.TemporaryDirectory(prefix="attack-") as name, tempfile.TemporaryFile() as said:
        folder = Path(name, "model")
        shutil.copytree(source, folder)
        damage(folder)
        before = sorted(path.name for path in folder.iterdir())
        child = os.fork()
        if not child:
            os._exit(_bounded(lambda: run(folder), said.fileno()))
        _, status = os.waitpid(child, 0)
        said.seek(0)
        output = said.read().decode("utf-8", "replace")
        wrong = [] if status in {0, 2 << 8} else [f"ended with status {status}"]
        wrong += ["a traceback"] * ("Traceback" in output)
        wrong += ["control characters"] * any(not char.isprintable() and char != "\n" for char in output)
        wrong += ["other files"] * (sorted(path.name for path in folder.iterdir()) != before)
        wrong += ["refused without words"] * (status == 2 << 8 and "found:" not in output and "swcheck: " not in output)
        return f"{', '.join(wrong)}: {output[-1500:]}" if wrong else ""


def located(folder: Path) -> int:
    """Run ``swcheck locate``; return its exit code."""
    from swcheck.run.command_line.main import main

    return main(["locate", str(folder)])


def adapted(folder: Path) -> int:
    """Locate super weights in tiny with the adapter in ``folder``; return 2 for a refusal, as the command does."""
    import swcheck
    from swcheck.base.errors import SwcheckError

    try:
        model = swcheck.load(f"peft:{folder}", reference="tiny", device="cpu")
        swcheck.perplexity(model.model, swcheck.token_windows(model.tokenizer, model.text, count=1, length=32))
    except SwcheckError as error:
        sys.stderr.write(f"swcheck: {error}\n")
        return 2
    return 0


def _bounded(run: Callable[[], int], out: int) -> int:
    """Be the child: ``run`` with bounded time and memory, its words into ``out``; return its exit code."""
    code = 99
    os.environ["RUST_BACKTRACE"] = "0"
    size = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    signal.alarm(20 * SECONDS)
    os.dup2(out, 1)
    os.dup2(out, 2)
    try:
        code = run()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 98
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
    return code


def imported(run: Callable[[Path], int], source: Path) -> None:
    """Do it once with what is not damaged, so that what it imports is there before the forks."""
    with open(os.devnull, "w") as silence:  # noqa: PTH123
        child = os.dup(1)
        os.dup2(silence.fileno(), 1)
        if run(source):
            raise AssertionError(f"{source} is refused as it is")
        sys.stdout.flush()
        os.dup2(child, 1)
        os.close(child)


def main() -> int:
    """Run the damages; print each fault; return 1 if there is one."""
    from tools.reliability.page import write_rows

    parser = argparse.ArgumentParser(description="Damaged checkpoints.")
    parser.add_argument("--of", choices=("checkpoints", "adapters"), default="checkpoints", help="what is damaged")
    parser.add_argument("--most", type=int, help="draw so many, always the same ones")
    parser.add_argument("--only", default="", help="damages whose name has this in it")
    parser.add_argument("--write", action="store_true", help="write the row of docs/reliability.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, run, every = CHECKPOINT, located, damages()
        if options.of == "adapters":
            source, run = Path(folder, "adapter"), adapted
            save_adapter(source)
            config = json.loads((source / ADAPTER).read_text(encoding="utf-8"))
            every = adapter_damages(config, (source / "adapter_model.safetensors").read_bytes())
        chosen = [(name, damage) for name, damage in every if options.only in name]
        random.Random(0).shuffle(chosen)
        imported(run, source)
        faults = 0
        for name, damage in chosen[: options.most]:
            wrong = ended(damage, source, run)
            faults += bool(wrong)
            if wrong:
                sys.stdout.write(f"{name}: {wrong}\n\n")
                sys.stdout.flush()
    count = len(chosen[: options.most])
    rows = [(f"damaged {options.of}, each in a run of its own", f"{count:,} of {len(chosen):,}",
             f"{faults} ended otherwise than in an answer or a refusal in words")]  # fmt: skip
    arguments = f"--of {options.of}" * (options.of != "checkpoints") + f" --most {options.most}" * bool(options.most)
    if options.write:
        write_rows("attack", rows, arguments.strip())
    else:
        sys.stdout.write(" | ".join(rows[0]) + "\n")
    return int(bool(faults))


if __name__ == "__main__":
    raise SystemExit(main())
