"""Where the models of a run are put: one answer of those that the options give."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swcheck.base.errors import OptionError
from swcheck.loading import engines
from swcheck.loading.parallel.group import COMMAND
from swcheck.loading.parallel.launch import launch

if TYPE_CHECKING:
    from swcheck.run.settings import Settings


def check_placement(settings: Settings) -> None:
    """Raise a ``SwcheckError`` for two answers to where a model is put, or one that this machine or run does not have."""
    if settings.tensor_parallel:
        _check_tensor_parallel(settings)
    else:
        _check_one_process(settings)
    if settings.stream and (settings.device_map or settings.device not in {None, "cpu"}):
        where = (
            f"--swcheck-device-map={settings.device_map}"
            if settings.device_map
            else f"--swcheck-device={settings.device}"
        )
        raise OptionError(f"--swcheck-stream {where}", "a streamed model runs on the CPU alone", "give one of the two")
    if settings.device is not None:
        engines.check_device(settings.device)
    if settings.device_map is not None:
        _check_device_map(settings.device_map, settings.device)


def _check_tensor_parallel(settings: Settings) -> None:
    if launch() is None:
        raise OptionError("--swcheck-tensor-parallel", "torchrun has not started this process", COMMAND)
    others = {"stream": settings.stream, "device-map": settings.device_map, "device": settings.device}
    other = next((name for name, value in others.items() if value), None)
    if other is not None:
        both = f"--swcheck-tensor-parallel --swcheck-{other}"
        raise OptionError(both, "two answers to where a model is put", "give one of the two")
    for spec in settings.models_to_load:
        engines.check_tensor_parallel(spec)


def _check_one_process(settings: Settings) -> None:
    """Refuse several processes where each would test whole models."""
    found = launch()
    if found is not None and found.count > 1 and settings.specs:
        each = f"{found.count} processes, each of which would test whole models and write the same reports"
        raise OptionError("torchrun", each, "--swcheck-tensor-parallel shares each model among them")


def _check_device_map(device_map: str, device: str | None) -> None:
    if device is not None:
        both = f"--swcheck-device={device} --swcheck-device-map={device_map}"
        raise OptionError(both, "two answers to where a model is put", "give one of the two")
    engines.check_device_map(device_map)
