"""Questions to a server: no redirect is followed, no proxy is used, every answer is bounded in time and size."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import httpx

from swcheck import CheckpointError
from swcheck_server.address import Address

LARGEST_ANSWER: Final = 2**28
"""The largest answer in bytes: 4,096 tokens with twenty likeliest each take 4 MB."""
CONNECT: Final = 5.0
"""Seconds for a connection."""


class NotThereError(CheckpointError):
    """The server answers that it has no such path."""


def open_client(address: Address) -> httpx.Client:
    """Return what keeps a connection: it asks the address alone, and waits no longer than that says."""
    limits = httpx.Timeout(address.seconds, connect=CONNECT)
    return httpx.Client(timeout=limits, trust_env=False, follow_redirects=False)


def ask(address: Address, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the JSON object that the server answers. Raises ``CheckpointError`` for anything else, in bounded time."""
    with open_client(address) as client:
        return ask_through(client, address, method, path, body)


def ask_through(
    client: httpx.Client, address: Address, method: str, path: str, body: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return what ``ask`` does, through a connection that is open."""
    end, found = time.monotonic() + address.seconds, bytearray()
    try:
        with client.stream(method, address.url + path, json=body) as answer:
            for part in answer.iter_bytes():
                found += part
                if time.monotonic() > end:
                    raise CheckpointError(address.title, f"{path} takes more than {address.seconds:g} s", "seconds=")
                if len(found) > LARGEST_ANSWER:
                    raise CheckpointError(address.title, f"{path} answers more than {LARGEST_ANSWER:,} bytes", "top=")
            status = answer.status_code
    except httpx.ConnectError as error:
        raise CheckpointError(
            address.title, f"nobody listens there ({error})", "start the server, check the port"
        ) from error
    except httpx.TimeoutException as error:
        words = f"{path} does not answer within {address.seconds:g} s"
        raise CheckpointError(address.title, words, "seconds=, or a faster server") from error
    except httpx.HTTPError as error:
        words = f"{path} breaks off: {type(error).__name__}: {error}"
        raise CheckpointError(address.title, words[:300], "look into the server's log") from error
    if status != httpx.codes.OK:
        said = bytes(found[:200]).decode("utf-8", "replace").strip()
        kind = NotThereError if status == httpx.codes.NOT_FOUND else CheckpointError
        raise kind(address.title, f"{path} answers {status}: {said}", "look into the server's log")
    try:
        parsed = json.loads(found)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            address.title, f"{path} answers no JSON: {error}", "an OpenAI-compatible server"
        ) from error
    if not isinstance(parsed, dict):
        raise CheckpointError(address.title, f"{path} answers a {type(parsed).__name__}", "an OpenAI-compatible server")
    return parsed


def with_model(address: Address) -> Address:
    """Return the address with the name of the model to ask for, which the server has to have, and its room."""
    listed = ask(address, "GET", "/v1/models").get("data")
    models = {
        str(one.get("id")): one for one in (listed if isinstance(listed, list) else []) if isinstance(one, Mapping)
    }
    names = ", ".join(models)
    if address.model and address.model not in models:
        raise CheckpointError(address.title, f"it serves {names or 'nothing'}", f"model={next(iter(models), 'NAME')}")
    if not address.model and len(models) != 1:
        raise CheckpointError(address.title, f"it serves {names or 'no model'}", "name one: ,model=NAME")
    model = address.model or next(iter(models))
    room = models[model].get("max_model_len")
    return replace(address, model=model, room=room if isinstance(room, int) and room > 1 else None)
