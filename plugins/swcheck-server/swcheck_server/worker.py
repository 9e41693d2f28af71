"""What a worker of vLLM shows through the extension of ``in_vllm``, asked over ``/collective_rpc``.

T tokens, H residual width, F inner width.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch

from swcheck import CheckpointError
from swcheck_server.address import Address
from swcheck_server.connection import ask

PATH: Final = "/collective_rpc"
VERSION: Final = 1
"""Of the questions and answers of the extension."""

START: Final = (
    "vLLM shows more if it is started with VLLM_SERVER_DEV_MODE=1, --enforce-eager and "
    "--worker-extension-cls=swcheck_server.in_vllm.Extension"
)


class Worker:
    """The worker of a server. Raises ``CheckpointError`` where it has no such extension, or several workers share the model."""

    def __init__(self, address: Address) -> None:
        self._address = address
        found = self._ask("swcheck_shape")
        shape = found.get("shape") if isinstance(found, Mapping) else None
        if not isinstance(found, Mapping) or found.get("version") != VERSION:
            raise self._wrong(f"{str(found)[:100]!r}, not version {VERSION}")
        if not isinstance(shape, list) or len(shape) != 3 or not all(isinstance(one, int) and one > 0 for one in shape):
            raise self._wrong(str(found.get("reason", shape))[:300])
        self.sizes: tuple[int, int, int] = (shape[0], shape[1], shape[2])

    def _ask(self, method: str, *given: Any) -> Any:
        """Return what one method of the extension answers."""
        found = ask(self._address, "POST", PATH, {"method": method, "args": list(given)}).get("results")
        if not isinstance(found, list) or len(found) != 1:
            raise self._wrong(f"{len(found)} workers share the model" if isinstance(found, list) else "no results")
        return found[0]

    @contextmanager
    def keeping(self, residual: Sequence[int], inputs: Sequence[int]) -> Iterator[None]:
        """Run a block in which it keeps the stream after some layers, and what some down projections read."""
        self._ask("swcheck_keep", list(residual), list(inputs))
        try:
            yield
        finally:
            self._ask("swcheck_keep", [], [])

    def order(self, sent: Sequence[int]) -> list[int]:
        """Return which of the tokens that passed are those of the prompt ``sent``, in its order.

        They may have passed in chunks. Raises ``CheckpointError`` where one is missing, or those of another prompt passed.
        """
        found = self._ask("swcheck_tokens")
        try:
            ids, positions, rows = found["ids"], found["positions"], found["rows"]
            places = {place: n for n, place in enumerate(positions) if place < len(sent)}
            is_whole = sorted(places) == list(range(len(sent))) and sum(one < len(sent) for one in positions) == len(
                sent
            )
            theirs = [ids[places[place]] for place in sorted(places)]
        except (KeyError, TypeError, IndexError) as error:
            raise self._wrong(f"no tokens ({type(error).__name__}: {error})") from error
        if not is_whole or theirs != list(sent):
            words = f"{len(positions)} tokens of other prompts passed, or of this one not all {len(sent)}"
            raise self._wrong(f"{words}: it has to have no other requests")
        silent = next((name for name, count in rows.items() if count != len(positions)), None)
        if silent is not None:
            raise self._wrong(f"its hooks saw {rows[silent]} of {len(positions)} tokens at {silent}: --enforce-eager")
        return [places[place] for place in range(len(sent))]

    def tensor(self, kind: str, layer: int, order: Sequence[int], width: int) -> torch.Tensor:
        """Return ``residual`` or ``inputs`` of a layer, float32 ``(T, width)``, of the tokens ``order``."""
        try:
            raw = base64.b64decode(self._ask("swcheck_tensor", kind, layer), validate=True)
            values = torch.from_numpy(np.frombuffer(raw, "<f4").astype(np.float32).reshape(-1, width))
            return values[list(order)]
        except (TypeError, ValueError, IndexError, binascii.Error) as error:
            raise self._wrong(f"no tensor of {width} channels ({type(error).__name__}: {error})") from error

    def weight(self, place: tuple[int, int, int], size: float) -> float:
        """Return a scalar (layer, row, column) as the map uses it for inputs of ``size``."""
        found = self._ask("swcheck_weight", *place, size)
        value = found.get("value") if isinstance(found, Mapping) else None
        if not isinstance(value, int | float):
            raise self._wrong(f"no value of a weight: {str(found)[:100]}")
        return float(value)

    def correct(self, changes: Mapping[tuple[int, int, int], float]) -> None:
        """Have these added to scalars (layer, row, column), and to no others."""
        self._ask("swcheck_correct", [[*place, change] for place, change in changes.items()])

    def _wrong(self, words: str) -> CheckpointError:
        return CheckpointError(self._address.title, f"{PATH} answers {words}", START)
