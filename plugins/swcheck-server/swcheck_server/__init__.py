"""The engine ``server``: a model behind an OpenAI-compatible server, judged by the log-probabilities of its prompts.

Token ids are sent to ``/v1/completions`` with ``echo`` and ``logprobs``, as vLLM answers them, and nothing else; with
``/tokenize``, where it is offered, the texts that tokenizers are compared on. llama.cpp's server does not echo: it is
asked for the one token behind each beginning of the prompt, which a bias makes it choose, and tells what that token had
without the bias. So is vLLM for the last token of a window that fills its context, where it has no room to echo. Nothing
is sent anywhere but to the address that was given: no redirect is followed, no proxy is used. Every answer is bounded in
time and size.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from swcheck import Capability, CheckpointError, EngineError, Loaded, OptionError, Runtime, check_packages

if TYPE_CHECKING:
    import httpx
    import torch

PACKAGES: Final = (("httpx", "httpx>=0.27"),)
LARGEST_ANSWER: Final = 2**28
"""The largest answer in bytes: 4,096 tokens with twenty likeliest each take 4 MB."""
CONNECT: Final = 5.0
"""Seconds for a connection."""
SAME: Final = 1e-6
CERTAIN: Final = 100
"""The bias of a logit that makes its token the likeliest: the largest that this interface allows."""


@dataclass(frozen=True)
class Address:
    """Where a server is, and how it is asked: ``model`` empty for its only one, ``top`` likeliest tokens, seconds.

    ``room`` is the number of tokens that prompt and answer may have together; None where the server does not tell.
    """

    spec: str
    url: str
    model: str = ""
    top: int = 20
    seconds: float = 120
    room: int | None = None

    @property
    def title(self) -> str:
        """The request as it was typed."""
        return f"server:{self.spec}"


@dataclass(frozen=True)
class ServerEngine:
    """``server:http://HOST:PORT``, with ``,model=NAME,top=20,seconds=120``."""

    name: str = "server"
    trust_remote_code: bool = False
    offline: bool = False

    def check(self, spec: str) -> Address:
        """Raise what ``load`` does for an address that is none, without its package, or where nobody answers."""
        address = read_address(spec)
        check_packages(address.title, PACKAGES)
        return _with_model(address)

    def load(self, spec: str, *, reference: str | None, device: str | None, dtype: str | None) -> Loaded:
        """Return the server's model, with the reference's tokenizer and text beside it."""
        from swcheck import EngineRequest

        address = self.check(spec)
        base = EngineRequest("server", spec, spec).load_reference(reference, self, device=device, dtype=dtype)
        base.model.to("meta")
        runtime = _ServerRuntime(address, base.tokenizer, int(base.model.config.vocab_size))
        return Loaded(runtime, base.tokenizer, address.title, base.text)


ENGINE: Final = ServerEngine()


def read_address(spec: str) -> Address:
    """Parse what stands behind ``server:``. Raises ``EngineError`` for what is no address, ``OptionError`` for options."""
    url, *given = spec.split(",")
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise EngineError(f"server:{spec}", f"no address: {url!r}", "server:http://127.0.0.1:8000")
    options: dict[str, str] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or name not in {"model", "top", "seconds"} or name in options:
            raise OptionError(
                f"{one!r} in server:{spec}", "options here: model=, top=, seconds=, once each", "leave it out"
            )
        options[name] = value
    for name in ("top", "seconds"):
        if name in options and not (options[name].isdecimal() and 0 < int(options[name]) <= 100_000):
            raise OptionError(f"{name}={options[name]} in server:{spec}", "no positive number", f"{name}=20")
    base = url.rstrip("/").removesuffix("/v1")
    return Address(
        spec, base, options.get("model", ""), int(options.get("top", "20")), float(options.get("seconds", "120"))
    )


def _with_model(address: Address) -> Address:
    """Return the address with the name of the model to ask for, which the server has to have, and its room."""
    listed = _ask(address, "GET", "/v1/models").get("data")
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


def _client(address: Address) -> httpx.Client:
    """Return what keeps a connection: it asks the address alone, and waits no longer than that says."""
    import httpx

    limits = httpx.Timeout(address.seconds, connect=CONNECT)
    return httpx.Client(timeout=limits, trust_env=False, follow_redirects=False)


def _ask(address: Address, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the JSON object that the server answers. Raises ``CheckpointError`` for anything else, in bounded time."""
    with _client(address) as client:
        return _ask_through(client, address, method, path, body)


def _ask_through(
    client: httpx.Client, address: Address, method: str, path: str, body: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return what ``_ask`` does, through a connection that is open."""
    import httpx

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
        raise CheckpointError(address.title, f"{path} answers {status}: {said}", "look into the server's log")
    try:
        parsed = json.loads(found)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            address.title, f"{path} answers no JSON: {error}", "an OpenAI-compatible server"
        ) from error
    if not isinstance(parsed, dict):
        raise CheckpointError(address.title, f"{path} answers a {type(parsed).__name__}", "an OpenAI-compatible server")
    return parsed


@dataclass
class _ServerRuntime(Runtime):
    """A model behind a server. It tells the likeliest tokens of each position, and that of the prompt itself."""

    address: Address
    tokenizer: Any
    vocabulary: int
    title: str = ""
    shows: frozenset[Capability] = frozenset()
    by_prefix: bool = False
    _echoes: bool = True
    _by_text: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.title = f"the server {self.address.url}, model {self.address.model}, to which token ids were sent"
        if self._tokens_of("x") is not None:
            self.shows = frozenset({Capability.TOKEN_IDS})
            self.title += ", and texts for its tokenizer"

    def _tokens_of(self, text: str) -> list[int] | None:
        """Return the ids of a text, None where the server does not tell: vLLM's and llama.cpp's names in one."""
        asked = {"model": self.address.model, "prompt": text, "content": text}
        try:
            found = _ask(self.address, "POST", "/tokenize", {**asked, "add_special": True, "add_special_tokens": True})
        except CheckpointError:
            return None
        tokens = found.get("tokens")
        return tokens if isinstance(tokens, list) and all(isinstance(one, int) for one in tokens) else None

    def token_ids(self, text: str) -> Sequence[int]:
        """Return the ids of a text by the server's own tokenizer."""
        found = self._tokens_of(text) if self.can(Capability.TOKEN_IDS) else None
        return super().token_ids(text) if found is None else found

    def log_probabilities(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the log-probabilities that the server tells, float32 ``(T - 1, V)``, ``-inf`` where it tells none."""
        import torch

        sent = ids.tolist()
        own, likeliest = self._prompt_logs(sent)
        logs = torch.full((len(sent) - 1, self.vocabulary), -math.inf)
        for place, (number, value, others) in enumerate(zip(sent[1:], own[1:], likeliest[1:], strict=True)):
            for token, log in others.items():
                at = self._id_of(token)
                if at is not None:
                    logs[place, at] = log
            logs[place, number] = value
        if not bool((logs.exp().sum(1) <= 1 + 1e-3).all()):
            raise self._wrong("more than 1 of probability in one place")
        return logs

    def _prompt_logs(self, sent: list[int]) -> tuple[list[float], list[dict[str, float]]]:
        """Return what is told of each token of a prompt: its own log-probability, and those of the likeliest."""
        room = self.address.room
        whole = sent[:-1] if room is not None and len(sent) >= room else sent
        if self._echoes:
            found = self._completion({"prompt": whole, "echo": True})
            self._echoes = "content" not in found
            self.by_prefix = not self._echoes
        own, likeliest = self._of_echo(whole, found) if self._echoes else ([math.nan], [{}])
        with _client(self.address) as client:
            for place in range(len(own), len(sent)):
                value, others = self._of_next(client, sent[:place], sent[place])
                own.append(value)
                likeliest.append(others)
        return own, likeliest

    def _completion(self, asked: Mapping[str, Any], client: httpx.Client | None = None) -> Mapping[str, Any]:
        """Return the log-probabilities in what the server answers, one token further than what it is asked."""
        body = {
            "model": self.address.model, "max_tokens": 1, "temperature": 0, "logprobs": self.address.top,
            "return_tokens_as_token_ids": True, **asked,
        }  # fmt: skip
        path = "/v1/completions"
        answer = (
            _ask(self.address, "POST", path, body)
            if client is None
            else _ask_through(client, self.address, "POST", path, body)
        )
        if str(answer.get("model", self.address.model)) != self.address.model:
            raise self._wrong(f"another model, {answer['model']!r}")
        try:
            found = answer["choices"][0]["logprobs"]
        except (KeyError, IndexError, TypeError) as error:
            raise self._wrong(f"no log-probabilities of the prompt ({type(error).__name__}: {error})") from error
        if not isinstance(found, Mapping):
            raise self._wrong(f"no log-probabilities of the prompt, but a {type(found).__name__}")
        return found

    def _of_echo(self, sent: list[int], found: Mapping[str, Any]) -> tuple[list[float], list[dict[str, float]]]:
        """Return what an echo tells of each token of the prompt ``sent``; of the first one nothing is known."""
        try:
            tokens, own, likeliest = (found[key][: len(sent)] for key in ("tokens", "token_logprobs", "top_logprobs"))
        except (KeyError, TypeError) as error:
            raise self._wrong(f"no log-probabilities of the prompt ({type(error).__name__}: {error})") from error
        if not len(tokens) == len(own) == len(likeliest) == len(sent):
            raise self._wrong(
                f"{len(tokens)} tokens, {len(own)} and {len(likeliest)} log-probabilities for {len(sent)}"
            )
        other = next((n for n, token in enumerate(tokens) if self._id_of(str(token)) not in {None, sent[n]}), None)
        if other is not None:
            raise self._wrong(f"token {tokens[other]!r} for {sent[other]} at place {other}: it changes the prompt")
        for place, (value, others) in enumerate(zip(own[1:], likeliest[1:], strict=True), 1):
            if not _is_log(value) or not isinstance(others, dict) or not all(map(_is_log, others.values())):
                raise self._wrong(f"no log-probability at place {place}: {value!r}")
        return list(own), list(likeliest)

    def _of_next(self, client: httpx.Client, sent: list[int], token: int) -> tuple[float, dict[str, float]]:
        """Return what is told of ``token`` behind the prompt ``sent``: it is chosen by a bias, its log is without it."""
        found = self._completion({"prompt": sent, "logit_bias": {str(token): CERTAIN}}, client)
        try:
            if "content" in found:
                one = found["content"][0]
                chosen, value = one["id"], one["logprob"]
                others = {f"token_id:{each['id']}": each["logprob"] for each in one["top_logprobs"]}
            else:
                chosen, value = self._id_of(str(found["tokens"][0])), found["token_logprobs"][0]
                others = dict(found["top_logprobs"][0])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise self._wrong(f"no log-probability of its answer ({type(error).__name__}: {error})") from error
        if chosen != token:
            raise self._wrong(f"token {chosen} where a bias of {CERTAIN} asks for {token} at place {len(sent)}")
        if not _is_log(value) or not all(map(_is_log, others.values())):
            raise self._wrong(f"no log-probability at place {len(sent)}: {value!r}")
        rest = [log for name, log in others.items() if self._id_of(name) != token]
        if rest and max(rest) < value - CERTAIN / 2 and value > -SAME:
            raise self._wrong(f"log-probabilities behind the bias, at place {len(sent)}: {value!r} and {max(rest)!r}")
        return float(value), others

    def _id_of(self, token: str) -> int | None:
        """Return the id of a token that is told as ``token_id:5`` or as its text; None where that is not known."""
        if token.startswith("token_id:") and token[9:].isdecimal():
            number = int(token[9:])
            return number if number < self.vocabulary else None
        if not self._by_text:
            texts = [self.tokenizer.decode([number]) for number in range(self.vocabulary)]
            self._by_text = {text: number for number, text in enumerate(texts) if texts.count(text) == 1}
        return self._by_text.get(token)

    def _wrong(self, words: str) -> CheckpointError:
        attempt = "a server that answers echo with logprobs, such as vLLM; top= not above its limit"
        return CheckpointError(self.address.title, f"/v1/completions answers {words}", attempt)


def _is_log(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value <= SAME
