"""Lines as inline SVG: training curves in small panels, and the dose-response. Drawn as in ``classify.figures.plots``.

Not promised: an axis in the true scale of a dose-response's amounts; they stand side by side, smallest first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from classify.figures.plots import (
    FONT,
    INK,
    MARKERS,
    MUTED,
    NARROW,
    SERIES,
    SMALL,
    WIDE,
    Interval,
    Plot,
    legend,
    quiet,
    svg_of,
    svg_style,
)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line: x and y of equal length, NaN where nothing was measured."""

    series: int
    x: np.ndarray
    y: np.ndarray
    faint: bool = False


@dataclass(frozen=True, kw_only=True)
class Dose:
    """One arm over the amounts: a mark per amount, and the place of the one that validation chose, if it is its own."""

    name: str
    marks: tuple[Interval, ...]
    chosen: int | None = None


def curve_plot(curves: Sequence[Curve], *, title: str, xlabel: str, names: Mapping[str, int], note: str = "",
               ylim: tuple[float, float] | None = None) -> Plot:
    """Lines over training steps as one small panel; both forms are the same, since small panels simply wrap.

    Panels that are to be compared get one ``ylim``.
    """
    with mpl.rc_context(svg_style(title)):
        figure = Figure(figsize=(290 / 72, 190 / 72))
        axes = figure.add_axes((0.15, 0.22, 0.82, 0.72))
        for curve in curves:
            shown = np.isfinite(curve.y)
            axes.plot(curve.x[shown], curve.y[shown], color=SERIES[curve.series], lw=1 if curve.faint else 1.8,
                      alpha=0.45 if curve.faint else 1, solid_capstyle="round")
        quiet(axes, grid="y")
        axes.set_xlabel(xlabel, color=MUTED)
        axes.locator_params(axis="x", nbins=4)
        axes.locator_params(axis="y", nbins=4)
        axes.set_ylim(ylim)
        svg = svg_of(figure, title)
    lines = tuple(("━", number, name) for name, number in names.items())
    return Plot(title=title, wide=svg, narrow=svg, legend=lines if len(names) > 1 else (), note=note, small=True)


def dose_plot(doses: Sequence[Dose], *, title: str, ticks: Sequence[str], xlabel: str, ylabel: str,
              lines: Mapping[str, float], note: str = "") -> Plot:
    """A line with intervals per arm over amounts; ``ticks`` name the amounts, ``lines`` are levels to read against.

    A ring marks the amount that validation chose for an arm.
    """
    drawn = [_dose_svg(doses, width=width, ticks=ticks, labels=(xlabel, ylabel), lines=lines, name=f"{title}-{width}")
             for width in (WIDE, NARROW)]
    names = legend({dose.name: dose.marks[0].series for dose in doses})
    ring = (("◯", 0, "chosen on validation"),) if any(dose.chosen is not None for dose in doses) else ()
    return Plot(title=title, wide=drawn[0], narrow=drawn[1], legend=names + ring, note=note)


def _dose_svg(doses: Sequence[Dose], *, width: int, ticks: Sequence[str], labels: tuple[str, str],
              lines: Mapping[str, float], name: str) -> Markup:
    """One form of a dose-response."""
    wide = width == WIDE
    height = 300 if wide else 260
    with mpl.rc_context(svg_style(name)):
        figure = Figure(figsize=(width / 72, height / 72))
        left, right = (0.075, 0.9) if wide else (0.14, 0.84)
        axes = figure.add_axes((left, 0.24, right - left, 0.66))
        for at, dose in enumerate(doses):
            _draw_dose(axes, dose, shift=0.07 * (at - (len(doses) - 1) / 2))
        axes.set_xlim(-0.45, len(ticks) - 0.55)
        axes.set_xticks(range(len(ticks)), ticks, fontsize=FONT if wide else SMALL)
        quiet(axes, grid="y")
        axes.locator_params(axis="y", nbins=6)
        axes.set_xlabel(labels[0], color=MUTED, fontsize=FONT if wide else SMALL)
        figure.text(0, 1, labels[1], color=MUTED, va="top", fontsize=FONT if wide else SMALL)
        for value in lines.values():
            axes.axhline(value, color=INK, lw=1, ls=(0, (4, 3)), zorder=1)
        low, high = axes.get_ylim()
        last = -np.inf  # words beside the lines, moved apart where two lines are close
        for word, value in sorted(lines.items(), key=lambda item: item[1]):
            last = max(value, last + 0.07 * (high - low))
            axes.text(1.01, (last - low) / (high - low), word, transform=axes.transAxes, color=MUTED, va="center",
                      fontsize=FONT if wide else SMALL)
        return svg_of(figure, name)


def _draw_dose(axes: Axes, dose: Dose, *, shift: float) -> None:
    """One arm's line, marks, intervals and ring."""
    colour = SERIES[dose.marks[0].series]
    x = np.arange(len(dose.marks)) + shift
    y = np.array([np.nan if mark.value is None else mark.value for mark in dose.marks])
    axes.plot(x, y, color=colour, lw=1.4, marker=MARKERS[dose.marks[0].series], ms=6, zorder=3)
    for place, mark in zip(x, dose.marks, strict=True):
        if mark.low is not None and mark.high is not None:
            axes.plot([place] * 2, [mark.low, mark.high], color=colour, lw=1.4, alpha=0.55, zorder=2)
    if dose.chosen is not None:
        axes.plot([x[dose.chosen]], [y[dose.chosen]], "o", ms=14, mfc="none", color=colour, mew=1.6, zorder=4)
