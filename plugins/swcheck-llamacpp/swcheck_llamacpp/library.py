"""The C interface of llama.cpp, as the shared library of the package ``xllamacpp`` exports it.

The layout of two structures of parameters changes between releases. They are handled as bytes that llama.cpp fills with
its own defaults, and the few fields that are needed are found in them by these defaults; the layout of a tensor is held
against tensors that ggml makes. A layout that does not fit is an error in words, before anything is run.
"""

from __future__ import annotations

import ctypes
import struct
from collections import deque
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Final

from swcheck import EngineError

DEFAULT_SIZES: Final = struct.pack("<IIII", 512, 2048, 512, 1)
"""How the parameters of a context begin: tokens in the context, in a batch, in a pass, and sequences."""
NO_EVALUATION_F16_CACHE: Final = struct.pack("<fQQii", -1.0, 0, 0, 1, 1)
"""A threshold that is off, no evaluation callback and no data for it, keys and values of the cache in float16."""
FOUR_AUTOMATIC: Final = struct.pack("<iiiiff", -1, -1, -1, -1, 0.0, 0.0)
"""Scaling of rope, pooling, kind of attention and flash attention as the model says; rope's base and scale too."""

SOURCES, DATA_NAME, SHAPE, STRIDES = 152, 256, 16, 48
"""The offsets in a tensor: the tensors it is computed from, its name, its sizes, and its strides in bytes."""
F32: Final = 0

EvalCallback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)
_LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)

_SAID: Final = deque[str](maxlen=50)
_LOG: Final = _LogCallback(lambda _level, text, _data: _SAID.append((text or b"").decode("utf-8", "replace").strip()))
# llama.cpp keeps one pointer to it for the whole process and calls it even where a model is freed at exit.
ctypes.pythonapi.Py_IncRef(ctypes.py_object(_LOG))


class Blob(ctypes.Structure):
    """A structure of unknown layout, larger than any release's. Passed by value, the callee reads its beginning."""

    _fields_ = (("bytes", ctypes.c_uint8 * 1024),)


class Batch(ctypes.Structure):
    """``llama_batch``: the tokens of a pass, their positions and sequences, and whether logits are wanted."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


class _Arena(ctypes.Structure):
    """``ggml_init_params``."""

    _fields_ = (("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


_POINTER, _INT, _SIZE = ctypes.c_void_p, ctypes.c_int32, ctypes.c_size_t
_FUNCTIONS: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "llama_backend_init": (None, ()),
    "llama_log_set": (None, (_LogCallback, _POINTER)),
    "llama_model_default_params": (Blob, ()),
    "llama_context_default_params": (Blob, ()),
    "llama_model_load_from_file": (_POINTER, (ctypes.c_char_p, Blob)),
    "llama_model_free": (None, (_POINTER,)),
    "llama_model_get_vocab": (_POINTER, (_POINTER,)),
    "llama_model_n_layer": (_INT, (_POINTER,)),
    "llama_model_n_embd": (_INT, (_POINTER,)),
    "llama_model_n_ctx_train": (_INT, (_POINTER,)),
    "llama_vocab_n_tokens": (_INT, (_POINTER,)),
    "llama_init_from_model": (_POINTER, (_POINTER, Blob)),
    "llama_free": (None, (_POINTER,)),
    "llama_set_n_threads": (None, (_POINTER, _INT, _INT)),
    "llama_get_memory": (_POINTER, (_POINTER,)),
    "llama_memory_clear": (None, (_POINTER, ctypes.c_bool)),
    "llama_memory_seq_rm": (ctypes.c_bool, (_POINTER, _INT, _INT, _INT)),
    "llama_batch_init": (Batch, (_INT, _INT, _INT)),
    "llama_batch_free": (None, (Batch,)),
    "llama_decode": (_INT, (_POINTER, Batch)),
    "llama_get_logits": (_POINTER, (_POINTER,)),
    "llama_tokenize": (
        _INT,
        (_POINTER, ctypes.c_char_p, _INT, ctypes.POINTER(_INT), _INT, ctypes.c_bool, ctypes.c_bool),
    ),
    "ggml_init": (_POINTER, (_Arena,)),
    "ggml_free": (None, (_POINTER,)),
    "ggml_new_tensor_2d": (_POINTER, (_POINTER, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)),
    "ggml_mul_mat": (_POINTER, (_POINTER, _POINTER, _POINTER)),
    "ggml_set_name": (_POINTER, (_POINTER, ctypes.c_char_p)),
    "ggml_backend_tensor_get": (None, (_POINTER, _POINTER, _SIZE, _SIZE)),
    "ggml_backend_tensor_set": (None, (_POINTER, _POINTER, _SIZE, _SIZE)),
    "ggml_quantize_chunk": (
        _SIZE,
        (ctypes.c_int, _POINTER, _POINTER, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, _POINTER),
    ),
    "ggml_row_size": (_SIZE, (ctypes.c_int, ctypes.c_int64)),
}


@dataclass(frozen=True)
class Library:
    """llama.cpp's functions in ``c``; its version; the last lines that it said; the offsets of what is set."""

    c: Any
    version: str
    said: deque[str]
    callback_at: int
    flash_at: int

    def last_words(self) -> str:
        """Return the first line that names an error, else the last line, and forget all."""
        lines = [line for line in self.said if line]
        self.said.clear()
        return next((line for line in lines if "error" in line), lines[-1] if lines else "")


@cache
def library() -> Library:
    """Load the library once, hold its layouts against what is expected, and keep what it says from the terminal.

    Raises ``EngineError`` for a release whose structures are not understood.
    """
    found = find_spec("xllamacpp.xllamacpp")
    title = f"llama.cpp of xllamacpp {version('xllamacpp')}"
    if found is None or found.origin is None:
        raise EngineError(title, "the package has no shared library", "pip install 'xllamacpp>=2026.10'")
    c = ctypes.CDLL(found.origin)
    for name, (result, arguments) in _FUNCTIONS.items():
        if not hasattr(c, name):
            raise EngineError(title, f"it exports no {name}", "pip install 'xllamacpp==2026.10.11549'")
        function = getattr(c, name)
        function.restype, function.argtypes = result, arguments
    c.llama_log_set(_LOG, None)
    c.llama_backend_init()
    defaults = bytes(c.llama_context_default_params().bytes)
    evaluation, automatic = defaults.find(NO_EVALUATION_F16_CACHE, 0, 256), defaults.find(FOUR_AUTOMATIC, 0, 256)
    if not defaults.startswith(DEFAULT_SIZES) or evaluation < 0 or automatic < 0:
        raise EngineError(title, "the parameters of a context have another layout", "xllamacpp==2026.10.11549")
    _check_tensor_layout(c, title)
    _check_batch_layout(c, title)
    return Library(c, version("xllamacpp"), _SAID, evaluation + 4, automatic + 12)


def _check_tensor_layout(c: Any, title: str) -> None:
    """Hold the offsets in a tensor against a product of two that ggml makes."""
    arena = c.ggml_init(_Arena(2**20, None, True))
    try:
        one, other = c.ggml_new_tensor_2d(arena, F32, 5, 3), c.ggml_new_tensor_2d(arena, F32, 5, 7)
        product = c.ggml_mul_mat(arena, one, other)
        c.ggml_set_name(product, b"a product")
        sizes = [ctypes.c_int64.from_address(product + SHAPE + 8 * axis).value for axis in range(4)]
        step = ctypes.c_size_t.from_address(product + STRIDES + 8).value
        sources = [ctypes.c_void_p.from_address(product + SOURCES + 8 * place).value for place in range(2)]
        named = ctypes.string_at(product + DATA_NAME)
    finally:
        c.ggml_free(arena)
    if (sizes, step, sources, named) != ([3, 7, 1, 1], 12, [one, other], b"a product"):
        raise EngineError(title, "a tensor has another layout", "xllamacpp==2026.10.11549")


def _check_batch_layout(c: Any, title: str) -> None:
    batch = c.llama_batch_init(4, 0, 1)
    fits = batch.n_tokens == 0 and not batch.embd
    fits = fits and all((batch.token, batch.pos, batch.n_seq_id, batch.seq_id, batch.logits))
    if not fits:
        raise EngineError(title, "a batch has another layout", "xllamacpp==2026.10.11549")
    c.llama_batch_free(batch)


@dataclass(frozen=True)
class Tensor:
    """A tensor of a pass, by its address."""

    c: Any
    at: int

    @property
    def name(self) -> str:
        """Its name."""
        return ctypes.string_at(self.at + DATA_NAME).decode("utf-8", "replace")

    @property
    def is_float(self) -> bool:
        """Whether its elements are float32."""
        return ctypes.c_int.from_address(self.at).value == F32

    @property
    def shape(self) -> tuple[int, int]:
        """The number of tokens, and of channels."""
        columns, rows = (ctypes.c_int64.from_address(self.at + SHAPE + 8 * axis).value for axis in range(2))
        return rows, columns

    @property
    def token_step(self) -> int:
        """The bytes from one token to the next."""
        return ctypes.c_size_t.from_address(self.at + STRIDES + 8).value

    def source(self, place: int) -> Tensor | None:
        """The tensor that it is computed from, at a place; None where there is none."""
        found = ctypes.c_void_p.from_address(self.at + SOURCES + 8 * place).value
        return Tensor(self.c, found) if found else None
