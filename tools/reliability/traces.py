"""What a model and its process are, as far as something could leave a trace in them: compared before and after."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import signal
import sys
import threading
import warnings
from typing import Any

import numpy as np
import torch

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")


def state_of(model: torch.nn.Module) -> dict[str, Any]:
    """Return everything that has to be as before: of the model every bit, object, hook and flag; of the process the rest."""
    return {**_process(), **_model(model)}


def _process() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - the state that others may have moved
    return {
        "random of Python": hash(random.getstate()),
        "random of numpy": (kind, keys.tobytes(), *rest),  # type: ignore[union-attr]
        "random of torch": hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest(),
        "dtype": torch.get_default_dtype(),
        "threads of torch": torch.get_num_threads(),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()),
        "environment": dict(os.environ),
        "warnings": list(warnings.filters),
        "logging": (logging.root.manager.disable, logging.root.level, list(logging.root.handlers)),
        "streams": (sys.stdout, sys.stderr),
        "tracer": sys.gettrace(),
        "alarm": (signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)),
        "threads": sum(one.name != "tqdm_monitor" for one in threading.enumerate()),  # comes and goes with its bars
    }


def _model(model: torch.nn.Module) -> dict[str, Any]:
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    modules = list(model.named_modules(remove_duplicate=False))
    return {
        "bits": {name: _digest(tensor) for name, tensor in tensors},
        "objects": {name: (id(tensor), tensor.requires_grad) for name, tensor in tensors},
        "modules": {name: (id(module), module.training) for name, module in modules},
        "hooks": {name: [len(getattr(module, kind)) for kind in _HOOKS] for name, module in modules},
        "own forward": [name for name, module in modules if "forward" in vars(module)],
        "config": str(getattr(model, "config", "")),
        "attention": getattr(getattr(model, "config", None), "_attn_implementation", None),
    }


def _digest(tensor: torch.Tensor) -> str:
    """Return a digest of the bits of a tensor; of a packed one, of those of its parts."""
    digest = hashlib.blake2b(digest_size=16)
    for part in _parts(tensor.detach()):
        digest.update(part.contiguous().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if type(tensor) in {torch.Tensor, torch.nn.Parameter} or flatten is None:
        return [tensor.as_subclass(torch.Tensor)]
    return [leaf for name in flatten()[0] for leaf in _parts(getattr(tensor, name))]


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the names of what is not as before, with the first place where one is a table."""
    found = []
    for name, was in before.items():
        now = after[name]
        if was != now:
            places = [key for key in was if was[key] != now.get(key)] if isinstance(was, dict) else []
            found.append(f"{name}{f' of {places[0]}' if places else ''}")
    return found
