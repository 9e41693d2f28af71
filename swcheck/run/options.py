"""The options: their three spellings, and where each value came from. No pytest at run time, and nothing is judged.

An option is ``--swcheck-NAME`` on the command line, ``SWCHECK_NAME`` in the environment and ``swcheck_NAME`` in the
ini-file, in this order of precedence. ``--model`` and ``--candidate`` are late aliases, added only where they are used
and only if nobody else has them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from swcheck.base.errors import OptionError

if TYPE_CHECKING:
    import pytest

    from swcheck.run.settings import Settings

YES: Final = ("1", "true", "yes", "on")
NO: Final = ("0", "false", "no", "off")
LISTED: Final = ("list", "table")
INI_FILES: Final = (
    "pytest.toml", ".pytest.toml", "pytest.ini", ".pytest.ini", "pyproject.toml", "tox.ini", "setup.cfg",
)  # fmt: skip
INI_HEADS: Final = ("[tool.pytest", "[pytest]", "[tool:pytest]")


@dataclass(frozen=True)
class Option:
    """One option. ``kind`` is ``value``, ``list``, ``table`` or ``flag``: of a list the first place that gives one
    counts, the entries of a table add up. ``path`` says what of it may be a path from an ini-file: ``no``, ``yes``, or
    ``perhaps``, where it is one only if it exists.
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
    "model", "list", "SPEC", "model to test: tiny, a known name, a hub id or a directory; may be repeated", "perhaps"
)
CANDIDATE: Final = Option(
    "candidate",
    "list",
    "SPEC",
    "what is about to be released: a directory, a hub id or ENGINE:SCHEME; may be repeated",
    "perhaps",
)
OPTIONS: Final = (
    MODEL,
    CANDIDATE,
    Option("device", "value", "NAME", "where the models run; an accelerator if there is one"),
    Option("device_map", "value", "NAME", "spread a model over devices and main memory: auto, by accelerate"),
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
    Option("kind", "value", "NAME", "what was done to the candidate: quantized, finetuned, pruned; auto looks"),
    Option("json", "value", "FILE", "write the verdicts to this file", "yes"),
    Option("baseline", "value", "DIR", "a reference's measurements, read from here instead of loading it", "yes"),
    Option("update", "flag", None, "write the baselines anew; the run still fails, for they want a review"),
    Option("accept", "flag", None, "with update: the run passes"),
    Option("offline", "flag", None, "never download, as HF_HUB_OFFLINE=1"),
    Option("trust_remote_code", "flag", None, "run the Python that a checkpoint brings; refused otherwise"),
    Option("allow_none", "flag", None, "let a model pass in which no super weight is found"),
)


def add(parser: pytest.Parser) -> None:
    """Add every option and its ini twin."""
    group = parser.getgroup("swcheck", "swcheck: super weights of language models")
    for option in OPTIONS:
        _add(group, option, option.flag, f"{option.words} (ini: {option.dest}, environment: {option.variable})")
        if option.kind in LISTED:
            parser.addini(option.dest, option.words, type="args", default=[])
        elif option.kind == "flag":
            parser.addini(option.dest, option.words, type="bool", default=False)
        else:
            parser.addini(option.dest, option.words, type="string", default="")


def _add(group: Any, option: Option, flag: str, words: str) -> None:
    if option.kind == "flag":
        group.addoption(flag, dest=option.dest, action="store_true", default=None, help=words)
    else:
        action = "append" if option.kind in LISTED else "store"
        group.addoption(flag, dest=option.dest, action=action, metavar=option.metavar, default=None, help=words)


def add_aliases(parser: pytest.Parser, arguments: Sequence[str]) -> list[Option]:
    """Add each alias that ``arguments`` use; returns the options whose alias belongs to somebody else."""
    taken = []
    for option in (MODEL, CANDIDATE):
        if not any(part == option.alias or part.startswith(f"{option.alias}=") for part in arguments):
            continue
        if _is_taken(parser, option.alias):
            taken.append(option)
        else:
            _add(parser.getgroup("swcheck"), option, option.alias, f"the same as {option.flag}")
    return taken


def _is_taken(parser: pytest.Parser, flag: str) -> bool:
    """Whether somebody has registered ``flag``: pytest cannot be asked, and before 9 does not refuse a second one."""
    try:
        return not parser.parse_known_and_unknown_args([f"{flag}=x"])[1]
    except (Exception, SystemExit):  # the owner has it, and does not like the value
        return True


def collect(config: pytest.Config) -> tuple[dict[str, Any], dict[str, str]]:
    """Every given option's value by name, and where it came from: command line, environment or ini.

    Of a table the value holds the entries of every place by the place's name. Raises ``OptionError`` for a flag in the environment that is neither yes nor no.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for option in OPTIONS:
        given, variable = config.getoption(option.dest), os.environ.get(option.variable)
        ini = config.getini(option.dest)
        found = {
            "command line": given,
            "environment": _parsed(option, variable)
            if variable and (given is None or option.kind == "table")
            else None,
            "ini": _beside_ini(option, ini, config.inipath) if ini else None,
        }
        found = {place: value for place, value in found.items() if value is not None}
        if found:
            origin = next(iter(found))
            values[option.name], origins[option.name] = found if option.kind == "table" else found[origin], origin
    return values, origins


def _parsed(option: Option, text: str) -> Any:
    """The value of an environment variable; the parts of a list are separated by commas."""
    if option.kind in LISTED:
        return [part.strip() for part in text.split(",")]
    if option.kind == "flag":
        if text.lower() not in (*YES, *NO):
            raise OptionError(option.variable, repr(text), f"{YES[0]} or {NO[0]}")
        return text.lower() in YES
    return text


def _beside_ini(option: Option, value: Any, ini: Path | None) -> Any:
    """A path in an ini-file is meant from there; what is no path stays as it is."""
    if option.path == "no" or ini is None:
        return value

    def placed(text: str) -> str:
        if option.kind == "table":  # what may be a path stands before the last colon
            model, colon, rest = text.rpartition(":")
            return f"{there(model)}{colon}{rest}"
        return there(text)

    def there(text: str) -> str:
        path = ini.parent / Path(text).expanduser()
        return str(path) if option.path == "yes" or (text and path.exists()) else text

    return [placed(text) for text in value] if option.kind in LISTED else placed(value)


def described(settings: Settings) -> str:
    """What a run was asked for, each value with where it came from, on one line."""
    from swcheck.run.limit_overrides import PLACES, idle

    shown: dict[str, Any] = {"model": ", ".join(settings.models), "candidate": ", ".join(settings.candidates)}
    unused = idle(settings.overrides, settings.models, settings.candidates)
    parts = []
    for option in OPTIONS:
        if option.kind == "table" and option.name in settings.origins:
            for place in PLACES:
                said = [str(one) for one in settings.overrides if one.origin == place and one not in unused]
                parts += [f"{option.name} {', '.join(said)} ({place})"] if said else []
        elif option.name in settings.origins:
            value = (
                "" if option.kind == "flag" else f" {shown.get(option.name) or getattr(settings, option.name, None)}"
            )
            parts.append(f"{option.name.replace('_', ' ')}{value} ({settings.origins[option.name]})")
    return ", ".join(parts)


def repeating(settings: Settings, spec: str, candidates: Sequence[str] = (), taken: Sequence[Option] = ()) -> list[str]:
    """The options that ask for one model of a run again, and for these candidates, as words of a command line."""
    from swcheck.run.limit_overrides import ruling

    values: Mapping[str, Any] = {"model": [spec], "candidate": list(candidates)}
    words = []
    for option in OPTIONS:
        if option.name not in settings.origins or option.name == "json":
            continue
        flag = option.alias if option in {MODEL, CANDIDATE} and option not in taken else option.flag
        if option.kind == "table":
            rules = [ruling(settings.overrides, spec, candidate) for candidate in (None, *candidates)]
            texts = dict.fromkeys(one.text for rule in rules for one in rule.values())
            words += [f"{flag}={text}" for text in texts]
        elif option.kind == "flag":
            words += [flag] * bool(getattr(settings, option.name))
        else:
            value = values[option.name] if option.name in values else getattr(settings, option.name)
            words += [f"{flag}={part}" for part in (value if isinstance(value, list) else [value])]
    return words


def moved(config: pytest.Config) -> str:
    """The option, written as it should be, whose path after a space cost pytest its ini-file; empty where none did."""
    folder, arguments = config.invocation_params.dir, [str(part) for part in config.invocation_params.args]
    flags = [option.flag for option in OPTIONS if option.kind != "flag"] + [MODEL.alias, CANDIDATE.alias]
    if config.inipath is not None or not any(_is_ini(file) for file in _ini_files(folder)):
        return ""
    for flag, value in zip(arguments, arguments[1:], strict=False):
        if flag in flags and (folder / value).exists():
            return f"{flag}={value}"
    return ""


def _ini_files(folder: Path) -> Iterator[Path]:
    for parent in (folder, *folder.parents):
        yield from (parent / name for name in INI_FILES if (parent / name).is_file())


def _is_ini(file: Path) -> bool:
    return "pytest" in file.name or any(head in file.read_text("utf-8", "replace") for head in INI_HEADS)
