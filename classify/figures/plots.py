"""The report's plots as inline SVG that follows the page: its font, its colours, light or dark.

matplotlib draws with marker colours that no eye would choose; afterwards each is replaced by the CSS variable that it
stands for (``--ink``, ``--s3``), so one drawing serves screen, dark screen and paper. Text stays text. Widths are CSS
pixels (1 unit of the SVG = 1 px at natural size). Every figure exists in a wide and a narrow form, because a wide one
scaled to a phone cannot be read. Equal input gives equal bytes. The SVG is not meant to be opened outside the page.
"""

import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

WIDE, NARROW = 900, 350
"""CSS pixels: the report's column on a desktop, and what is left of a 390 px phone."""
INK, MUTED, RULE = "#010101", "#020202", "#030303"
SERIES = tuple(f"#0{i}0{i}0{i}" for i in range(4, 10))
VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", **{c: f"--s{i}" for i, c in enumerate(SERIES)}}
"""Colour in the drawing -> CSS variable in the page."""
MARKERS, GLYPHS = ("o", "^", "s", "D", "v", "P"), ("●", "▲", "■", "◆", "▼", "✚")
"""One form per series beside its colour, for readers who see no colour."""
ARMS = {"real": 0, "oversample": 1, "duplicate": 2, "synthetic": 3}
FONT, SMALL = 12, 10.5
"""Sizes of text, px: normal, and where two lines share a row or the page is narrow."""
ROW, PAD = 24, 44
"""Height of a row and of the axis below, px."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """One mark in a row: a value, its interval (None where undefined), and the series (0 to 5) it belongs to."""

    series: int
    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a forest or dot plot; ``text`` stands at its right edge in the wide form."""

    label: str
    marks: tuple[Interval, ...]
    strong: bool = False
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The value axis of a row plot."""

    label: str
    zero: bool = False
    """A forest: a line at zero, and room for it."""
    log: bool = False
    percent: bool = False
    ends: tuple[str, str] | None = None
    """Words for the left and the right side of the zero line."""
    lines: Mapping[float, str] = field(default_factory=dict)
    """Further lines to read against, each with its word above the plot; the axis has room for them."""
    within: tuple[float, float] = (-math.inf, math.inf)
    """What the axis shows at most; what lies beyond becomes an arrow at its edge."""


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure of the report: its two SVG forms, a legend of (glyph, series, text) and a caption."""

    title: str
    wide: Markup
    narrow: Markup
    legend: tuple[tuple[str, int, str], ...] = ()
    note: str = ""
    small: bool = False
    """One panel of several that wrap; its two forms are the same."""
    kind: str = field(default="plot", init=False)


def arm_series(arm: str, arms: Sequence[str]) -> int:
    """The colour and marker of an arm: fixed for the four standard ones, the rest share what is left.

    An arm that is not among ``arms``, there at other amounts only, comes after them.
    """
    others = [name for name in dict.fromkeys([*arms, arm]) if name not in ARMS]
    return ARMS[arm] if arm in ARMS else 4 + others.index(arm) % (len(SERIES) - 4)


def own_series(arm: str, focus: str) -> int:
    """Where every row names its arm: the colour of ``synthetic`` for the arm in ``focus``, a quiet one for others."""
    return ARMS["synthetic"] if arm == focus else ARMS["real"]


def legend(names: Mapping[str, int]) -> tuple[tuple[str, int, str], ...]:
    """Legend entries for series name -> series number."""
    return tuple((GLYPHS[number], number, name) for name, number in names.items())


def row_plot(rows: Sequence[Row], *, title: str, names: Mapping[str, int], axis: Axis, note: str = "") -> Plot:
    """Marks with intervals on one axis, a row per class or arm: a forest plot where the axis has a zero line, or dots.

    A mark without interval is drawn hollow in a forest, so that nobody takes its bare point for a finding. ``names``:
    series for the legend, which one alone does not need.
    """
    drawn = [_row_svg(rows, width=width, axis=axis, name=f"{title}-{width}") for width in (WIDE, NARROW)]
    return Plot(title=title, wide=drawn[0], narrow=drawn[1], legend=legend(names) if len(names) > 1 else (), note=note)


def _row_svg(rows: Sequence[Row], *, width: int, axis: Axis, name: str) -> Markup:
    """One form of a row plot."""
    wide = width == WIDE
    left, right = (0.27, 0.73 if any(row.text for row in rows) else 0.99) if wide else (0.34, 0.97)
    n_marks = max((len(row.marks) for row in rows), default=1)
    row_height = max(ROW, 8 + 9 * n_marks)
    height = row_height * len(rows) + PAD + (20 if axis.ends or axis.lines else 0)
    with mpl.rc_context(svg_style(name)):
        figure = Figure(figsize=(width / 72, height / 72))
        axes = figure.add_axes((left, PAD / height, right - left, row_height * len(rows) / height))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks([])
        _scale(axes, rows, axis, n_ticks=7 if wide else 4)
        for y, row in enumerate(rows):
            _draw_row(axes, row, y, spread=min(0.62, 9 * (len(row.marks) - 1) / row_height), zero=axis.zero)
            _row_text(figure, row, y=(PAD + row_height * (len(rows) - y - 0.5)) / height, wide=wide)
        quiet(axes, grid="x")
        size = FONT if wide else SMALL
        for value in {0.0: ""} if axis.zero else axis.lines:
            axes.axvline(value, color=INK, lw=1, zorder=1)
            axes.text(value, 1, axis.lines.get(value, ""), transform=axes.get_xaxis_transform(), color=MUTED,
                      ha="center", va="bottom", fontsize=size)
        axes.set_xlabel(axis.label, color=MUTED)
        for word, side in zip(axis.ends or (), (0, 1), strict=False):
            figure.text((left, right)[side], 1, f"{word} →" if side else f"← {word}", color=MUTED, va="top",
                        ha="right" if side else "left", fontsize=size)
        return svg_of(figure, name)


def _draw_row(axes: Axes, row: Row, y: int, *, spread: float, zero: bool) -> None:
    """The marks of one row, spread over its height when there are several."""
    offsets = np.linspace(-spread / 2, spread / 2, len(row.marks)) if len(row.marks) > 1 else [0.0]
    if row.strong:
        axes.axhspan(y - 0.5, y + 0.5, color=RULE, alpha=0.35, lw=0, zorder=0)
    low, high = axes.get_xlim()
    for mark, offset in zip(row.marks, offsets, strict=True):
        if mark.value is None:
            continue
        colour, bare = SERIES[mark.series], mark.low is None or mark.high is None
        if mark.low is not None and mark.high is not None:
            axes.plot([mark.low, mark.high], [y + offset] * 2, color=colour, lw=2.6 if row.strong else 1.8,
                      solid_capstyle="round", zorder=2)
            for end, form in ((low, "<"), (high, ">")):
                if mark.low < low == end or mark.high > high == end:
                    axes.plot([end], [y + offset], form, color=colour, ms=5, zorder=3, clip_on=False)
        inside = min(max(mark.value, low), high)
        form = MARKERS[mark.series] if inside == mark.value else "<" if mark.value < low else ">"
        axes.plot([inside], [y + offset], form, color=colour, ms=7 if row.strong else 6, zorder=3, clip_on=False,
                  mfc="none" if bare and zero else colour, mew=1.4)


def _row_text(figure: Figure, row: Row, *, y: float, wide: bool) -> None:
    """The row's name at the left edge (left-aligned: exact in any font) and its numbers at the right one."""
    room = 36 if wide else 15
    long = len(row.label) > room
    lines = textwrap.wrap(row.label, room + 3, max_lines=2, placeholder="…") if long else [row.label]
    figure.text(0, y, "\n".join(lines), ha="left", va="center", color=INK, fontsize=SMALL if long else FONT,
                fontweight="bold" if row.strong else "normal")
    if wide and row.text:
        figure.text(1, y, row.text, ha="right", va="center", color=INK, fontweight="bold" if row.strong else "normal")


def _scale(axes: Axes, rows: Sequence[Row], axis: Axis, *, n_ticks: int) -> None:
    """Limits with room for every mark and line, in a forest at least 0.01 either side of zero; ticks in their units.

    A bare point beyond the intervals does not stretch a forest's axis: it becomes an arrow at the edge.
    """
    marks = [mark for row in rows for mark in row.marks]
    found = [v for m in marks for v in (m.value, m.low, m.high) if v is not None and not (axis.zero and m.low is None)]
    if axis.zero:
        bare = [abs(m.value) for m in marks if m.value is not None and m.low is None]
        found += [-0.01, 0.01] if found else [-max([0.01, *bare]), max([0.01, *bare])]
    found += axis.lines
    if axis.log:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.locator_params(axis="x", nbins=n_ticks)
    if axis.percent:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %".replace("-", "−")))
    if found:
        low, high = (min(max(v, axis.within[0]), axis.within[1]) for v in (min(found), max(found)))
        room = 0.06 * (high - low or 1)
        axes.set_xlim((max(low, 0.5) / 1.6, high * 1.6) if axis.log else (low - room, high + room))


def quiet(axes: Axes, *, grid: str) -> None:
    """For any figure of the page: no box, hairline grid, muted ticks."""
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.grid(axis=grid, color=RULE, lw=0.8, zorder=0)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=MUTED, which="both", pad=6)


def svg_style(name: str) -> dict[Any, Any]:
    """Matplotlib's settings for a figure of this name, which is unique in the page."""
    return {"svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False, "font.size": FONT,
            "axes.unicode_minus": True, "path.simplify": True}


def svg_of(figure: Figure, name: str) -> Markup:
    """Serialise without prolog, namespaces or metadata; ids made unique in the page; colours as CSS variables."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None,
                                                                     "Type": None})
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", buffer.getvalue(),
                  flags=re.DOTALL)
    text = text[text.index("<svg"):]
    prefix = "p" + re.sub(r"[^a-z0-9]+", "-", name.lower())
    text = re.sub(r' (?:xmlns(?::xlink)?|version)="[^"]*"', "", text)
    text = re.sub(r'<(\w+) id="(?![mcph][0-9a-f]{9,})[^"]*"', r"<\1", text).replace("xlink:href", "href")
    text = re.sub(r'( id="|url\(#|href="#)', rf"\1{prefix}-", text)
    text = re.sub(r" font-family: [^;\"]*;| transform=\"rotate\(-0 [^)]*\)\"", "", text)
    text = re.sub(r'<svg width="[\d.]+pt" height="[\d.]+pt"', '<svg aria-hidden="true" focusable="false"', text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return Markup(text.strip())
