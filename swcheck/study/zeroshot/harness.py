"""Zero-shot accuracy through lm-evaluation-harness: its tasks, prompts and metrics, on a model that is in memory.

Any of its tasks by name, where its data is in the local cache; nothing is downloaded. Two tasks of its own format are
made from the embedded text and need no network at all: ``swcheck_cloze`` (which of four pieces comes next, by mutual
information, a quarter by guessing) and ``swcheck_lastword`` (of LAMBADA's form, nothing by guessing). ``write_tasks``
puts them where ``lm_eval --include_path`` finds them, and its numbers are those of this room.

The harness is an extra, and this is the only room that imports it.
"""

from __future__ import annotations

import copy
import json
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from swcheck.base.errors import ExtraError, OptionError
from swcheck.base.isolation import captured_output
from swcheck.base.output_files import check_writable
from swcheck.lens.likelihood import evaluating
from swcheck.loading.tiny import HELDOUT
from swcheck.study.zeroshot import cloze, last_word

if TYPE_CHECKING:
    from torch import nn

PAPER: Final = ("arc_challenge", "arc_easy", "hellaswag", "lambada_openai", "piqa", "sciq", "winogrande")
"""The tasks of the paper's table 1, in its order; its figures are the metric ``acc``."""

OFFLINE: Final = ("swcheck_cloze", "swcheck_lastword")
"""The tasks that are made from the embedded text."""

ITEMS: Final = 200
"""So many items of the offline tasks a study asks at every setting: an error of three points, in a few seconds."""

GUESSING: Final = {"swcheck_cloze": cloze.GUESSING, "swcheck_lastword": 0.0}

HEADLINES: Final = ("acc_mutual_info", "acc", "exact_match", "acc_norm")
"""What counts right answers, first choice first. A task that defines mutual information means to be read by it."""

BATCH: Final = 16
INSTALL: Final = "pip install 'swcheck[zero-shot]'"

_CLOZE: Final = """\
task: swcheck_cloze
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
  cache_dir: {cache}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: ""
metric_list:
  - metric: acc_mutual_info
    aggregation: mean
    higher_is_better: true
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""

_LASTWORD: Final = """\
task: swcheck_lastword
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
  cache_dir: {cache}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{context}}}}"
doc_to_target: "{{{{' ' + word}}}}"
target_delimiter: ""
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""


@dataclass(frozen=True)
class Score:
    """One number of one task: the harness's name of the metric, its mean over ``items``, its standard error if any."""

    task: str
    metric: str
    value: float
    stderr: float | None
    items: int

    def as_json(self) -> dict[str, Any]:
        """Its fields as plain values."""
        return asdict(self)


def named(tasks: Sequence[str] | None) -> tuple[str, ...]:
    """The tasks that are meant: ``paper`` stands for its seven, ``offline`` and None for those of the embedded text."""
    sets = {"paper": PAPER, "offline": OFFLINE}
    asked = ("offline",) if tasks is None else tuple(tasks)
    return tuple(dict.fromkeys(one for task in asked for one in sets.get(task, (task,))))


def missing() -> str | None:
    """Why accuracy cannot be measured here, in words; None where it can. Nothing is imported to find out."""
    absent = [name for name in ("lm_eval", "accelerate") if find_spec(name) is None]
    return f"{' and '.join(absent)} not installed" if absent else None


def check_installed() -> None:
    """Raise ``ExtraError`` where the extra is not installed, before a model is loaded for nothing."""
    absent = missing()
    if absent is not None:
        raise ExtraError("zero-shot accuracy", absent, INSTALL)


def accuracy(
    model: nn.Module,
    tokenizer: Any,
    tasks: Sequence[str] = OFFLINE,
    *,
    limit: int | None = None,
    batch: int = BATCH,
    include: Path | None = None,
) -> tuple[Score, ...]:
    """Every number that the harness takes of ``model`` on ``tasks``, in the order of the tasks.

    ``tasks`` are names of the harness's tasks, tags and groups, or of ``OFFLINE``; ``include`` is a folder with more of
    them; ``limit`` takes the first so many items of each. BOS is put where the tokenizer puts it. Model and tokenizer
    are left as they are, and so are the generators of random numbers. ``headlines`` picks one number per task.
    Raises ``ExtraError`` without the extra, ``OptionError`` for a task that is unknown or whose data is not here.
    """
    _check(model, tokenizer, tasks, limit, batch)
    with tempfile.TemporaryDirectory(prefix="swcheck-") as folder, captured_output(), evaluating(model), _hermetic():
        write_tasks(Path(folder))
        manager = _manager(tasks, [Path(folder), *([] if include is None else [include])])
        wrapped = _wrapped(model, tokenizer, batch)
        from lm_eval import simple_evaluate

        answer = simple_evaluate(
            model=wrapped, tasks=list(dict.fromkeys(tasks)), task_manager=manager, limit=limit, log_samples=False
        )
    return scores_of(answer)


def headlines(scores: Sequence[Score]) -> tuple[Score, ...]:
    """Per task the one score that counts right answers; raises ``OptionError`` for a task that has none."""
    chosen = []
    for task in dict.fromkeys(score.task for score in scores):
        of_task = {score.metric: score for score in reversed(scores) if score.task == task}
        best = next((of_task[metric] for metric in HEADLINES if metric in of_task), None)
        if best is None:
            found = f"it is measured by {', '.join(sorted(of_task))}"
            raise OptionError(f"the accuracy on {task}", found, f"a task with one of {', '.join(HEADLINES)}")
        chosen.append(best)
    return tuple(chosen)


def average(scores: Sequence[Score]) -> float:
    """The mean over tasks of their headlines, each task counting once, as the paper averages."""
    chosen = headlines(scores)
    if not chosen:
        raise OptionError("an average accuracy", "no task", f"name some: {', '.join(OFFLINE)}")
    return sum(score.value for score in chosen) / len(chosen)


def scores_of(answer: Mapping[str, Any]) -> tuple[Score, ...]:
    """The scores in what the harness returns, or writes with ``--output_path``."""
    counts, found = answer.get("n-samples", {}), []
    for task, row in answer["results"].items():
        for key, value in row.items():
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            error = row.get(f"{metric}_stderr,{filtered}")
            items = counts[task]["effective"] if task in counts else row.get("sample_len", 0)
            found.append(
                Score(task, metric, float(value), float(error) if isinstance(error, (int, float)) else None, int(items))
            )
    return tuple(found)


def write_tasks(folder: Path, text: str | None = None, count: int = 400) -> None:
    """Write the offline tasks to ``folder``: YAML in the harness's format and the items as JSON lines.

    ``text`` None is the embedded held-out source. The harness moves blanks from the end of a context to the front of
    what follows, but not where it scores a choice on its own; here they stand in the choices from the start, so that
    both scores of the mutual information are of one string.
    """
    text = HELDOUT.read_text(encoding="utf-8") if text is None else text
    check_writable(folder / "swcheck_cloze.yaml")
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, tuple[str, list[dict[str, Any]]]] = {
        "swcheck_cloze": (_CLOZE, [asdict(unblanked(item)) for item in cloze.items(text, count)]),
        "swcheck_lastword": (_LASTWORD, [asdict(item) for item in last_word.items(text, count)]),
    }
    for name, (task, items) in rows.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
        filled = task.format(data=json.dumps(str(data.resolve())), cache=json.dumps(str(folder.resolve() / "cache")))
        (folder / f"{name}.yaml").write_text(filled, encoding="utf-8")


def unblanked(item: cloze.Item) -> cloze.Item:
    """The same question with the blanks at the end of its context moved to the front of each choice."""
    context = item.context.rstrip()
    blanks = item.context[len(context) :]
    return cloze.Item(context, tuple(blanks + choice for choice in item.choices), item.answer)


def _check(model: nn.Module, tokenizer: Any, tasks: Sequence[str], limit: int | None, batch: int) -> None:
    check_installed()
    if isinstance(tasks, str) or not tasks:
        raise OptionError("zero-shot tasks", repr(tasks), f"a list of names: {', '.join(OFFLINE)}")
    if tokenizer is None or getattr(model, "config", None) is None:
        lacking = "no tokenizer" if tokenizer is None else "a bare module without a config"
        raise OptionError("zero-shot accuracy", lacking, "a transformers model and its tokenizer: swcheck.load('tiny')")
    for name, value in (("limit", limit), ("batch", batch)):
        if value is not None and value < 1:
            raise OptionError(f"{name} = {value}", "nothing to ask", "1 or more")


@contextmanager
def _hermetic() -> Iterator[None]:
    """No download, and random numbers go on afterwards as if the harness had not seeded them."""
    import datasets
    import huggingface_hub
    import numpy as np

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - what the harness seeds
    places = (huggingface_hub.constants, "HF_HUB_OFFLINE"), (datasets.config, "HF_HUB_OFFLINE")
    before = [getattr(module, name) for module, name in places]
    for module, name in places:
        setattr(module, name, True)
    try:
        yield
    finally:
        for (module, name), value in zip(places, before, strict=True):
            setattr(module, name, value)
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


def _manager(tasks: Sequence[str], folders: Sequence[Path]) -> Any:
    """The harness's index of tasks. Its own, some ten thousand files, are read only where one of them is asked for."""
    from lm_eval.tasks import TaskManager

    class Manager(TaskManager):  # type: ignore[misc]
        def load(self, task_list: Any) -> Any:
            try:
                return super().load(task_list)
            except (OSError, ValueError) as error:
                raise _not_here(tasks, error) from error

    manager = Manager(include_path=[str(folder) for folder in folders], include_defaults=False)
    if set(tasks) <= set(manager.all_tasks):
        return manager
    manager = Manager(include_path=[str(folder) for folder in folders])
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        close = get_close_matches(unknown[0], manager.all_tasks, n=3)
        found = "lm-evaluation-harness knows no such task" + (f"; the closest: {', '.join(close)}" if close else "")
        raise OptionError(f"zero-shot task {unknown[0]!r}", found, f"`lm_eval ls tasks`, or {', '.join(OFFLINE)}")
    return manager


def _not_here(tasks: Sequence[str], error: Exception) -> OptionError:
    named = [task for task in tasks if task not in OFFLINE]
    words = (str(error).strip() or type(error).__name__).splitlines()[0]
    return OptionError(
        f"the data of {', '.join(named)}",
        f"not in the local cache, and nothing is downloaded here ({words})",
        f"fetch it where there is a network: lm_eval --model dummy --limit 1 --tasks {','.join(named)}",
    )


def _wrapped(model: nn.Module, tokenizer: Any, batch: int) -> Any:
    """The model as the harness wants it; the tokenizer is a copy, since the harness gives it a pad token."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch)
