"""The style of the pictures, and the function that writes them.

matplotlib is an optional extra, so every import of it stands inside a function. The colours are the eight of Okabe and
Ito, which colour-blind readers can tell apart; each line also has its own marker. A study fills a figure that it is
given, and labels the axes with units.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from swcheck.base.errors import ExtraError
from swcheck.base.output_files import write_atomically
from swcheck.study.common.setup import ACCURACY

if TYPE_CHECKING:
    from swcheck.study.common.record import Study

INSTALL: Final = "pip install 'swcheck[plots]'"
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS: Final = "os^Dvp*X"
SIZE: Final = (9.0, 4.2)
STYLE: Final = {
    "font.size": 10,
    "text.parse_math": False,  # a name may have dollar signs
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
}


def why_unavailable() -> str:
    """Return why no picture can be drawn, or an empty string if matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401, ICN001
    except ImportError:
        return f"matplotlib is not installed ({INSTALL})"
    return ""


def check_available(asked: str) -> None:
    """Raise ``ExtraError`` if no picture can be drawn; ``asked`` says what was asked for."""
    reason = why_unavailable()
    if reason:
        raise ExtraError(asked, reason, INSTALL)


@contextmanager
def _style() -> Iterator[Any]:
    import matplotlib as mpl
    from cycler import cycler

    cycle = cycler(color=COLOURS) + cycler(marker=list(MARKERS))
    with mpl.rc_context({**STYLE, "axes.prop_cycle": cycle}):
        yield mpl


def write_picture(path: Path, title: str, fill: Callable[[Any], None], *, size: tuple[float, float] = SIZE) -> None:
    """Draw one figure without a display and write it to ``path``, whole or not at all: SVG by its suffix, else PNG.

    ``fill`` draws into it; ``size`` is in inches. Raises ``ExtraError`` without matplotlib.
    """
    check_available(f"a picture {path.name}")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with _style():
        figure = Figure(figsize=size, dpi=150)
        FigureCanvasAgg(figure)
        figure.suptitle(title, fontsize=11)
        fill(figure)
        if _has_error_bars(figure):
            figure.suptitle(f"{title}; {ERROR_BARS}", fontsize=11)
        _label_powers_plainly(figure)
        picture = io.BytesIO()
        figure.savefig(picture, format="svg" if path.suffix.lower() == ".svg" else "png")
        write_atomically(path, picture.getvalue())


ERROR_BARS: Final = "error bars: one standard error"
"""What the error bars of a study's pictures are; behind the title of each picture that has some."""


def _has_error_bars(figure: Any) -> bool:
    from matplotlib.container import ErrorbarContainer

    containers = [container for axes in figure.axes for container in axes.containers]
    return any(isinstance(container, ErrorbarContainer) and container.has_yerr for container in containers)


def _label_powers_plainly(figure: Any) -> None:
    """Write the ticks of logarithmic axes as plain numbers: their own labels are formulas, which the style leaves unread."""
    from matplotlib.ticker import LogFormatter, LogFormatterMathtext

    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        if axis.get_scale() == "log":
            if isinstance(axis.get_major_formatter(), LogFormatterMathtext):
                axis.set_major_formatter(lambda value, _position: f"{value:,.10g}")
            if isinstance(axis.get_minor_formatter(), LogFormatterMathtext):
                axis.set_minor_formatter(LogFormatter(labelOnlyBase=False))


def single_axes(figure: Any) -> Any:
    """Add one axes object to an empty figure and return it."""
    return figure.subplots()


def ratio_axis(axes: Any, xlabel: str) -> None:
    """Label a logarithmic axis of perplexity over the intact model's perplexity, with a line at x1 (no change)."""
    axes.set_yscale("log")
    axes.axhline(1.0, color="0.6", linewidth=0.8, linestyle="--", marker="")
    axes.set_xlabel(xlabel)
    axes.set_ylabel("perplexity, times the intact model's")


def percent_axis(axes: Any, xlabel: str) -> None:
    """Label an axis of the percentage added to the intact model's perplexity: linear up to 1 %, logarithmic above."""
    axes.set_yscale("symlog", linthresh=1.0, linscale=0.5)
    axes.axhline(0.0, color="0.6", linewidth=0.8, linestyle="--", marker="")
    axes.yaxis.set_major_formatter(lambda value, _position: f"{value:+z,.0f} %")
    axes.set_xlabel(xlabel)
    axes.set_ylabel("perplexity above the intact model's")


def accuracy_axis(axes: Any, xlabel: str, study: Study) -> None:
    """Label an axis of zero-shot accuracy from 0 to 1, with a legend if accuracy was measured."""
    axes.set_ylim(0.0, 1.0)
    axes.set_xlabel(xlabel)
    axes.set_ylabel("zero-shot accuracy")
    if study.has(ACCURACY):
        axes.legend()


def measured_tasks(study: Study) -> tuple[str, ...]:
    """Return the zero-shot tasks that were measured, in order."""
    return tuple(dict.fromkeys(point.task for point in study.select(ACCURACY) if point.task is not None))
