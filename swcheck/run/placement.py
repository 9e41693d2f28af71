"""Where the models of a run are put: one answer of those that the options give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swcheck.base.errors import OptionError
from swcheck.loading import engines
from swcheck.loading.parallel.group import COMMAND
from swcheck.loading.parallel.launch import launch


@dataclass(frozen=True)
class Placement:
    """What the options of a run say about where its models are put, as in ``Settings``."""

    device: str | None
    device_map: str | None
    stream: bool
    tensor_parallel: bool


def check_placement(asked: Placement, specs: Sequence[str], to_load: Sequence[str]) -> None:
    """Raise a ``SwcheckError`` for two answers to where a model is put, or one that this machine or run does not have.

    ``specs`` are the models and candidates of the run, ``to_load`` those that no baseline stands for.
    """
    if asked.tensor_parallel:
        _check_tensor_parallel(asked, to_load)
    elif specs:
        _check_one_process()
    if asked.stream and (asked.device_map or asked.device not in {None, "cpu"}):
        where = f"--swcheck-device-map={asked.device_map}" if asked.device_map else f"--swcheck-device={asked.device}"
        raise OptionError(f"--swcheck-stream {where}", "a streamed model runs on the CPU alone", "give one of the two")
    if asked.device is not None:
        engines.check_device(asked.device)
    if asked.device_map is not None:
        _check_device_map(asked.device_map, asked.device)


def _check_tensor_parallel(asked: Placement, to_load: Sequence[str]) -> None:
    if launch() is None:
        raise OptionError("--swcheck-tensor-parallel", "torchrun has not started this process", COMMAND)
    others = {"stream": asked.stream, "device-map": asked.device_map, "device": asked.device}
    other = next((name for name, value in others.items() if value), None)
    if other is not None:
        both = f"--swcheck-tensor-parallel --swcheck-{other}"
        raise OptionError(both, "two answers to where a model is put", "give one of the two")
    for spec in to_load:
        engines.check_tensor_parallel(spec)


def _check_one_process() -> None:
    """Refuse several processes where each would test whole models."""
    found = launch()
    if found is not None and found.count > 1:
        each = f"{found.count} processes, each of which would test whole models and write the same reports"
        raise OptionError("torchrun", each, "--swcheck-tensor-parallel shares each model among them")


def _check_device_map(device_map: str, device: str | None) -> None:
    if device is not None:
        both = f"--swcheck-device={device} --swcheck-device-map={device_map}"
        raise OptionError(both, "two answers to where a model is put", "give one of the two")
    engines.check_device_map(device_map)
