"""A real HTTP server over tiny's own logits that answers as vLLM does, or as badly as it is told to.

Its worker, where it has one, is tiny in modules shaped as vLLM's, with the extension that a real worker gets.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from swcheck_server.in_vllm import Extension
from torch import nn


class Served:
    """What a server does: its model, its tokenizer, its worker, and what is wrong with it."""

    def __init__(
        self, loaded, *, as_text=False, change=lambda answer: answer, status=200, raw=None, wait=0.0, bos=True,
        room=None, several=True, row=lambda number, logs: logs, together=None, worker=None, workers=1,
    ):  # fmt: skip
        self.loaded, self.as_text, self.change = loaded, as_text, change
        self.status, self.raw, self.wait, self.bos, self.room = status, raw, wait, bos, room
        self.several, self.row, self.together = several, row, together
        self.worker, self.workers = worker, workers
        self.paths, self.asked = [], []

    def answer(self, path, body):
        """The status and the JSON of an answer."""
        if path == "/v1/models":
            return 200, {"data": [{"id": "tiny", "max_model_len": self.room}]}
        if path == "/tokenize":
            ids = self.loaded.tokenizer(body["prompt"])["input_ids"]
            return 200, {"tokens": ids if self.bos else ids[1:]}
        if path == "/collective_rpc":
            return self.from_worker(body)
        self.asked.append(body)
        prompts = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
        if len(prompts) > 1 and not self.several:
            return 400, {"error": "one prompt"}
        number = 0 if self.together is None else self.together(prompts)
        choices = [{"index": n, "logprobs": self.told(body, ids, n + number)} for n, ids in enumerate(prompts)]
        return self.status, self.change({"model": "tiny", "choices": choices[::-1]})

    def from_worker(self, body):
        """What vLLM's ``/collective_rpc`` answers; 404 where it is not switched on."""
        if self.worker is None:
            return 404, {"detail": "Not Found"}
        try:
            found = getattr(self.worker, body["method"])(*body["args"])
        except Exception as error:  # as vLLM does
            return 500, {"error": {"message": f"Call to collective_rpc method failed: {error}"}}
        return 200, {"results": [found if isinstance(found, dict | list | None) else str(found)] * self.workers}

    def told(self, body, ids, number):
        """The log-probabilities of a prompt and of one token more."""
        with torch.no_grad():
            logits = self.worker.run(ids) if self.worker else self.loaded.model(torch.tensor([ids])).logits[0]
        logs = self.row(number, logits.float().log_softmax(-1))
        assert self.room is None or len(ids) < self.room, "no room for an answer"
        name = (lambda n: self.loaded.tokenizer.decode([n])) if self.as_text else (lambda n: f"token_id:{n}")
        top = logs.topk(body["logprobs"])
        likeliest = [
            {name(n): v for n, v in zip(row.tolist(), values.tolist(), strict=True)}
            for row, values in zip(top.indices, top.values, strict=True)
        ]
        own = [float(logs[place, number]) for place, number in enumerate(ids[1:])]
        chosen = int(next(iter(body.get("logit_bias", {0: 0}))))
        found = {
            "tokens": [name(n) for n in [*ids, chosen]],
            "token_logprobs": [None, *own, float(logs[-1, chosen])],
            "top_logprobs": [None, *likeliest],
        }
        return found if body.get("echo") else {key: values[-1:] for key, values in found.items()}


@contextmanager
def serving(served):
    """Run a server on a free local port; yield its address."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_args):
            pass

        def do_GET(self):
            self.respond(None)

        def do_POST(self):
            self.respond(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def respond(self, body):
            served.paths.append(self.path)
            faulty = self.path == "/v1/completions"
            if faulty:
                time.sleep(served.wait)
            status, answer = served.answer(self.path, body)
            content = json.dumps(answer).encode()
            if faulty and served.raw is not None:
                content = served.raw(content)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content) if not (faulty and served.raw) else len(content) + 5))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# --- modules shaped as vLLM's --------------------------------------------------------------------------------------------


class RowParallelLinear(nn.Module):
    """It has its widths in vLLM's names, gives back a bias beside the product, and keeps its weight where nobody finds it."""

    def __init__(self, linear):
        super().__init__()
        self.output_size, self.input_size = linear.weight.shape
        self._packed = [linear.weight]

    def forward(self, given):
        return nn.functional.linear(given, self._packed[0]), None


class Attention(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.inner = [attention]
        self.o_proj = RowParallelLinear(attention.o_proj)

    def forward(self, given, rotary):
        return self.inner[0](given[None], position_embeddings=rotary, attention_mask=None)[0][0]


class Mlp(nn.Module):
    def __init__(self, mlp):
        super().__init__()
        self.gate_proj, self.up_proj, self.act_fn = mlp.gate_proj, mlp.up_proj, mlp.act_fn
        self.down_proj = RowParallelLinear(mlp.down_proj)

    def forward(self, given):
        return self.down_proj(self.act_fn(self.gate_proj(given)) * self.up_proj(given))[0]


class Layer(nn.Module):
    """It gives back what it adds and the stream before, and writes over what the layer before has given."""

    def __init__(self, layer):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = layer.input_layernorm, layer.post_attention_layernorm
        self.self_attn, self.mlp = Attention(layer.self_attn), Mlp(layer.mlp)

    def forward(self, rotary, hidden, residual):
        residual = hidden if residual is None else residual.add_(hidden)
        hidden = self.self_attn(self.input_layernorm(residual), rotary)
        residual = residual + hidden
        return self.mlp(self.post_attention_layernorm(residual)), residual


class Model(nn.Module):
    """tiny for the tokens of one prompt, as ids and positions ``(T,)``."""

    def __init__(self, model):
        super().__init__()
        self.embed, self.rotary, self.norm, self.lm_head = (
            model.model.embed_tokens, model.model.rotary_emb, model.model.norm, model.lm_head
        )  # fmt: skip
        self.layers = nn.ModuleList(map(Layer, model.model.layers))

    def forward(self, input_ids, positions):
        hidden, residual = self.embed(input_ids), None
        rotary = self.rotary(hidden[None], positions[None])
        for layer in self.layers:
            hidden, residual = layer(rotary, hidden, residual)
        return self.lm_head(self.norm(hidden + residual))


class Worker(Extension):
    """What vLLM's worker is to its extension.

    With ``skips`` its passes leave out as many tokens at the beginning, as behind a cache; with ``others`` those of another
    prompt pass before; with ``compiled`` no hook of a layer is called.
    """

    def __init__(self, loaded, *, skips=0, others=0, compiled=False):
        self.model, self.model_config = Model(loaded.model), self
        self.config, self.skips, self.others, self.compiled = loaded.model.config, skips, others, compiled

    def get_model(self):
        return self.model

    def get_total_num_hidden_layers(self):
        return self.config.num_hidden_layers

    def get_hidden_size(self):
        return self.config.hidden_size

    def run(self, ids):
        if self.others:
            self.model(input_ids=torch.arange(self.others), positions=torch.arange(self.others))
        if self.compiled:
            for layer in self.model.layers:
                layer._forward_hooks.clear()
        places = torch.arange(len(ids))
        logits = self.model(input_ids=torch.tensor(ids)[self.skips :], positions=places[self.skips :])
        return torch.cat([logits[: self.skips], logits])
