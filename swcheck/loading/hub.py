"""Where a model lies: a directory, a known name, or a repository of the hub, downloaded where that is allowed."""

from __future__ import annotations

import os
import re
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

from swcheck.base.errors import CheckpointError, SwcheckError, UnknownModelError, UnsafeCheckpointError, brief_message
from swcheck.loading import published_index, tiny
from swcheck.loading.checkpoint import SINGLE, TOKENIZER_FILES, check_directory, shards_of

WANTED: Final = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")
UNWANTED: Final = ("consolidated*", "*/*")
"""What a repository has twice or for other runtimes: weights in a second layout, and every subfolder."""


def check(spec: str, *, trust_remote_code: bool = False, offline: bool = False) -> None:
    """Raise a worded error for a name that leads nowhere or a directory that is no model; nothing is loaded."""
    if spec in tiny.CHECKPOINTS:
        return
    path = existing(spec)
    if path is not None:
        check_directory(path, trust_remote_code=trust_remote_code)
        return
    repository = repository_of(spec)
    if _forbidden(offline) and _lacking(repository):
        raise _not_here(repository, spec)


def find(spec: str, *, offline: bool = False) -> Path:
    """The directory that ``spec`` means: itself, or the local snapshot of a known name or hub id."""
    return existing(spec) or _snapshot(repository_of(spec), spec, offline)


def existing(spec: str) -> Path | None:
    """The path of this name, ``~`` expanded, None where there is none."""
    expanded = os.path.expanduser(spec)  # noqa: PTH111 - a user that does not exist is no error here
    return Path(expanded) if os.path.exists(expanded) else None  # noqa: PTH110 - too long a name is no error here


def local(spec: str) -> Path | None:
    """The directory of this name, or the whole snapshot that the local cache has of it; None where there is neither."""
    path = existing(spec)
    if path is not None:
        return path
    try:
        repository = repository_of(spec)
        return None if _lacking(repository) else _cached(repository)
    except (UnknownModelError, CheckpointError):
        return None


def name_of(spec: str) -> str:
    """The name of a directory, else ``spec`` as it is.

    A directory that is called like a known model keeps its whole path: nobody said that it is that model.
    """
    path = existing(spec)
    name = spec if path is None else path.resolve().name
    return spec if published_index.find(name) else name


def meaning(spec: str) -> str:
    """The directory or the hub repository of ``spec``."""
    path = existing(spec)
    if path is not None:
        return str(path.resolve())
    known = published_index.find(spec)
    return known.model if known else spec


def repository_of(spec: str) -> str:
    """The hub repository of a known name or hub id; raises ``UnknownModelError`` with the closest names."""
    known = published_index.find(spec)
    if known is not None:
        return known.model
    if spec.startswith((".", "/", "~")) or spec.count("/") != 1 or not _is_repository(spec):
        close = published_index.closest(spec)
        raise UnknownModelError(
            f"model {spec!r}",
            "no such path, and no model of this name in the index"
            + (f"; the closest: {', '.join(close)}" if close else ""),
            "`swcheck index` lists the known names; `tiny`, a directory or a hub id (owner/name) work as well",
        )
    return spec


def _is_repository(spec: str) -> bool:
    """Whether ``spec`` may be the id of a repository, by the hub's rules."""
    return (
        bool(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", spec)) and len(spec) <= 96 and ".." not in spec and "--" not in spec
    )


def _forbidden(offline: bool) -> bool:
    """Whether downloads are forbidden, by option or by the hub's own variable."""
    from huggingface_hub import constants

    return offline or bool(constants.HF_HUB_OFFLINE)


def _snapshot(repository: str, spec: str, offline: bool) -> Path:
    """The local snapshot of a hub repository, downloaded where that is allowed, after its size was printed."""
    import huggingface_hub as hub
    from huggingface_hub import errors as hub_errors

    local = _cached(repository)
    if local is not None and not _lacking(repository):
        return local
    if _forbidden(offline):
        raise _not_here(repository, spec)
    asked = _asked(repository, spec)
    try:
        files = hub.HfApi().model_info(repository, files_metadata=True).siblings or []
        wanted = [file for file in files if _is_wanted(file.rfilename)]
        if not any(file.rfilename.endswith(".safetensors") for file in wanted):
            raise UnsafeCheckpointError(asked, "its weights are no safetensors", "convert it, and give the directory")
        sys.stderr.write(f"swcheck: downloading {repository}, {sum(file.size or 0 for file in wanted) / 1e9:.1f} GB\n")
        patterns = list(WANTED), list(UNWANTED)
        return Path(hub.snapshot_download(repository, allow_patterns=patterns[0], ignore_patterns=patterns[1]))
    except SwcheckError:
        raise
    except hub_errors.GatedRepoError as error:
        page = f"https://huggingface.co/{repository}"
        raise UnknownModelError(
            asked, "it is gated", f"accept its licence at {page}, then log in: hf auth login"
        ) from error
    except hub_errors.RepositoryNotFoundError as error:
        raise UnknownModelError(asked, "no such path, and the hub knows no such model", "check its name") from error
    except Exception as error:  # the hub's client passes on whatever its transport raises
        found = (
            f"not in the local cache, and the hub cannot be reached ({type(error).__name__}: {brief_message(error)})"
        )
        raise UnknownModelError(asked, found, f"fetch it where there is a network: {_fetch(repository)}") from error


def _is_wanted(name: str) -> bool:
    """Whether a file of a repository is downloaded."""
    return any(fnmatch(name, part) for part in WANTED) and not any(fnmatch(name, part) for part in UNWANTED)


def _asked(repository: str, spec: str) -> str:
    return f"hub model {repository}" + ("" if spec == repository else f" ({spec})")


def _fetch(repository: str) -> str:
    return f"hf download {repository}"


def _not_here(repository: str, spec: str) -> UnknownModelError:
    return UnknownModelError(
        _asked(repository, spec),
        f"{_lacking(repository)} not in the local cache, and downloads are forbidden (offline)",
        f"fetch it where there is a network: {_fetch(repository)}",
    )


def _cached(repository: str) -> Path | None:
    """Where the local cache keeps a repository, as far as it has it; nobody is asked whether there is a newer one."""
    import huggingface_hub as hub

    config = hub.try_to_load_from_cache(repository, "config.json")
    return Path(config).parent if isinstance(config, str) else None


def _lacking(repository: str) -> str:
    """The files of a repository that the local cache lacks, in words; empty where it has all that is needed."""
    local = _cached(repository)
    if local is None:
        return "it is"
    shards = [SINGLE] if (local / SINGLE).exists() else sorted(shards_of(local))
    missing = [shard for shard in shards if not (local / shard).exists()]
    if missing or not shards:
        return f"{', '.join(missing[:4]) or 'its weights (*.safetensors)'} {'is' if len(missing) == 1 else 'are'}"
    return "" if any((local / name).exists() for name in TOKENIZER_FILES) else "its tokenizer is"
