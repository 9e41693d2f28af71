"""What ``/v1/completions`` tells of prompts: by an echo of each, or by the one token behind each beginning of it.

T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import httpx
import torch

from swcheck import CheckpointError
from swcheck_server.address import Address
from swcheck_server.connection import ask_through, open_client

PATH: Final = "/v1/completions"
SAME: Final = 1e-6
CERTAIN: Final = 100
"""The bias of a logit that makes its token the likeliest: the largest that this interface allows."""

Told: TypeAlias = "tuple[list[float], list[dict[str, float]]]"
"""Of each token of a prompt its log-probability, and those of the likeliest tokens at its place by their names."""


@dataclass
class Completions:
    """Asks for the likeliest tokens of each position of prompts, and for that of the prompt itself.

    ``extras`` go with each question. ``echoes`` says that the server tells those of a whole prompt at once; it is known
    once one was asked for.
    """

    address: Address
    tokenizer: Any
    vocabulary: int
    extras: Mapping[str, Any] = field(default_factory=dict)
    echoes: bool = True
    _by_text: dict[str, int] = field(default_factory=dict)

    def logs_of(self, prompts: Sequence[list[int]]) -> list[torch.Tensor]:
        """Return for each prompt float32 ``(T - 1, V)``, ``-inf`` where nothing is told. Several are asked for in one request."""
        whole = [self._with_room(sent) for sent in prompts]
        told: list[Told] = [([math.nan], [{}]) for _ in prompts]
        with open_client(self.address) as client:
            if self.echoes:
                found = self._completion(client, whole, echo=True)
                self.echoes = not any("content" in one for one in found)
            if self.echoes:
                told = [self._of_echo(*pair) for pair in zip(whole, found, strict=True)]
            for place in range(1, max(map(len, prompts))):
                self._ask_behind(client, prompts, told, place)
        return [self._rows(*pair) for pair in zip(prompts, told, strict=True)]

    def pass_over(self, sent: list[int]) -> None:
        """Have a whole prompt computed. Raises ``CheckpointError`` for one that leaves no room for an answer."""
        room = self.address.room
        if room is not None and len(sent) >= room:
            words = f"a prompt of {len(sent):,} tokens leaves no room for an answer in {room:,}"
            raise CheckpointError(self.address.title, words, "a shorter prompt")
        with open_client(self.address) as client:
            self._of_echo(sent, self._completion(client, [sent], echo=True)[0])

    def takes_several(self, sent: list[int]) -> bool:
        """Return whether one request may have several prompts; and find out whether it echoes."""
        with open_client(self.address) as client:
            try:
                found = self._completion(client, [sent, sent], echo=True)
            except CheckpointError:
                return False
        self.echoes = not any("content" in one for one in found)
        return True

    def _with_room(self, sent: list[int]) -> list[int]:
        """Return a prompt without its last token where it leaves no room for an answer."""
        room = self.address.room
        return sent[:-1] if room is not None and len(sent) >= room else sent

    def _ask_behind(self, client: httpx.Client, prompts: Sequence[list[int]], told: Sequence[Told], place: int) -> None:
        """Ask for the tokens at a place that was not told of yet: one request for all prompts that have the same one there."""
        missing = [n for n, sent in enumerate(prompts) if len(told[n][0]) == place < len(sent)]
        for token in sorted({prompts[n][place] for n in missing}):
            asked = [n for n in missing if prompts[n][place] == token]
            bias = {str(token): CERTAIN}
            found = self._completion(client, [prompts[n][:place] for n in asked], logit_bias=bias)
            for n, one in zip(asked, found, strict=True):
                value, others = self._of_next(one, place, token)
                told[n][0].append(value)
                told[n][1].append(others)

    def _rows(self, sent: list[int], told: Told) -> torch.Tensor:
        logs = torch.full((len(sent) - 1, self.vocabulary), -math.inf)
        for place, (number, value, others) in enumerate(zip(sent[1:], told[0][1:], told[1][1:], strict=True)):
            for token, log in others.items():
                at = self._id_of(token)
                if at is not None:
                    logs[place, at] = log
            logs[place, number] = value
        if not bool((logs.exp().sum(1) <= 1 + 1e-3).all()):
            raise self._wrong("more than 1 of probability in one place")
        return logs

    def _completion(self, client: httpx.Client, prompts: Sequence[list[int]], **asked: Any) -> list[Mapping[str, Any]]:
        """Return the log-probabilities in what the server answers to each prompt, one token further than what it is asked."""
        body = {
            "model": self.address.model, "max_tokens": 1, "temperature": 0, "logprobs": self.address.top,
            "return_tokens_as_token_ids": True, "prompt": prompts[0] if len(prompts) == 1 else list(prompts),
            **self.extras, **asked,
        }  # fmt: skip
        answer = ask_through(client, self.address, "POST", PATH, body)
        if str(answer.get("model", self.address.model)) != self.address.model:
            raise self._wrong(f"another model, {answer['model']!r}")
        return list(self._choices(answer, len(prompts)))

    def _choices(self, answer: Mapping[str, Any], count: int) -> Iterator[Mapping[str, Any]]:
        """Yield the log-probabilities of each of ``count`` prompts, in their order."""
        choices = answer.get("choices")
        given = [one for one in choices if isinstance(one, Mapping)] if isinstance(choices, list) else []
        by_index = {one.get("index", 0): one for one in given}
        if sorted(map(str, by_index)) != sorted(map(str, range(count))) or len(given) != count:
            words = f"no log-probabilities of the prompt: {len(given)} answers"
            raise self._wrong(f"{words} to {count} prompts, of the numbers {sorted(map(str, by_index))}"[:200])
        for number in range(count):
            found = by_index[number].get("logprobs")
            if not isinstance(found, Mapping):
                raise self._wrong(f"no log-probabilities of the prompt, but a {type(found).__name__}")
            yield found

    def _of_echo(self, sent: list[int], found: Mapping[str, Any]) -> Told:
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

    def _of_next(self, found: Mapping[str, Any], place: int, token: int) -> tuple[float, dict[str, float]]:
        """Return what is told of ``token`` at a place: it was chosen by a bias, its log is without it."""
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
            raise self._wrong(f"token {chosen} where a bias of {CERTAIN} asks for {token} at place {place}")
        if not _is_log(value) or not all(map(_is_log, others.values())):
            raise self._wrong(f"no log-probability at place {place}: {value!r}")
        rest = [log for name, log in others.items() if self._id_of(name) != token]
        if rest and max(rest) < value - CERTAIN / 2 and value > -SAME:
            raise self._wrong(f"log-probabilities behind the bias, at place {place}: {value!r} and {max(rest)!r}")
        return float(value), others

    def _id_of(self, token: str) -> int | None:
        """Return the id of a token that is told as ``token_id:5`` or as its text; None where that is not known."""
        if token.startswith("token_id:") and token[9:].isdecimal():
            number = int(token[9:])
            return number if number < self.vocabulary else None
        if not self._by_text:
            texts = [self.tokenizer.decode([number]) for number in range(self.vocabulary)]
            counts = Counter(texts)
            self._by_text = {text: number for number, text in enumerate(texts) if counts[text] == 1}
        return self._by_text.get(token)

    def _wrong(self, words: str) -> CheckpointError:
        attempt = "a server that answers echo with logprobs, such as vLLM; top= not above its limit"
        return CheckpointError(self.address.title, f"{PATH} answers {words}", attempt)


def _is_log(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value <= SAME
