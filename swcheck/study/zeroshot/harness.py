"""Zero-shot accuracy through lm-evaluation-harness: its tasks, prompts and metrics, on a model that is in memory.

Any of its tasks can be named if their data is in the local cache; nothing is downloaded. Two tasks in its format are
made from the embedded text and need no network: ``swcheck_cloze`` (which of four pieces comes next, scored by mutual
information; guessing gets a quarter) and ``swcheck_lastword`` (in the form of LAMBADA; guessing gets nothing).
``write_tasks`` writes them where ``lm_eval --include_path`` finds them, and ``lm_eval`` then gives the same numbers.

The harness is an optional extra. Only this module imports it.
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
from swcheck.lens.architecture.storage import evaluating
from swcheck.loading.tiny import HELDOUT
from swcheck.study.zeroshot import cloze, last_word

if TYPE_CHECKING:
    from torch import nn

PAPER_TASKS: Final = ("arc_challenge", "arc_easy", "hellaswag", "lambada_openai", "piqa", "sciq", "winogrande")
"""The tasks of the paper's table 1, in its order. Its numbers are the metric ``acc``."""

OFFLINE_TASKS: Final = ("swcheck_cloze", "swcheck_lastword")
"""The tasks that are made from the embedded text."""

OFFLINE_ITEMS: Final = 200
"""How many items of the offline tasks a study uses per setting: a standard error of three points, in seconds."""

GUESSING: Final = {"swcheck_cloze": cloze.GUESSING, "swcheck_lastword": 0.0}

HEADLINES: Final = ("acc_mutual_info", "acc", "exact_match", "acc_norm")
"""Metrics that count right answers, the preferred first. A task that defines mutual information is meant for it."""

BATCH: Final = 16
INSTALL: Final = "pip install 'swcheck[zero-shot]'"

_CLOZE_YAML: Final = """\
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

_LASTWORD_YAML: Final = """\
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
        """Return its fields as plain values."""
        return asdict(self)


def expand_task_sets(tasks: Sequence[str] | None) -> tuple[str, ...]:
    """Return task names with sets expanded: ``paper`` is its seven tasks, ``offline`` (and None) the embedded ones."""
    sets = {"paper": PAPER_TASKS, "offline": OFFLINE_TASKS}
    requested = ("offline",) if tasks is None else tuple(tasks)
    return tuple(dict.fromkeys(one for task in requested for one in sets.get(task, (task,))))


def missing_packages() -> str | None:
    """Return which packages of the extra are not installed, or None if all are. Nothing is imported to find out."""
    packages = [name for name in ("lm_eval", "accelerate") if find_spec(name) is None]
    return f"{' and '.join(packages)} not installed" if packages else None


def check_installed() -> None:
    """Raise ``ExtraError`` unless the extra is installed. Call it before a model is loaded."""
    reason = missing_packages()
    if reason is not None:
        raise ExtraError("zero-shot accuracy", reason, INSTALL)


def accuracy(
    model: nn.Module,
    tokenizer: Any,
    tasks: Sequence[str] = OFFLINE_TASKS,
    *,
    limit: int | None = None,
    batch: int = BATCH,
    include: Path | None = None,
) -> tuple[Score, ...]:
    """Return every number that the harness measures of ``model`` on ``tasks``, in the order of the tasks.

    ``tasks`` are names of the harness's tasks, tags and groups, or of ``OFFLINE_TASKS``; ``include`` is a folder with more of
    them; ``limit`` uses only the first items of each. BOS is put where the tokenizer puts it. Model, tokenizer and
    random number generators are left as they were. ``headlines`` picks one number per task. Raises ``ExtraError``
    without the extra, ``OptionError`` for a task that is unknown or whose data is not cached.
    """
    _check_arguments(model, tokenizer, tasks, limit, batch)
    with tempfile.TemporaryDirectory(prefix="swcheck-") as folder, captured_output(), evaluating(model), _isolated():
        write_tasks(Path(folder))
        manager = _task_manager(tasks, [Path(folder), *([] if include is None else [include])])
        harness_model = _harness_model(model, tokenizer, batch)
        from lm_eval import simple_evaluate

        results = simple_evaluate(
            model=harness_model, tasks=list(dict.fromkeys(tasks)), task_manager=manager, limit=limit, log_samples=False
        )
    return scores_of(results)


def headlines(scores: Sequence[Score]) -> tuple[Score, ...]:
    """Return per task the one score that counts right answers. Raises ``OptionError`` for a task without one."""
    chosen = []
    for task in dict.fromkeys(score.task for score in scores):
        of_task = {score.metric: score for score in reversed(scores) if score.task == task}
        headline = next((of_task[metric] for metric in HEADLINES if metric in of_task), None)
        if headline is None:
            found = f"it is measured by {', '.join(sorted(of_task))}"
            raise OptionError(f"the accuracy on {task}", found, f"a task with one of {', '.join(HEADLINES)}")
        chosen.append(headline)
    return tuple(chosen)


def average(scores: Sequence[Score]) -> float:
    """Return the mean over tasks of their headline scores; each task counts once, as in the paper."""
    task_headlines = headlines(scores)
    if not task_headlines:
        raise OptionError("an average accuracy", "no task", f"name some: {', '.join(OFFLINE_TASKS)}")
    return sum(score.value for score in task_headlines) / len(task_headlines)


def scores_of(results: Mapping[str, Any]) -> tuple[Score, ...]:
    """Return the scores in ``results``: what the harness returns, or writes with ``--output_path``."""
    counts, scores = results.get("n-samples", {}), []
    for task, metrics in results["results"].items():
        for key, value in metrics.items():
            metric, comma, filter_name = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            error = metrics.get(f"{metric}_stderr,{filter_name}")
            items = counts[task]["effective"] if task in counts else metrics.get("sample_len", 0)
            scores.append(
                Score(task, metric, float(value), float(error) if isinstance(error, (int, float)) else None, int(items))
            )
    return tuple(scores)


def write_tasks(folder: Path, text: str | None = None, count: int = 400) -> None:
    """Write the offline tasks to ``folder``: YAML in the harness's format, and the items as JSON lines.

    ``text`` None is the embedded held-out source. The harness moves blanks from the end of a context to the front of
    the continuation, but not when it scores a choice on its own. Here the blanks stand in the choices from the start,
    so that both scores of the mutual information are of the same string.
    """
    text = HELDOUT.read_text(encoding="utf-8") if text is None else text
    check_writable(folder / "swcheck_cloze.yaml")
    folder.mkdir(parents=True, exist_ok=True)
    tasks: dict[str, tuple[str, list[dict[str, Any]]]] = {
        "swcheck_cloze": (_CLOZE_YAML, [asdict(blanks_moved_to_choices(item)) for item in cloze.items(text, count)]),
        "swcheck_lastword": (_LASTWORD_YAML, [asdict(item) for item in last_word.items(text, count)]),
    }
    for name, (template, items) in tasks.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
        yaml = template.format(data=json.dumps(str(data.resolve())), cache=json.dumps(str(folder.resolve() / "cache")))
        (folder / f"{name}.yaml").write_text(yaml, encoding="utf-8")


def blanks_moved_to_choices(item: cloze.Item) -> cloze.Item:
    """Return the same question with the blanks at the end of its context moved to the front of each choice."""
    context = item.context.rstrip()
    blanks = item.context[len(context) :]
    return cloze.Item(context, tuple(blanks + choice for choice in item.choices), item.answer)


def _check_arguments(model: nn.Module, tokenizer: Any, tasks: Sequence[str], limit: int | None, batch: int) -> None:
    check_installed()
    if isinstance(tasks, str) or not tasks:
        raise OptionError("zero-shot tasks", repr(tasks), f"a list of names: {', '.join(OFFLINE_TASKS)}")
    if tokenizer is None or getattr(model, "config", None) is None:
        missing_part = "no tokenizer" if tokenizer is None else "a bare module without a config"
        raise OptionError(
            "zero-shot accuracy", missing_part, "a transformers model and its tokenizer: swcheck.load('tiny')"
        )
    for name, value in (("limit", limit), ("batch", batch)):
        if value is not None and value < 1:
            raise OptionError(f"{name} = {value}", "nothing to ask", "1 or more")


@contextmanager
def _isolated() -> Iterator[None]:
    """Forbid downloads within the block, and afterwards restore the random number generators that the harness seeds."""
    import datasets
    import huggingface_hub
    import numpy as np

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - what the harness seeds
    settings = (huggingface_hub.constants, "HF_HUB_OFFLINE"), (datasets.config, "HF_HUB_OFFLINE")
    previous = [getattr(module, name) for module, name in settings]
    for module, name in settings:
        setattr(module, name, True)
    try:
        yield
    finally:
        for (module, name), value in zip(settings, previous, strict=True):
            setattr(module, name, value)
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


def _task_manager(tasks: Sequence[str], folders: Sequence[Path]) -> Any:
    """Return the harness's index of tasks; its own ten thousand or so files are read only if one is asked for."""
    from lm_eval.tasks import TaskManager

    class Manager(TaskManager):  # type: ignore[misc]
        def load(self, task_list: Any) -> Any:
            try:
                return super().load(task_list)
            except (OSError, ValueError) as error:
                raise _data_not_cached(tasks, error) from error

    manager = Manager(include_path=[str(folder) for folder in folders], include_defaults=False)
    if set(tasks) <= set(manager.all_tasks):
        return manager
    manager = Manager(include_path=[str(folder) for folder in folders])
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        close_names = get_close_matches(unknown[0], manager.all_tasks, n=3)
        found = "lm-evaluation-harness knows no such task" + (
            f"; the closest: {', '.join(close_names)}" if close_names else ""
        )
        raise OptionError(f"zero-shot task {unknown[0]!r}", found, f"`lm_eval ls tasks`, or {', '.join(OFFLINE_TASKS)}")
    return manager


def _data_not_cached(tasks: Sequence[str], error: Exception) -> OptionError:
    harness_tasks = [task for task in tasks if task not in OFFLINE_TASKS]
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return OptionError(
        f"the data of {', '.join(harness_tasks)}",
        f"not in the local cache, and nothing is downloaded here ({reason})",
        f"fetch it where there is a network: lm_eval --model dummy --limit 1 --tasks {','.join(harness_tasks)}",
    )


def _harness_model(model: nn.Module, tokenizer: Any, batch: int) -> Any:
    """Return the model as the harness wants it. The tokenizer is copied, because the harness gives it a pad token."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch)
