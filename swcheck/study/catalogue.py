"""The names of the studies, in the order of the paper, and the module of each.

Importing this module does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

from swcheck.base.errors import OptionError

if TYPE_CHECKING:
    from swcheck.study.common.chapter import Chapter

NAMES: Final = ("prune", "activations", "stopwords", "scaling", "weights", "w8a8", "where")


def chapter_of(name: str) -> Chapter:
    """Return the study called ``name``. Raises ``OptionError``, which lists ``NAMES``, for any other name."""
    if name not in NAMES:
        raise OptionError(f"a study called {name!r}", f"there are {', '.join(NAMES)}", "swcheck study MODEL scaling")
    found: Chapter = import_module(f"swcheck.study.chapters.{name}").CHAPTER
    return found
