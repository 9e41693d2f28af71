"""Declares the options, reads their values from four places, and writes them out again as words of a command line.

An option is ``--swcheck-NAME`` on the command line, ``SWCHECK_NAME`` in the environment, ``swcheck_NAME`` in the ini-file
and ``NAME`` in the table ``[tool.swcheck]`` of ``pyproject.toml``, in this order of precedence. ``--model`` and ``--candidate`` are aliases. They are added late: only if they
are used on the command line, and only if no other plugin has registered them. Pytest is not imported at run time.
Values are checked in ``settings``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from swcheck.base.errors import OptionError

if TYPE_CHECKING:
    import pytest

    from swcheck.run.settings import Settings

YES: Final = ("1", "true", "yes", "on")
NO: Final = ("0", "false", "no", "off")
REPEATABLE: Final = ("list", "table")
REPORTS: Final = ("json", "markdown", "html")
INI_FILES: Final = (
    "pytest.toml", ".pytest.toml", "pytest.ini", ".pytest.ini", "pyproject.toml", "tox.ini", "setup.cfg",
)  # fmt: skip
INI_SECTIONS: Final = ("[tool.pytest", "[pytest]", "[tool:pytest]")


@dataclass(frozen=True)
class Option:
    """One option.

    ``kind`` is ``value``, ``list``, ``table`` or ``flag``. A list is taken from the first place that gives one; the
    entries of a table are collected from all places. ``path`` says whether a value is a file path, relative to the
    ini-file if it is given there: ``no``, ``yes``, or ``perhaps``, where it is one only if such a file exists.
    ``words`` is the help text.
    """

    name: str
    kind: str
    metavar: str | None
    words: str
    path: str = "no"

    @property
    def dest(self) -> str:
        return f"swcheck_{self.name}"

    @property
    def flag(self) -> str:
        return f"--swcheck-{self.name.replace('_', '-')}"

    @property
    def alias(self) -> str:
        return f"--{self.name}"

    @property
    def variable(self) -> str:
        return f"SWCHECK_{self.name.upper()}"


MODEL: Final = Option(
    "model",
    "list",
    "SPEC",
    "short: --model. The model to test: tiny, a known name, a hub id or a directory; may be repeated",
    "perhaps",
)
CANDIDATE: Final = Option(
    "candidate",
    "list",
    "SPEC",
    "short: --candidate. What is about to be released: a directory, a hub id or ENGINE:SCHEME; may be repeated",
    "perhaps",
)
OPTIONS: Final = (
    MODEL,
    CANDIDATE,
    Option("device", "value", "NAME", "where the models run; an accelerator if there is one"),
    Option("device_map", "value", "NAME", "spread a model over devices and main memory: auto, by accelerate"),
    Option("tensor_parallel", "flag", None, "share each model among the processes that torchrun started"),
    Option(
        "stream",
        "flag",
        None,
        "read weights from the disk when they are used; by itself for a model larger than memory",
    ),
    Option("dtype", "value", "NAME", "float32, bfloat16 or float16; the checkpoint's own if left out"),
    Option("text", "value", "FILE", "UTF-8 text that perplexity is measured on; a built-in one if left out", "yes"),
    Option(
        "tier", "value", "NAME", "how much is measured: smoke, standard or full; smoke on a CPU above 1 B parameters"
    ),
    Option(
        "limit",
        "table",
        "[MODEL:]NAME=VALUE",
        "another limit, as perplexity=1.03 or activation=0.8..1.5; of one model or candidate: torchao:*:kl=0.02",
        "perhaps",
    ),
    Option(
        "kind",
        "value",
        "NAME",
        "what was done to the candidate: quantized, finetuned, merged, pruned, distilled; auto looks",
    ),
    Option(
        "layers", "flag", None, "rank the candidate's layers by what each costs: which to spare next; also if green"
    ),
    Option("in_torch", "flag", None, "score what llama.cpp runs in torch too: what its kernels add; also if green"),
    Option("cache_window", "value", "N", "tell what a cache of N tokens costs, with the first tokens kept and without"),
    Option("shapes", "flag", None, "score other lengths, chunks, batches and caches of torch's own kernels too"),
    Option("json", "value", "FILE", "write the verdicts to this file", "yes"),
    Option("markdown", "value", "FILE", "write the verdicts as Markdown, as for the summary of a CI job", "yes"),
    Option("html", "value", "FILE", "write the verdicts as one page of HTML", "yes"),
    Option("no_step_summary", "flag", None, "neither append to GITHUB_STEP_SUMMARY nor print ::error annotations"),
    Option("baseline", "value", "DIR", "a reference's measurements, read from here instead of loading it", "yes"),
    Option("no_cache", "flag", None, "measure the reference anew, and keep nothing of it for the next run"),
    Option("update", "flag", None, "write the baselines anew; the run still fails, for they want a review"),
    Option("accept", "flag", None, "with update: the run passes"),
    Option("require", "flag", None, "the run fails if no check judged the candidate, or the model if there is none"),
    Option("offline", "flag", None, "never download, as HF_HUB_OFFLINE=1"),
    Option("trust_remote_code", "flag", None, "run the Python that a checkpoint brings; refused otherwise"),
    Option("allow_none", "flag", None, "let a model pass in which no super weight is found"),
)


def add(parser: pytest.Parser) -> None:
    """Register every option with pytest, for the command line and for the ini-file."""
    group = parser.getgroup("swcheck", "swcheck: super weights of language models")
    for option in OPTIONS:
        _add_option(group, option, option.flag, f"{option.words} (ini: {option.dest}, environment: {option.variable})")
        if option.kind in REPEATABLE:
            parser.addini(option.dest, option.words, type="args", default=[])
        elif option.kind == "flag":
            parser.addini(option.dest, option.words, type="bool", default=False)
        else:
            parser.addini(option.dest, option.words, type="string", default="")


def _add_option(group: Any, option: Option, flag: str, words: str) -> None:
    if option.kind == "flag":
        group.addoption(flag, dest=option.dest, action="store_true", default=None, help=words)
    else:
        action = "append" if option.kind in REPEATABLE else "store"
        group.addoption(flag, dest=option.dest, action=action, metavar=option.metavar, default=None, help=words)


def add_aliases(parser: pytest.Parser, arguments: Sequence[str]) -> list[Option]:
    """Register each alias that ``arguments`` use, and return the options whose alias another plugin has registered."""
    taken = []
    for option in (MODEL, CANDIDATE):
        if not any(part == option.alias or part.startswith(f"{option.alias}=") for part in arguments):
            continue
        if _is_registered(parser, option.alias):
            taken.append(option)
        else:
            _add_option(parser.getgroup("swcheck"), option, option.alias, f"the same as {option.flag}")
    return taken


def _is_registered(parser: pytest.Parser, flag: str) -> bool:
    """Return whether ``flag`` is registered, by parsing it: pytest has no query, and before 9 allows a second one."""
    try:
        return not parser.parse_known_and_unknown_args([f"{flag}=x"])[1]
    except (Exception, SystemExit):  # it is registered, and its owner refuses the value
        return True


def typed_flag(config: pytest.Config, option: Option) -> str:
    """Return the flag that a user of this run has to type for ``option``: its alias, unless another plugin has that."""
    nothing = object()
    value = config.getoption(option.alias, nothing)
    is_free = value is nothing or value is config.getoption(option.dest)
    return option.alias if is_free else option.flag


def read_values(config: pytest.Config) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the values of the options that were given, and where each was given: command line, environment or ini.

    Both are dicts by the name of the option. The value of a table is a dict of its entries by place; its place is the
    first one. Raises ``OptionError`` for a flag in the environment that is neither yes nor no.
    """

    def of_pytest(option: Option) -> tuple[Any, Any]:
        ini = config.getini(option.dest)
        return config.getoption(option.dest), _resolve_ini_paths(option, ini, config.inipath) if ini else None

    return _first_values(config.rootpath, of_pytest)


def values_beside_pytest(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the same for a command that is no run of pytest: from the environment, and the ``pyproject.toml`` of ``folder``."""
    return _first_values(folder, lambda _option: (None, None))


def _first_values(
    folder: Path, of_pytest: Callable[[Option], tuple[Any, Any]]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the values and where they are from; ``of_pytest`` gives those of the command line and of the ini-file."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    project = folder / "pyproject.toml"
    table = _project_table(project) if project.is_file() else {}
    for option in OPTIONS:
        (given, ini), variable = of_pytest(option), os.environ.get(option.variable)
        found = {
            "command line": given,
            "environment": _parse_variable(option, variable)
            if variable and (given is None or option.kind == "table")
            else None,
            "ini": ini,
            "pyproject": _resolve_ini_paths(option, table.get(option.name), project),
        }
        found = {place: value for place, value in found.items() if value is not None}
        if found:
            origin = next(iter(found))
            values[option.name], origins[option.name] = found if option.kind == "table" else found[origin], origin
    return values, origins


def _project_table(file: Path) -> dict[str, Any]:
    """Return the values of the table ``[tool.swcheck]`` of a ``pyproject.toml``, by option."""
    from swcheck.run.project_table import read_table  # not in a run without such a file

    return read_table(file, {option.name: option.kind for option in OPTIONS})


def _parse_variable(option: Option, text: str) -> Any:
    """Return the value of an environment variable's text; the entries of a list are separated by commas."""
    if option.kind in REPEATABLE:
        return [part.strip() for part in text.split(",")]
    if option.kind == "flag":
        if text.lower() not in (*YES, *NO):
            raise OptionError(option.variable, repr(text), f"{YES[0]} or {NO[0]}")
        return text.lower() in YES
    return text


def _resolve_ini_paths(option: Option, value: Any, ini: Path | None) -> Any:
    """Return a value of an ini-file with its paths, which are relative to that file, made absolute."""
    if option.path == "no" or ini is None or value is None:
        return value

    def resolve_entry(text: str) -> str:
        if option.kind == "table":  # only the model, before the last colon, may be a path
            model, colon, rest = text.rpartition(":")
            return f"{resolve(model)}{colon}{rest}"
        return resolve(text)

    def resolve(text: str) -> str:
        try:
            path = ini.parent / Path(text).expanduser()
        except (RuntimeError, ValueError):  # no such user, a NUL byte: refused where the option is used
            return text
        return str(path) if option.path == "yes" or (text and path.exists()) else text

    return [resolve_entry(text) for text in value] if option.kind in REPEATABLE else resolve_entry(value)


def describe_settings(settings: Settings) -> str:
    """Return one line with all option values of a run, each with the place where it was given."""
    from swcheck.run.limit_overrides import ORIGINS, unused_overrides

    names: dict[str, Any] = {"model": ", ".join(settings.models), "candidate": ", ".join(settings.candidates)}
    unused = unused_overrides(settings.overrides, settings.models, settings.candidates)
    parts = []
    for option in OPTIONS:
        if option.kind == "table" and option.name in settings.origins:
            for place in ORIGINS:
                limits = [str(one) for one in settings.overrides if one.origin == place and one not in unused]
                parts += [f"{option.name} {', '.join(limits)} ({place})"] if limits else []
        elif option.name in settings.origins:
            value = (
                "" if option.kind == "flag" else f" {names.get(option.name) or getattr(settings, option.name, None)}"
            )
            parts.append(f"{option.name.replace('_', ' ')}{value} ({settings.origins[option.name]})")
    return ", ".join(parts)


def repeat_arguments(
    settings: Settings, spec: str, candidates: Sequence[str] = (), taken: Sequence[Option] = ()
) -> list[str]:
    """Return the words of a command line that runs one model and these candidates again, with the options of this run.

    Report files are left out, and so are limits of other models. ``taken`` are the options whose short alias
    belongs to another plugin.
    """
    from swcheck.run.limit_overrides import winning_overrides

    values: Mapping[str, Any] = {"model": [spec], "candidate": list(candidates)}
    words = []
    for option in OPTIONS:
        if option.name not in settings.origins or option.name in REPORTS:
            continue
        flag = option.alias if option in {MODEL, CANDIDATE} and option not in taken else option.flag
        if option.kind == "table":
            rules = [winning_overrides(settings.overrides, spec, candidate) for candidate in (None, *candidates)]
            texts = dict.fromkeys(one.text for rule in rules for one in rule.values())
            words += [f"{flag}={text}" for text in texts]
        elif option.kind == "flag":
            words += [flag] * bool(getattr(settings, option.name))
        else:
            value = values[option.name] if option.name in values else getattr(settings, option.name)
            words += [f"{flag}={part}" for part in (value if isinstance(value, list) else [value])]
    return words


def argument_that_hid_ini_file(config: pytest.Config) -> str:
    """Return the option that made pytest miss its ini-file, written with ``=`` as it should be; empty if none did.

    Pytest does not know these options yet when it looks for the ini-file. It takes a path after a space for a test path
    and searches from there.
    """
    folder, arguments = config.invocation_params.dir, [str(part) for part in config.invocation_params.args]
    flags = [option.flag for option in OPTIONS if option.kind != "flag"] + [MODEL.alias, CANDIDATE.alias]
    if config.inipath is not None or not any(has_pytest_section(file) for file in _ini_files(folder)):
        return ""
    for flag, value in zip(arguments, arguments[1:], strict=False):
        if flag in flags and (folder / value).exists():
            return f"{flag}={value}"
    return ""


def _ini_files(folder: Path) -> Iterator[Path]:
    for parent in (folder, *folder.parents):
        yield from (parent / name for name in INI_FILES if (parent / name).is_file())


def has_pytest_section(file: Path) -> bool:
    """Return whether pytest reads its settings from ``file``, one of ``INI_FILES``."""
    return "pytest" in file.name or any(head in file.read_text("utf-8", "replace") for head in INI_SECTIONS)
