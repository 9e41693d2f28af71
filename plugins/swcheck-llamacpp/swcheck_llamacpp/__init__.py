"""The engine ``llamacpp``: a GGUF file, or the reference written as one, computed by llama.cpp itself.

The numbers are llama.cpp's own: its logits, its tokenizer, the tensors that its evaluation callback shows. What the
callback is told to override it corrects in the output of the down projection. K-quants and 4-bit floats are encoded by
ggml's own functions.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from swcheck import CheckpointError, EngineRequest, Loaded, OptionError, check_packages, read_gguf_header, read_request

SCHEMES: Final = (
    "f32", "f16", "q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0", "q3_k", "q2_k", "mxfp4", "nvfp4",
)  # fmt: skip
PACKAGES: Final = (("xllamacpp", "xllamacpp>=2026.10"), ("gguf", "gguf>=0.17"), ("swcheck_gguf", "swcheck-gguf"))
OPTIONS: Final = ("batch", "cache", "flash", "threads")
_MADE: Final[dict[tuple[str, str], Any]] = {}
"""The folders of files that were made, by reference and spec: a candidate that is freed for its twin leaves it behind."""


@dataclass(frozen=True)
class LlamaCppEngine:
    """``llamacpp:PATH.gguf`` or ``llamacpp:SCHEME``, with ``,cache=q8_0,flash=on,batch=64,threads=2,skip=NAME``."""

    name: str = "llamacpp"
    trust_remote_code: bool = False
    offline: bool = False

    def check(self, spec: str) -> EngineRequest:
        """Raise what ``load`` does for a file that is not there, another scheme or option, or without its packages."""
        path, comma, options = spec.partition(",")
        if not path.endswith(".gguf"):
            request = read_request("llamacpp", spec, ("FILE.gguf", *SCHEMES), options=OPTIONS, packages=PACKAGES)
        elif not Path(path).expanduser().exists():
            raise CheckpointError(f"llamacpp:{spec}", "no such file", "give the path of a .gguf file")
        else:
            read_gguf_header(Path(path).expanduser())
            check_packages(f"llamacpp:{spec}", PACKAGES)
            known = read_request("llamacpp", f"FILE.gguf{comma}{options}", ("FILE.gguf",), options=OPTIONS)
            if known.names:
                raise OptionError(f"skip= in llamacpp:{spec}", "a file is as it is", "leave it out")
            request = replace(known, scheme=path, spec=spec)
        _check_options(request)
        return request

    def load(self, spec: str, *, reference: str | None, device: str | None, dtype: str | None) -> Loaded:
        """Return the file in llama.cpp, with the reference's tokenizer and text beside it."""
        from swcheck_gguf import scheme_of

        from swcheck_llamacpp.passes import Settings
        from swcheck_llamacpp.runtime import LlamaCpp
        from swcheck_llamacpp.writing import write

        asked = self.check(spec)
        base = asked.load_reference(reference, self, device=device, dtype=dtype)
        folder: Any = None
        if asked.scheme in SCHEMES:
            folder = _MADE[str(reference), spec] = TemporaryDirectory(prefix="swcheck-llamacpp-")
            file = Path(folder.name, f"{asked.scheme}.gguf")
            write(base.model, base.tokenizer, file, asked.scheme, asked.modules_to_skip(base.model))
        else:
            file = Path(asked.scheme).expanduser().resolve()
        base.model.to("meta")
        given = asked.options
        batch, threads = given.get("batch"), given.get("threads") or os.environ.get("OMP_NUM_THREADS") or "1"
        settings = Settings(batch and int(batch), given.get("cache", "f16"), given.get("flash"), int(threads))
        said = "".join(f", {key}={value}" for key, value in given.items())
        runtime = LlamaCpp(file, settings, said, folder)
        source = base.source if folder else str(file)
        return Loaded(runtime, base.tokenizer, f"llamacpp:{spec}", base.text, source, scheme_of(file))


ENGINE: Final = LlamaCppEngine()


def _check_options(request: EngineRequest) -> None:
    """Raise ``OptionError`` for a value that an option does not take."""
    known = {"cache": ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"), "flash": ("on", "off")}
    for name, value in request.options.items():
        if name in known and value not in known[name]:
            raise OptionError(f"{name}={value} in {request.title}", f"known: {', '.join(known[name])}", "one of them")
        if name not in known and not (value.isdecimal() and int(value) > 0):
            raise OptionError(f"{name}={value} in {request.title}", "no positive number", f"{name}=1")
