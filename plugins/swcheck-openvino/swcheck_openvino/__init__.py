"""The engine ``openvino``: an OpenVINO IR, or the reference converted to one, computed by OpenVINO.

On the fly OpenVINO's own converter reads the torch module, and nncf compresses its weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from swcheck import CheckpointError, EngineRequest, Loaded, OptionError, check_packages, read_request

SCHEMES: Final = ("f32", "int8", "int4", "int4-asym")
PACKAGES: Final = (("openvino", "openvino>=2026.0"), ("nncf", "nncf>=3.0"))
OPTIONS: Final = ("cache", "group", "precision", "threads")
KNOWN: Final = {"precision": ("f32", "bf16", "f16"), "cache": ("f32", "bf16", "f16", "u8", "u4")}
"""What computations and the key-value cache may be in."""


@dataclass(frozen=True)
class OpenVinoEngine:
    """``openvino:DIRECTORY``, ``openvino:FILE.xml`` or ``openvino:SCHEME``, with ``,precision=f32,cache=u8,threads=2``.

    A scheme takes ``,group=64`` (for 4 bits) and ``,skip=NAME``.
    """

    name: str = "openvino"
    trust_remote_code: bool = False
    offline: bool = False

    def check(self, spec: str) -> EngineRequest:
        """Raise what ``load`` does for a file that is not there, another scheme or option, or without its packages."""
        path, comma, options = spec.partition(",")
        is_path = path.endswith(".xml") or any(mark in path for mark in "/\\~.")
        known, asked = ("DIRECTORY", *SCHEMES), f"DIRECTORY{comma}{options}" if is_path else spec
        request = read_request("openvino", asked, known, options=OPTIONS, packages=PACKAGES)
        if is_path:
            if request.names or "group" in request.options:
                raise OptionError(f"skip= or group= in openvino:{spec}", "an IR is as it is", "leave it out")
            check_packages(f"openvino:{spec}", PACKAGES)
            request = replace(request, scheme=str(_ir_in(path)), spec=spec)
        request.group_size(64)
        threads = request.options.get("threads", "1")
        for name, known_types in KNOWN.items():
            given = request.options.get(name, known_types[0])
            if given not in known_types:
                raise OptionError(
                    f"{name}={given} in openvino:{spec}", f"known: {', '.join(known_types)}", f"{name}=f32"
                )
        if not threads.isdecimal() or int(threads) < 1:
            raise OptionError(f"threads={threads} in openvino:{spec}", "no positive number", "threads=1")
        return request

    def load(self, spec: str, *, reference: str | None, device: str | None, dtype: str | None) -> Loaded:
        """Return the IR in OpenVINO, with the reference's tokenizer and text beside it."""
        from swcheck_openvino.graph import compressed, converted, read, scheme_of
        from swcheck_openvino.runtime import OpenVino

        asked = self.check(spec)
        base = asked.load_reference(reference, self, device=device, dtype=dtype)
        if asked.scheme in SCHEMES:
            kept = asked.modules_to_skip(base.model)
            graph = compressed(converted(base.model), asked.scheme, asked.group_size(64), kept)
            tokenizer, source = None, base.source
        else:
            graph, source = read(Path(asked.scheme)), asked.scheme
            folder = Path(asked.scheme).parent
            tokenizer = folder if (folder / "tokenizer.json").is_file() else None
        base.model.to("meta")
        runtime = OpenVino(graph, f"openvino:{spec}", asked.options, tokenizer)
        return Loaded(runtime, base.tokenizer, f"openvino:{spec}", base.text, source, scheme_of(graph))


ENGINE: Final = OpenVinoEngine()


def _ir_in(path: str) -> Path:
    """Return the file of an IR. Raises ``CheckpointError`` where there is none, or several."""
    found, title = Path(path).expanduser(), f"openvino:{path}"
    if found.is_dir():
        files = sorted(found.glob("*.xml"))
        named = [file for file in files if file.stem == "openvino_model"] or files
        if len(named) != 1:
            words = ", ".join(file.name for file in files[:5]) or "no .xml file in it"
            raise CheckpointError(title, words, "give the path of one .xml file")
        return named[0]
    if not found.is_file():
        raise CheckpointError(title, "no such file", "give a directory with openvino_model.xml, or an .xml file")
    return found
