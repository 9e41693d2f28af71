"""The engine ``server``: a model behind an OpenAI-compatible server, judged by the log-probabilities of its prompts.

Token ids are sent to ``/v1/completions`` with ``echo`` and ``logprobs``, as vLLM answers them; with ``/tokenize``, where
it is offered, the texts that tokenizers are compared on; and to a worker of vLLM that has the extension of ``in_vllm``,
numbers of layers and of scalars. llama.cpp's server does not echo: it is asked for the one token behind each beginning of
the prompt, which a bias makes it choose, and tells what that token had without the bias. So is vLLM for the last token of a
window that fills its context, where it has no room to echo. Nothing is sent anywhere but to the address that was given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from swcheck import EngineRequest, Loaded, check_packages
from swcheck_server.address import Address, read_address

PACKAGES: Final = (("httpx", "httpx>=0.27"),)


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
        from swcheck_server.connection import with_model

        return with_model(address)

    def load(self, spec: str, *, reference: str | None, device: str | None, dtype: str | None) -> Loaded:
        """Return the server's model, with the reference's tokenizer and text beside it."""
        from swcheck_server.runtime import ServerRuntime

        address = self.check(spec)
        base = EngineRequest("server", spec, spec).load_reference(reference, self, device=device, dtype=dtype)
        base.model.to("meta")
        runtime = ServerRuntime(address, base.tokenizer, int(base.model.config.vocab_size))
        return Loaded(runtime, base.tokenizer, address.title, base.text)


ENGINE: Final = ServerEngine()
