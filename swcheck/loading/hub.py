"""Find the directory of a model: a path, a known name, or a hub repository, which is downloaded if allowed."""

from __future__ import annotations

import os
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

from swcheck.base.errors import CheckpointError, SwcheckError, UnknownModelError, UnsafeCheckpointError, brief_message
from swcheck.base.terminal.visible import tell, visible_line
from swcheck.loading import published_index, tiny
from swcheck.loading.checkpoint import SINGLE_FILE, TOKENIZER_FILES, check_directory
from swcheck.loading.files.shard_index import shards_of

DOWNLOADED: Final = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")
NOT_DOWNLOADED: Final = ("consolidated*", "*/*")
"""The files of a repository that are downloaded, and the exceptions.

The exceptions are duplicates or for other runtimes: weights in a second layout, and every subfolder.
"""


def check(spec: str, *, trust_remote_code: bool = False, offline: bool = False) -> None:
    """Raise a ``SwcheckError`` if ``spec`` names no model or a directory without one. Nothing is loaded or downloaded.

    If downloads are forbidden, also raise ``UnknownModelError`` if the local cache lacks files of the model.
    """
    if spec in tiny.CHECKPOINTS:
        return
    path = existing_path(spec)
    if path is not None:
        check_directory(path, trust_remote_code=trust_remote_code)
        return
    repository = repository_of(spec)
    if _is_download_forbidden(offline) and _missing_in_words(repository):
        raise _not_cached_error(repository, spec)


def find_directory(spec: str, *, offline: bool = False) -> Path:
    """Return the directory of a path, or the snapshot of a known name or hub id, downloading it if necessary.

    Raises ``UnknownModelError``, or ``UnsafeCheckpointError`` if the repository has no safetensors.
    """
    return existing_path(spec) or _download_snapshot(repository_of(spec), spec, offline)


def existing_path(spec: str) -> Path | None:
    """Return ``spec`` as a path, with ``~`` expanded; None if no such file or directory exists."""
    expanded = os.path.expanduser(spec)  # noqa: PTH111 - pathlib raises for an unknown user
    return Path(expanded) if os.path.exists(expanded) else None  # noqa: PTH110 - pathlib raises for too long a name


def local_directory(spec: str, *, whole: bool = True) -> Path | None:
    """Return the path ``spec``, or the snapshot of it in the local cache, complete if ``whole``; None if there is neither."""
    path = existing_path(spec)
    if path is not None:
        return path
    try:
        repository = repository_of(spec)
        return None if whole and _missing_in_words(repository) else _cached_snapshot(repository)
    except (UnknownModelError, CheckpointError):
        return None


def name_of(spec: str) -> str:
    """Return the name of a directory; for anything else, ``spec`` itself.

    A directory with the name of a known model keeps its whole path as name, because it need not be that model.
    """
    path = existing_path(spec)
    name = spec if path is None else visible_line(path.resolve().name)
    return spec if published_index.find(name) else name


def canonical_name(spec: str) -> str:
    """Return the absolute path or the hub repository of ``spec``: the same for two specs of one model."""
    path = existing_path(spec)
    if path is not None:
        return str(path.resolve())
    known = published_index.find(spec)
    return known.model if known else spec


def repository_of(spec: str) -> str:
    """Return the hub repository of a known name or hub id. Raises ``UnknownModelError`` with the closest names."""
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
    """Return whether ``spec`` is a valid repository id by the hub's rules."""
    return (
        bool(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", spec)) and len(spec) <= 96 and ".." not in spec and "--" not in spec
    )


def _is_download_forbidden(offline: bool) -> bool:
    """Return whether downloads are forbidden, by the option or by ``HF_HUB_OFFLINE``."""
    from huggingface_hub import constants

    return offline or bool(constants.HF_HUB_OFFLINE)


def _download_snapshot(repository: str, spec: str, offline: bool) -> Path:
    """Return the local snapshot of a hub repository. If necessary and allowed, print its size and download it."""
    import huggingface_hub as hub
    from huggingface_hub import errors as hub_errors

    snapshot = _cached_snapshot(repository)
    if snapshot is not None and not _missing_in_words(repository):
        return snapshot
    if _is_download_forbidden(offline):
        raise _not_cached_error(repository, spec)
    asked = _described(repository, spec)
    try:
        files = hub.HfApi().model_info(repository, files_metadata=True).siblings or []
        wanted = [file for file in files if _is_downloaded(file.rfilename)]
        if not any(file.rfilename.endswith(".safetensors") for file in wanted):
            raise UnsafeCheckpointError(asked, "its weights are no safetensors", "convert it, and give the directory")
        tell(f"downloading {repository}, {sum(file.size or 0 for file in wanted) / 1e9:.1f} GB")
        allowed, ignored = list(DOWNLOADED), list(NOT_DOWNLOADED)
        return Path(hub.snapshot_download(repository, allow_patterns=allowed, ignore_patterns=ignored))
    except SwcheckError:
        raise
    except hub_errors.GatedRepoError as error:
        page = f"https://huggingface.co/{repository}"
        raise UnknownModelError(
            asked, "it is gated", f"accept its licence at {page}, then log in: hf auth login"
        ) from error
    except hub_errors.RepositoryNotFoundError as error:
        raise UnknownModelError(asked, "no such path, and the hub knows no such model", "check its name") from error
    except Exception as error:  # the hub's client passes on every error of its transport
        found = (
            f"not in the local cache, and the hub cannot be reached ({type(error).__name__}: {brief_message(error)})"
        )
        raise UnknownModelError(
            asked, found, f"fetch it where there is a network: {_download_command(repository)}"
        ) from error


def _is_downloaded(name: str) -> bool:
    """Return whether a file of a repository is downloaded."""
    return any(fnmatch(name, pattern) for pattern in DOWNLOADED) and not any(
        fnmatch(name, pattern) for pattern in NOT_DOWNLOADED
    )


def _described(repository: str, spec: str) -> str:
    return f"hub model {repository}" + ("" if spec == repository else f" ({spec})")


def _download_command(repository: str) -> str:
    return f"hf download {repository}"


def _not_cached_error(repository: str, spec: str) -> UnknownModelError:
    return UnknownModelError(
        _described(repository, spec),
        f"{_missing_in_words(repository)} not in the local cache, and downloads are forbidden (offline)",
        f"fetch it where there is a network: {_download_command(repository)}",
    )


def _cached_snapshot(repository: str) -> Path | None:
    """Return the snapshot of a repository in the local cache, maybe incomplete; None if there is none.

    The hub is not asked for a newer one.
    """
    import huggingface_hub as hub

    config = hub.try_to_load_from_cache(repository, "config.json")
    return Path(config).parent if isinstance(config, str) else None


def _missing_in_words(repository: str) -> str:
    """Say which files of a repository are missing in the local cache: the subject and verb of a sentence.

    Empty if all necessary files are there.
    """
    snapshot = _cached_snapshot(repository)
    if snapshot is None:
        return "it is"
    shards = [SINGLE_FILE] if (snapshot / SINGLE_FILE).exists() else sorted(shards_of(snapshot))
    missing = [shard for shard in shards if not (snapshot / shard).exists()]
    if missing or not shards:
        return f"{', '.join(missing[:4]) or 'its weights (*.safetensors)'} {'is' if len(missing) == 1 else 'are'}"
    return "" if any((snapshot / name).exists() for name in TOKENIZER_FILES) else "its tokenizer is"
