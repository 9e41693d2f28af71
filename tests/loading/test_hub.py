"""Where a model lies: known names, hub ids, downloads, and what is said where there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from swcheck.base.errors import UnknownModelError
from swcheck.loading import tiny
from swcheck.loading.hub import canonical_name, check, repository_of
from tests.loading.test_engines import words_of


def test_a_known_name_is_its_repository():
    """Aliases in any case and spelling, and hub ids, stand for a repository; two ways to name a model mean the same."""
    assert repository_of("LLaMA_7B") == "huggyllama/llama-7b"
    assert repository_of("somebody/some-model") == "somebody/some-model"
    assert canonical_name("llama-7b") == canonical_name("huggyllama/llama-7b") == "huggyllama/llama-7b"


@pytest.mark.parametrize(
    "spec", ["llma-7b", "./nowhere", "/no/where", "~/nowhere", "a/b/c", "a b/c", "owner/name:main", "x" * 300]
)
def test_no_such_model(spec):
    """What is neither path, alias nor hub id is refused with what would be."""
    with pytest.raises(UnknownModelError, match="no such path") as caught:
        check(spec)
    _, found, attempt = words_of(caught)
    assert ("the closest: llama-7b" in found) == (spec == "llma-7b")
    assert "tiny" in attempt


class Hub(BaseHTTPRequestHandler):
    """As much of a model hub as downloading one model takes: its repository is ``mine/model``, ``mine/gated`` is gated."""

    commit = "0" * 40
    files: ClassVar[dict[str, bytes]] = {}

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        if self.path.startswith("/api/models/mine/model/tree/"):
            tree = [{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in self.files.items()]
            self.answer(200, json.dumps(tree).encode())
        elif self.path.startswith("/api/models/mine/model"):
            siblings = [{"rfilename": name, "size": len(data)} for name, data in self.files.items()]
            self.answer(200, json.dumps({"id": "mine/model", "sha": self.commit, "siblings": siblings}).encode())
        elif self.path.startswith("/mine/model/resolve/"):
            data = self.files.get(self.path.rpartition("/")[2])
            name = {"ETag": f'"{hash(data)}"', "X-Repo-Commit": self.commit}
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"}) if data is None else self.answer(200, data, name)
        elif "/mine/gated" in self.path:
            self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif "/mine/pickles" in self.path:
            siblings = [{"rfilename": "pytorch_model.bin", "size": 9}]
            self.answer(200, json.dumps({"id": "mine/pickles", "sha": self.commit, "siblings": siblings}).encode())
        else:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def answer(self, status, data, headers=()):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_args):
        pass


@pytest.fixture(scope="module")
def server():
    """The address of a hub on this machine that has tiny's files."""
    Hub.files = {path.name: path.read_bytes() for path in tiny.CHECKPOINT.iterdir() if path.is_file()}
    Hub.files |= {"consolidated.safetensors": b"twice", "onnx/model.json": b"{}", "m.bin": b""}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def fetching(tmp_path, server):
    """Fetch a model in a process of its own, with an empty cache, and give what was written."""

    def fetch(spec: str, address: str = server, *, offline: bool = False, **environment: str):
        program = (
            "import sys\nfrom swcheck.loading import engines\nfrom swcheck.base.errors import SwcheckError\n"
            f"try:\n    engines.download({spec!r}, offline={offline})\n"
            "except SwcheckError as error:\n    print(error)\n    raise SystemExit(4)\n"
            "assert 'torch' not in sys.modules\n"
        )
        clean = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
        places = {
            "HF_HUB_OFFLINE": "0",
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
        }
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**clean, **places, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stderr
        return done

    return fetch


@pytest.mark.slow
def test_a_model_is_downloaded_once(fetching, tmp_path):
    """A hub id that the cache lacks is downloaded after its size was printed; the next time nothing is."""
    first = fetching("mine/model")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "swcheck: downloading mine/model, 0.0 GB" in first.stderr
    [snapshot] = (tmp_path / "home" / "hub" / "models--mine--model" / "snapshots").iterdir()
    assert (snapshot / "model.safetensors").stat().st_size == (tiny.CHECKPOINT / "model.safetensors").stat().st_size
    assert not {"consolidated.safetensors", "onnx", "m.bin", "README.md"} & {path.name for path in snapshot.iterdir()}
    again = fetching("mine/model", "http://127.0.0.1:9", offline=True)
    assert (again.returncode, again.stderr) == (0, "")


@pytest.mark.slow
def test_half_a_download_is_not_a_model(fetching, tmp_path):
    """Where the cache has the config and not the weights, offline says that the weights are missing."""
    assert fetching("mine/model").returncode == 0
    [snapshot] = (tmp_path / "home" / "hub" / "models--mine--model" / "snapshots").iterdir()
    (snapshot / "model.safetensors").unlink()
    done = fetching("mine/model", offline=True)
    assert done.returncode == 4
    assert "its weights (*.safetensors) are not in the local cache, and downloads are forbidden" in done.stdout
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    (snapshot / "model-00001-of-00002.safetensors").touch()
    done = fetching("mine/model", offline=True)
    assert "found: model-00002-of-00002.safetensors is not in the local cache" in done.stdout
    assert fetching("mine/model").returncode == 0
    (snapshot / "tokenizer.json").unlink()
    done = fetching("mine/model", offline=True)
    assert "found: its tokenizer is not in the local cache" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("mine/gated", "found: it is gated\n  try: accept its licence at https://huggingface.co/mine/gated"),
        ("mine/nothing", "the hub knows no such model"),
        ("mine/pickles", "its weights are no safetensors"),
    ],
)
def test_what_the_hub_refuses_is_said(fetching, spec, said):
    """A gated, an unknown and a pickled repository each have their own words."""
    done = fetching(spec)
    assert done.returncode == 4, done.stderr
    assert said in done.stdout


def test_without_a_network_the_command_that_fetches_is_named(fetching):
    """A known name that is not here, and no network: said with the command that fetches it."""
    done = fetching("llama-7b", "http://127.0.0.1:9")
    assert done.returncode == 4
    assert "hub model huggyllama/llama-7b (llama-7b)" in done.stdout
    assert "not in the local cache, and the hub cannot be reached" in done.stdout
    assert "hf download huggyllama/llama-7b" in done.stdout


def test_the_hubs_own_variable_forbids_it(fetching):
    """With HF_HUB_OFFLINE nothing is tried."""
    done = fetching("llama-7b", HF_HUB_OFFLINE="1")
    assert done.returncode == 4
    assert "downloads are forbidden (offline)" in done.stdout
