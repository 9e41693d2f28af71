"""The weights of a subject, or the runtime that has them: in memory, freed, or loaded again when they are needed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from swcheck.loading.runtime import Runtime
from swcheck.loading.streaming.pager import check_model_files

if TYPE_CHECKING:
    from torch import nn


class HeldModel:
    """A transformers module or a ``Runtime``, and how to load it again. ``reload`` None means it cannot be loaded again.

    ``runtime_title`` is the title of a runtime, empty for a module; it is known while that is freed, too.
    """

    def __init__(
        self, module: nn.Module | Runtime | None = None, reload: Callable[[], nn.Module | Runtime] | None = None
    ) -> None:
        self._module, self._reload = module, reload
        self.runtime_title = module.title if isinstance(module, Runtime) else ""

    @property
    def in_memory(self) -> bool:
        """Whether the module is in memory now."""
        return self._module is not None

    @property
    def is_runtime(self) -> bool:
        """Whether it is a runtime."""
        return bool(self.runtime_title)

    @property
    def is_reloadable(self) -> bool:
        """Whether the module can be loaded again."""
        return self._reload is not None

    @property
    def is_obtainable(self) -> bool:
        """Whether ``obtain`` returns a module: it is in memory, or can be loaded again."""
        return self.in_memory or self.is_reloadable

    def obtain(self) -> nn.Module | Runtime | None:
        """Return the module or runtime, loaded again if need be; None where it was freed for good.

        Raises ``CheckpointError`` if a file that its weights are maps of was changed.
        """
        if self._module is not None and not isinstance(self._module, Runtime):
            check_model_files(self._module)
        if self._module is None and self._reload is not None:
            self._module = self._reload()
        return self._module

    def keep(self) -> None:
        """Keep the module in memory from now on: code outside has it and may have changed it."""
        self._reload = None

    def free(self, reload: Callable[[], nn.Module | Runtime] | None = None) -> None:
        """Drop the reference to the module; ``reload`` loads it again. With None it cannot be loaded again."""
        self._close()
        self._module, self._reload = None, reload

    def free_until_needed(self) -> None:
        """Drop the reference to the module; ``obtain`` loads it again."""
        if self._module is None:
            return
        self._close()
        module = weakref.ref(self._module)
        self._module = None
        if module() is not None:  # the modules of some engines refer to themselves
            gc.collect()

    def discard(self) -> None:
        """Drop the module for good, and free its storage even where something still refers to the module."""
        if self._module is not None and not isinstance(self._module, Runtime):
            with suppress(Exception):  # some packed modules refuse to move; the garbage collector frees those
                self._module.to("meta")
        self.free()

    def _close(self) -> None:
        if isinstance(self._module, Runtime):
            self._module.close()
