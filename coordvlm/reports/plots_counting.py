"""Figures of a counting run: errors in the plane, where in the image they lie, how sure the end is, true against counted numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from coordvlm.reports.page import Child, Markup, tag
from coordvlm.reports.plots import _INK, SERIES, Plot

FloatArray = NDArray[np.float64]


def error_plane(error_xy: FloatArray, limit: float, *, circle: float, alt: str) -> Markup:
    """Signed errors float64[S, 2] in x and y, in ``[-limit, limit]``, with a circle around zero; y points down as in the image."""
    plot = Plot("x: predicted − true, px", "y: predicted − true, px", alt, size=(3.3, 3.1))
    with plot as axes:
        from matplotlib.patches import Circle

        axes.axhline(0, color=_INK, linewidth=0.6)
        axes.axvline(0, color=_INK, linewidth=0.6)
        axes.scatter(error_xy[:, 0], error_xy[:, 1], s=6, color=SERIES[0], alpha=0.45, linewidths=0, rasterized=len(error_xy) > 1500)
        axes.add_patch(Circle((0, 0), circle, fill=False, edgecolor=SERIES[1], linewidth=1.1, linestyle=(0, (4, 3))))
        axes.set(xlim=(-limit, limit), ylim=(limit, -limit), aspect="equal")
    return plot.svg


def probabilities(series: Mapping[str, FloatArray], *, mark: float, alt: str) -> Markup:
    """Outlines of distributions of a probability, as shares of each series, with a dashed line at ``mark``."""
    plot = Plot("p_done", "share of steps", alt)
    with plot as axes:
        edges = np.linspace(0, 1, 26)
        for values, colour in zip(series.values(), SERIES, strict=False):
            axes.stairs(np.histogram(values, bins=edges)[0] / max(len(values), 1), edges, color=colour, linewidth=1.6)
        axes.axvline(mark, color=_INK, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.set_xlim(-0.01, 1.01)
        axes.grid(False, axis="x")
    return plot.svg


def counted_against_true(true: Sequence[int], found: Sequence[int], *, alt: str) -> Markup:
    """Counted over true numbers with the diagonal; the area of a dot grows with the samples on it."""
    plot = Plot("true number", "counted", alt, size=(3.3, 3.1))
    with plot as axes:
        from matplotlib.ticker import MaxNLocator

        pairs, samples = np.unique(np.stack([true, found], 1), axis=0, return_counts=True)
        limit = float(max(pairs.max(initial=1), 1)) * 1.06
        axes.plot([0, limit], [0, limit], color=_INK, linewidth=0.8, linestyle=(0, (4, 3)))
        size = 14 * np.sqrt(samples / max(float(samples.mean()), 1.0))
        axes.scatter(pairs[:, 0], pairs[:, 1], s=size, color=SERIES[0], alpha=0.6, linewidths=0, rasterized=len(pairs) > 1500)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.set(xlim=(-0.03 * limit, limit), ylim=(-0.03 * limit, limit), aspect="equal")
    return plot.svg


def heat_table(cells: Sequence[tuple[Sequence[Child], float]], columns: int, *, label: str) -> Markup:
    """A grid of cells, row by row: lines of text on a wash whose strength is a share in [0, 1]; NaN is an empty cell."""
    tds = []
    for lines, share in cells:
        wash = f"background:color-mix(in srgb,var(--s2) {100 * min(max(share, 0.0), 1.0):.0f}%,transparent)" if np.isfinite(share) else None
        body = [part for i, line in enumerate(lines) for part in ((tag("br"), line) if i else (line,))]
        tds.append(tag("td", body, style=f"{wash or ''};padding:.7rem 1.1rem;text-align:center;border:2px solid var(--card)".lstrip(";")))
    rows = [tag("tr", tds[i : i + columns]) for i in range(0, len(tds), columns)]
    return tag("div", tag("table", tag("tbody", rows), aria_label=label), class_="table")
