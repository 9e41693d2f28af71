"""Whole runs in a hostile system: ``python -m tools.reliability.faults``.

Each is a real ``pytest`` or ``swcheck`` in a process: a disk that is full when a report is written, less memory than the model
needs, a worker of xdist that is killed, a baseline that is a folder, a place that cannot be written to, no network with and
without a cache, weights that go away while they are read. A run is as it should be if it ends with the code that is
said here, in words, without a traceback, and leaves nothing half.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swcheck.loading.tiny import CHECKPOINT

CHECK: Final = ("--model=tiny", "-k", "test_model and perplexity", "--swcheck-tier=smoke")
LITTLE_MEMORY: Final = "less memory than the model needs"
KILLED: Final = """
import os
from pathlib import Path

def test_killed(swcheck_model):
    if not Path("killed").exists():
        Path("killed").touch()
        os.kill(os.getpid(), 9)

def test_other(swcheck_model):
    assert swcheck_model
"""


WEIGHTS: Final = """
import os
import swcheck

def test_gone():
    model = swcheck.load("model", device="cpu", dtype="bfloat16", stream={stream})
    {fault}
    swcheck.assert_super_weights_located(model)
"""
"""A test whose checkpoint, which is mapped, has something done to it between loading and measuring."""


CUT: Final = "os.truncate('model/model.safetensors', 4096)"


@dataclass(frozen=True)
class Trial:
    """One run: its words, the codes that it may end with, what it says, what happens to it, and files made before.

    ``model`` is a folder that ``tiny`` is copied to. Words that begin with ``swcheck`` are that command, others pytest's.
    ``told`` says how the end is told.
    """

    name: str
    words: tuple[str, ...]
    codes: tuple[int, ...]
    said: str
    limit: Callable[[], None] | None = None
    files: tuple[tuple[str, str], ...] = ()
    model: str = ""
    told: str = "in words"


def _full_disk() -> None:
    """No file may be longer than 20 bytes: what the system says then is not 'no space', but as sudden."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, resource.RLIM_INFINITY))


def _memory(size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))


def trials(large: Path, need: int) -> list[Trial]:
    """Return the runs; ``large`` is a model that does not fit into ``need`` bytes of address space with all that is imported."""
    written = {"json": "out.json", "markdown": "out.md", "html": "out.html"}
    found = [
        Trial(f"disk full when the {kind} is written", (*CHECK, f"--swcheck-{kind}={name}"), (4,), "cannot be written", _full_disk, ((name, "old"),))
        for kind, name in written.items()
    ]  # fmt: skip
    update = ("--swcheck-baseline=kept", "--swcheck-update", "--swcheck-accept")
    return [
        *found,
        Trial("disk full when a baseline is written", (*CHECK, *update), (4,), "cannot be written", _full_disk),
        Trial(LITTLE_MEMORY, (f"--model={large}", "-k", "perplexity"), (1, 4), "memory", _memory(need)),
        Trial(
            "a worker of xdist is killed",
            ("-n", "2", "test_own.py", "--model=tiny", "--swcheck-json=out.json"),
            (1,), "crashed while running", None, (("test_own.py", KILLED),),
        ),
        Trial("disk full when a study writes", ("swcheck", "study", "tiny", "scaling", "--out=."), (2,), "swcheck: a temporary file: File too large", _full_disk),
        Trial("a report in a place that nobody can write to", (*CHECK, "--swcheck-json=/proc/swcheck/out.json"), (4,), "write /proc/swcheck/out.json"),
        Trial("no network, and the model in the cache", ("--model=nobody/kept", *CHECK[1:]), (0,), "passed", None,
              (("hub/models--nobody--kept/refs/main", "0" * 40),), f"hub/models--nobody--kept/snapshots/{'0' * 40}"),
        Trial("weights that are removed while they are read", ("test_own.py",), (0,), "passed", None,
              (("test_own.py", WEIGHTS.format(stream=True, fault="os.remove('model/model.safetensors')")),), "model"),
        Trial("weights that are cut off while they are read", ("test_own.py",), (1,), "it was changed: 4,096 bytes", None,
              (("test_own.py", WEIGHTS.format(stream=True, fault=CUT)),), "model"),
        Trial("weights of a model that is loaded whole that are cut off between two passes", ("test_own.py",), (1,), "it was changed: 4,096 bytes",
              None, (("test_own.py", WEIGHTS.format(stream=False, fault=CUT)),), "model"),
        Trial("weights of a model that is loaded whole that are cut off within a pass", ("test_own.py",), (-signal.SIGBUS,), "Bus error", None,
              (("test_own.py", WEIGHTS.format(stream=False, fault=f"model.model.model.layers[0].register_forward_hook(lambda *_: {CUT})")),), "model",
              "in no words of swcheck"),
        Trial("no network and no cache", ("--model=nobody/nothing",), (4,), "not in the local cache|cannot be reached|downloads are forbidden"),
        Trial("a baseline that is a folder", (*CHECK[:3], "--candidate=rtn:bits=8", "--swcheck-baseline=kept"), (4,), "kept", None,
              (("kept/tiny.json/inside", ""),)),
    ]  # fmt: skip


def run(trial: Trial) -> str:
    """Run a trial in an empty folder; return what is wrong with how it ended, nothing if it is as it should be."""
    import re

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path, content in trial.files:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(content, encoding="utf-8")
        if trial.model:
            shutil.copytree(CHECKPOINT, folder / trial.model)
        words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *trial.words]
        if trial.words[0] == "swcheck":
            words = [str(Path(sys.executable).with_name("swcheck")), *trial.words[1:]]
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": name,
            "SWCHECK_CACHE_DIR": os.devnull,
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        done = subprocess.run(  # noqa: S603 - a run of our own, limited in the child alone
            words, cwd=folder, capture_output=True, text=True, check=False, env=environment, preexec_fn=trial.limit
        )
        output = done.stdout + done.stderr
        wrong = [] if done.returncode in trial.codes else [f"code {done.returncode}"]
        wrong += [word for word in ("Traceback", "INTERNALERROR") if word in output]
        wrong += [] if re.search(trial.said, output) else [f"it does not say {trial.said}"]
        wrong += [f"left {file.name}" for file in folder.rglob("*.part")]
        wrong += [f"{path} changed" for path, content in trial.files
                  if content == "old" and (folder / path).read_text(encoding="utf-8") != content]  # fmt: skip
        if wrong:
            sys.stderr.write(f"--- {trial.name}\n{output[-3000:]}\n")
        return ", ".join(wrong)


def large_model(folder: Path) -> tuple[Path, int]:
    """Save a model of 80 MB; return its folder, and so much address space as a run of tiny takes at its peak, and a bit more."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from swcheck import load

    sizes = {"vocab_size": 1024, "hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 2}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=8, num_key_value_heads=2))
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.zero_()
    model.save_pretrained(folder)
    load("tiny").tokenizer.save_pretrained(folder)
    code = "import pytest, re; pytest.main(['-q', '-p', 'no:cacheprovider', '--model=tiny', '-k', 'test_model and perplexity'])\n"
    code += "print('peak', re.search(r'VmPeak:\\s*(\\d+)', open('/proc/self/status').read())[1])"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)  # noqa: S603
    return folder, int(done.stdout.rpartition("peak ")[2]) * 1024 + 2**24


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the trials; print what is wrong; return 1 if something is."""
    from tools.reliability.page import write_rows

    parser = argparse.ArgumentParser(description="Runs in a hostile system.")
    parser.add_argument("--only", default="", help="trials whose name has this in it")
    parser.add_argument("--write", action="store_true", help="write the rows of docs/reliability.md")
    options = parser.parse_args(arguments)
    rows, wrong = [], 0
    with tempfile.TemporaryDirectory() as name:
        needs_large = options.only in LITTLE_MEMORY
        large, need = large_model(Path(name, "large")) if needs_large else (Path(name), 0)
        for trial in trials(large, need):
            if options.only in trial.name:
                found = run(trial)
                wrong += bool(found)
                sys.stdout.write(f"{trial.name}: {found or 'as it should be'}\n")
                sys.stdout.flush()
                ended = " or ".join(signal.Signals(-code).name if code < 0 else str(code) for code in trial.codes)
                rows.append((trial.name, "one run", found or f"ends with {ended}, {trial.told}, nothing half"))
    if options.write:
        write_rows("faults", rows, f"--only '{options.only}'" if options.only else "")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
