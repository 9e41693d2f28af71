"""The engine ``onnx``: an ONNX graph, or the reference exported as one, computed by ONNX Runtime.

On the fly torch's own exporter writes the graph, and ONNX Runtime's own tools quantize it: weights and activations to 8
bits, or weights to 4 bits in blocks of 32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from swcheck import CheckpointError, EngineRequest, Loaded, OptionError, check_packages, read_request

SCHEMES: Final = ("f32", "int8", "int4")
PACKAGES: Final = (("onnx", "onnx>=1.20"), ("onnxruntime", "onnxruntime>=1.24"), ("onnxscript", "onnxscript>=0.6"))
OPTIONS: Final = ("threads",)


@dataclass(frozen=True)
class OnnxEngine:
    """``onnx:DIRECTORY``, ``onnx:FILE.onnx``, ``onnx:SCHEME``, with ``,threads=2`` and ``,skip=NAME`` for a scheme."""

    name: str = "onnx"
    trust_remote_code: bool = False
    offline: bool = False

    def check(self, spec: str) -> EngineRequest:
        """Raise what ``load`` does for a file that is not there, another scheme or option, or without its packages."""
        path, comma, options = spec.partition(",")
        is_path = path.endswith(".onnx") or any(mark in path for mark in "/\\~.")
        known = ("DIRECTORY", *SCHEMES)
        request = read_request(
            "onnx", f"DIRECTORY{comma}{options}" if is_path else spec, known, options=OPTIONS, packages=PACKAGES
        )
        if is_path:
            if request.names:
                raise OptionError(f"skip= in onnx:{spec}", "a graph is as it is", "leave it out")
            check_packages(f"onnx:{spec}", PACKAGES)
            request = replace(request, scheme=str(_graph_in(path)), spec=spec)
        threads = request.options.get("threads", "1")
        if not threads.isdecimal() or int(threads) < 1:
            raise OptionError(f"threads={threads} in onnx:{spec}", "no positive number", "threads=1")
        return request

    def load(self, spec: str, *, reference: str | None, device: str | None, dtype: str | None) -> Loaded:
        """Return the graph in ONNX Runtime, with the reference's tokenizer and text beside it."""
        from swcheck_onnx.graph import exported, quantized, scheme_of
        from swcheck_onnx.runtime import OnnxRuntime, read

        asked = self.check(spec)
        base = asked.load_reference(reference, self, device=device, dtype=dtype)
        if asked.scheme in SCHEMES:
            kept = asked.modules_to_skip(base.model)
            graph = quantized(exported(base.model), asked.scheme, kept)
            tokenizer, source = None, base.source
        else:
            graph, source = read(Path(asked.scheme)), asked.scheme
            folder = Path(asked.scheme).parent
            tokenizer = folder if (folder / "tokenizer.json").is_file() else None
        base.model.to("meta")
        runtime = OnnxRuntime(graph, f"onnx:{spec}", int(asked.options.get("threads", "1")), tokenizer)
        return Loaded(runtime, base.tokenizer, f"onnx:{spec}", base.text, source, scheme_of(graph))


ENGINE: Final = OnnxEngine()


def _graph_in(path: str) -> Path:
    """Return the file of a graph. Raises ``CheckpointError`` where there is none, or several."""
    found = Path(path).expanduser()
    title = f"onnx:{path}"
    if found.is_dir():
        files = sorted(found.glob("*.onnx")) or sorted(found.glob("onnx/*.onnx"))
        named = [file for file in files if file.stem == "model"] or files
        if len(named) != 1:
            words = ", ".join(file.name for file in files[:5]) or "no .onnx file in it"
            raise CheckpointError(title, words, "give the path of one .onnx file")
        return named[0]
    if not found.is_file():
        raise CheckpointError(title, "no such file", "give a directory with model.onnx, or a .onnx file")
    return found
