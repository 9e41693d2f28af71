"""How the pictures look, and how they are written. Only this room imports matplotlib, which is an extra.

Colours are Okabe and Ito's eight, told apart by the colour-blind; every line has a marker of its own as well. A study
fills a figure that it is handed, with its units at the axes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from swcheck.base.errors import ExtraError
from swcheck.study.common.setup import ACCURACY

if TYPE_CHECKING:
    from swcheck.study.common.record import Study

INSTALL: Final = "pip install 'swcheck[plots]'"
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS: Final = "os^Dvp*X"
SIZE: Final = (9.0, 4.2)
STYLE: Final = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
}


def available() -> str:
    """Why no picture can be drawn, in words; empty where one can."""
    try:
        import matplotlib  # noqa: F401, ICN001
    except ImportError:
        return f"matplotlib is not installed ({INSTALL})"
    return ""


@contextmanager
def _style() -> Iterator[Any]:
    import matplotlib as mpl
    from cycler import cycler

    cycle = cycler(color=COLOURS) + cycler(marker=list(MARKERS))
    with mpl.rc_context({**STYLE, "axes.prop_cycle": cycle}):
        yield mpl


def write_picture(path: Path, title: str, fill: Callable[[Any], None], *, size: tuple[float, float] = SIZE) -> None:
    """Draw one figure without a screen and write it whole, or not at all. Raises ``ExtraError`` without matplotlib."""
    missing = available()
    if missing:
        raise ExtraError(f"a picture {path.name}", missing, INSTALL)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with _style():
        figure = Figure(figsize=size, dpi=150)
        FigureCanvasAgg(figure)
        figure.suptitle(title, fontsize=11)
        fill(figure)
        part = path.with_name(f"{path.name}.part")
        figure.savefig(part, format="png")
        part.replace(path)


def alone(figure: Any) -> Any:
    """The only axes of a figure."""
    return figure.subplots()


def ratio_axis(axes: Any, xlabel: str) -> None:
    """A logarithmic axis of perplexity over the intact model's, with a line where nothing has changed."""
    axes.set_yscale("log")
    axes.axhline(1.0, color="0.6", linewidth=0.8, linestyle="--", marker="")
    axes.set_xlabel(xlabel)
    axes.set_ylabel("perplexity, times the intact model's")


def rise_axis(axes: Any, xlabel: str) -> None:
    """An axis of what is added to the intact model's perplexity in percent: logarithmic above one, even around zero."""
    axes.set_yscale("symlog", linthresh=1.0, linscale=0.5)
    axes.axhline(0.0, color="0.6", linewidth=0.8, linestyle="--", marker="")
    axes.yaxis.set_major_formatter(lambda value, _place: f"{value:+,.0f} %")
    axes.set_xlabel(xlabel)
    axes.set_ylabel("perplexity above the intact model's")


def accuracy_axis(axes: Any, xlabel: str, study: Study) -> None:
    """An axis of zero-shot accuracy with its legend."""
    axes.set_ylim(0.0, 1.0)
    axes.set_xlabel(xlabel)
    axes.set_ylabel("zero-shot accuracy")
    if study.has(ACCURACY):
        axes.legend()


def by_task(study: Study) -> tuple[str, ...]:
    """The zero-shot tasks that were measured."""
    return tuple(dict.fromkeys(one.task for one in study.select(ACCURACY) if one.task is not None))
