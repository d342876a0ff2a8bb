"""Figures as inline SVG that follow the page's light or dark colours.

Drawn with ``Figure`` objects only: pyplot would keep every figure and choose a GUI. Matplotlib is imported inside functions,
as it costs half a second that ``--help`` must not pay. It draws in placeholder colours, which become CSS variables.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coordvlm.reports.page import Markup, escape, tag

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe-Ito (gold darkened to be seen on white): distinguishable under the common colour deficiencies.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9")
_INK, _LINE = "#1c2431", "#dfe4eb"
_VARIABLES = {_INK: "var(--ink)", _LINE: "var(--line)"} | {c: f"var(--s{i})" for i, c in enumerate(SERIES, 1)}
_STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "coordvlm", "text.parse_math": False, "font.size": 8.5, "text.color": _INK,
    "axes.edgecolor": _LINE, "axes.labelcolor": _INK, "axes.axisbelow": True, "axes.grid": True, "axes.spines.top": False,
    "axes.spines.right": False, "axes.linewidth": 0.8, "grid.color": _LINE, "grid.linewidth": 0.7, "xtick.color": _LINE,
    "ytick.color": _LINE, "xtick.labelcolor": _INK, "ytick.labelcolor": _INK, "axes.facecolor": "none",
    "figure.facecolor": "none", "savefig.facecolor": "none", "path.simplify_threshold": 0.5,
}
#: More points than this are drawn as means over stretches, with the range as a band.
_MAX_POINTS = 400

Values = NDArray[np.float64]
Points = tuple[Values, Values]


class Plot:
    """One set of axes: ``with Plot(..) as axes: axes.plot(..)``, then ``plot.svg``."""

    def __init__(self, x_label: str, y_label: str, alt: str, *, size: tuple[float, float] = (4.3, 2.7)) -> None:
        self.x_label, self.y_label, self.alt, self.size = x_label, y_label, alt, size
        self.svg = Markup()

    def __enter__(self) -> Axes:
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        self._style = rc_context(_STYLE)  # type: ignore[arg-type]
        self._style.__enter__()
        self._figure = Figure(figsize=self.size, layout="constrained")
        axes = self._figure.subplots()
        axes.set_xlabel(self.x_label)
        axes.set_ylabel(self.y_label)
        return axes

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.svg = _inline(self._figure, self.alt)
        finally:
            self._style.__exit__(None, None, None)
            self._figure.clear()


def _inline(figure: Figure, alt: str) -> Markup:
    """The figure as an ``<svg>`` element without prologue, outside references, global style or unused ids."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", dpi=170, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.S)
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", text))
    prefix = hashlib.sha256(text.encode()).hexdigest()[:6]
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{prefix}", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    view = re.search(r'viewBox="[^"]+"', text)
    assert view is not None, "matplotlib wrote an SVG without a viewBox"
    body = text[text.index(">") + 1 :]
    return Markup(
        f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" class="plot" role="img" aria-label="{escape(alt)}" {view[0]}>{body.strip()}'
    )


def panel(title: str, svg: Markup, *, legend: Mapping[str, int] | None = None, note: str | None = None) -> Markup:
    """A figure with a title, an HTML legend (name -> series number from 1) and a remark."""
    keys = [tag("span", tag("i", style=f"color:var(--s{i})"), name) for name, i in (legend or {}).items()]
    return tag(
        "figure", tag("h4", title), svg, tag("div", keys, class_="legend") if keys else None,
        tag("figcaption", note) if note else None, class_="plot",
    )


def finite_curve(steps: Sequence[float], values: Sequence[float]) -> Points:
    """The points of a curve that are numbers, in step order; the shorter of the two lists counts."""
    n = min(len(steps), len(values))
    x, y = np.asarray(steps[:n], dtype=np.float64), np.asarray(values[:n], dtype=np.float64)
    keep = np.isfinite(x) & np.isfinite(y)
    order = np.argsort(x[keep], kind="stable")
    return x[keep][order], y[keep][order]


def curves(lines: Mapping[str, Points], *, colours: Mapping[str, int], alt: str, y_label: str = "") -> Markup:
    """Values over steps, ``colours``: series number of each line; a logarithmic axis when positive values span a factor of 100."""
    plot = Plot("step", y_label, alt)
    with plot as axes:
        everything = np.concatenate([y for _, y in lines.values()])
        if everything.min() > 0 and everything.max() > 100 * everything.min():
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # the default writes mathtext, which is off
            axes.yaxis.set_minor_formatter(lambda *_: "")
        for name, (x, y) in lines.items():
            colour = SERIES[colours[name] - 1]
            if len(x) > _MAX_POINTS:
                parts = np.array_split(np.arange(len(x)), _MAX_POINTS // 4)
                low, high = (np.array([f(y[p]) for p in parts]) for f in (np.min, np.max))
                x = np.array([x[p].mean() for p in parts])
                axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
                y = np.array([y[p].mean() for p in parts])
            axes.plot(x, y, color=colour, linewidth=1.6, marker="o" if len(x) <= 25 else None, markersize=3.5)
        axes.margins(x=0.02)
    return plot.svg


def histogram(
    values: ArrayLike, edges: ArrayLike, *, x_label: str, y_label: str, alt: str, marks: Sequence[float] = (), missed: int = 0,
    floor: tuple[float, float] | None = None, dotted: Sequence[float] = (),
) -> Markup:
    """Counts in ``edges``; values beyond the last edge are left out (say how many beside it).

    Args:
        marks: positions of dashed vertical lines. missed: height of an extra bar in another colour in the first bin.
        floor: what no model can undercut, as ``floor_band`` draws it. dotted: positions of dotted lines.
    """
    edges = np.asarray(edges, dtype=np.float64)
    counts, _ = np.histogram(np.asarray(values, dtype=np.float64), bins=edges)
    plot = Plot(x_label, y_label, alt)
    with plot as axes:
        axes.bar(edges[:-1], counts, np.diff(edges) * 0.94, align="edge", color=SERIES[0], linewidth=0)
        if missed:
            axes.bar(edges[:1], [missed], np.diff(edges)[:1] * 0.94, bottom=counts[:1], align="edge", color=SERIES[1], linewidth=0)
        for mark in marks:
            axes.axvline(mark, color=SERIES[1], linewidth=1.0, linestyle=(0, (4, 3)))
        floor_band(axes, floor, dotted, float(edges[-1]))
        axes.set_xlim(edges[0], edges[-1])
        axes.grid(False, axis="x")
    return plot.svg


def floor_band(axes: Axes, floor: tuple[float, float] | None, dotted: Sequence[float], limit: float) -> None:
    """A shade from 0 to the floor's 95th percentile with a line at its median, and dotted lines; nothing beyond ``limit``.

    Args:
        floor: (median, 95th percentile) of the localisation floor.
    """
    if floor is not None:
        axes.axvspan(0, min(floor[1], limit), color=_LINE, alpha=0.9, linewidth=0, zorder=0)
        axes.axvline(min(floor[0], limit), color=_INK, linewidth=0.8, zorder=0)
    for mark in dotted:
        if mark <= limit:
            axes.axvline(mark, color=_INK, linewidth=0.9, linestyle=(0, (1, 2)), zorder=0)


def signed_histograms(series: Mapping[str, Values], limit: float, *, x_label: str, alt: str) -> Markup:
    """Outlines of several distributions around zero, in ``[-limit, limit]``."""
    plot = Plot(x_label, "corners", alt)
    with plot as axes:
        edges = np.linspace(-limit, limit, 42)
        for values, colour in zip(series.values(), SERIES, strict=False):
            axes.stairs(np.histogram(values, bins=edges)[0], edges, color=colour, linewidth=1.5)
        axes.axvline(0, color=_INK, linewidth=0.8)
        axes.set_xlim(-limit, limit)
        axes.grid(False, axis="x")
    return plot.svg


def precision_recall(lines: Mapping[str, Values], *, alt: str) -> Markup:
    """Precision over recall, float64[n, 2] of (recall, precision) per line."""
    plot = Plot("recall", "precision", alt)
    with plot as axes:
        for points, colour in zip(lines.values(), SERIES, strict=False):
            axes.plot(points[:, 0], points[:, 1], color=colour, linewidth=1.7)
        axes.set(xlim=(0, 1.02), ylim=(0, 1.04))
    return plot.svg


def share_over_threshold(values: Values, thresholds: Values, *, marks: Sequence[float], x_label: str, y_label: str, alt: str) -> Markup:
    """The share of values at or above each threshold, with dots where it is usually read."""
    plot = Plot(x_label, y_label, alt)
    with plot as axes:
        axes.plot(thresholds, [float((values >= t).mean()) for t in thresholds], color=SERIES[0], linewidth=1.7)
        axes.plot(marks, [float((values >= t).mean()) for t in marks], "o", color=SERIES[1], markersize=4)
        axes.set(xlim=(float(thresholds[0]), float(thresholds[-1])), ylim=(0, 1.02))
    return plot.svg


def agreement(true: Values, predicted: Values, *, x_label: str, y_label: str, alt: str) -> Markup:
    """Predicted against true normalised coordinates with the diagonal: points, or cells of a log-coloured grid when there are many."""
    plot = Plot(x_label, y_label, alt, size=(2.9, 2.8))
    with plot as axes:
        axes.plot([0, 1], [0, 1], color=_INK, linewidth=0.8, linestyle=(0, (4, 3)))
        if len(true) <= 3000:
            axes.scatter(true, predicted, s=5, color=SERIES[0], alpha=0.45, linewidths=0, rasterized=True)
        else:
            from matplotlib.colors import LinearSegmentedColormap

            shade = LinearSegmentedColormap.from_list("shade", ["#56b4e960", "#0072b2ff"])
            extent = (0.0, 1.0, 0.0, 1.0)
            axes.hexbin(true, predicted, gridsize=60, bins="log", mincnt=1, cmap=shade, extent=extent, linewidths=0, rasterized=True)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    return plot.svg
