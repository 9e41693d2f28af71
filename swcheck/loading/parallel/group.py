"""Joins the processes of torchrun, and places a model in them."""

from __future__ import annotations

import importlib
import time
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from swcheck.base.errors import EngineError, OptionError
from swcheck.loading.parallel.launch import Launch, launch
from swcheck.loading.parallel.plan import shared_maps

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

COMMAND: Final = "torchrun --nproc-per-node=2 -m pytest --model=... --swcheck-tensor-parallel"
POLL_SECONDS: Final = 0.02
"""So often a process looks for what another one has written."""

JOINING: Final = "swcheck/joining"
"""The beginning of the keys under which the processes meet."""

JOIN_SECONDS: Final = 1800
"""So long a process waits for the others to meet: each comes when it loads its first model."""

CONFIGURATION: Final = "transformers.distributed.configuration_utils"


def checked_launch() -> Launch:
    """Return which process of torchrun this is. Raises ``OptionError`` if torchrun has not started it."""
    found = launch()
    if found is None:
        raise OptionError("tensor parallel", "torchrun has not started this process", COMMAND)
    return found


@cache
def store_of_processes() -> Store:
    """Return the store through which the processes of torchrun speak to each other."""
    from torch.distributed.rendezvous import rendezvous

    found: Store = next(iter(rendezvous("env://")))[0]
    return found


def wait_for(store: Store, key: str, seconds: float) -> str:
    """Return what another process has written under a key. Raises ``TimeoutError`` where it does not within ``seconds``.

    It asks again and again, since torch waits without a look at signals.
    """
    end = time.monotonic() + seconds
    while not store.check([key]):
        if time.monotonic() > end:
            raise TimeoutError(f"{key} after {seconds:g} s")
        time.sleep(POLL_SECONDS)
    return str(store.get(key).decode())


def _join() -> None:
    """Join the processes in one group, unless they have. The backend is gloo on CPUs, else that of the accelerator.

    They meet first: while torch joins them, a process that waits for another one looks at no signal.
    """
    import torch
    from torch import distributed
    from torch.distributed.distributed_c10d import PrefixStore

    if distributed.is_initialized():
        return
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device, own = None, checked_launch()
    if accelerator is not None:
        if own.local_rank >= torch.accelerator.device_count():
            found = f"process {own.local_rank} of a machine with {torch.accelerator.device_count()}"
            raise OptionError("tensor parallel, an accelerator for each process", found, "a smaller --nproc-per-node")
        device = torch.device(accelerator.type, own.local_rank)
        torch.accelerator.set_device_index(device)
    store = store_of_processes()
    store.set(f"{JOINING}/{own.rank}", "here")
    for rank in range(own.count):
        wait_for(store, f"{JOINING}/{rank}", JOIN_SECONDS)
    distributed.init_process_group(
        None if accelerator is not None else "gloo",
        store=PrefixStore("group", store),
        rank=own.rank,
        world_size=own.count,
        device_id=device,
    )


def placement(model: Any, name: str) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` that share a model among the processes of torchrun; none for one process.

    ``model`` is on the ``meta`` device, ``name`` its name in messages. Raises ``OptionError`` without torchrun, and what
    ``shared_maps`` raises; ``EngineError`` for a checkpoint that is packed, or a version of transformers that cannot.
    """
    count = checked_launch().count
    if count == 1:
        return {}
    if getattr(model.config, "quantization_config", None):
        found = "a packed checkpoint, whose codes transformers cannot cut in rows"
        raise EngineError(f"tensor parallel, {name}", found, "one process, or the model before quantization")
    plan = shared_maps(model, count, name)
    try:
        configuration: Any = importlib.import_module(CONFIGURATION).DistributedConfig
    except (ImportError, AttributeError) as error:
        found = "this version of transformers shares no model among processes"
        raise EngineError(f"tensor parallel, {name}", found, "pip install 'transformers>=5.17'") from error
    _join()
    return {"distributed_config": configuration(tp_size=count, tp_plan=plan)}
