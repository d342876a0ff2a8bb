"""Figures of a comparison: one colour (and beyond six groups, one dash) per group in every figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from coordvlm.reports.compare_data import Band, Comparison, PairResult
from coordvlm.reports.compare_words import scale, title
from coordvlm.reports.floor import floor_span
from coordvlm.reports.page import Markup, tag
from coordvlm.reports.plots import _INK, SERIES, Plot, floor_band

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FloatArray = NDArray[np.float64]
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))


def style(index: int) -> tuple[str, object]:
    """(colour, line style) of a group by its position."""
    return SERIES[index % len(SERIES)], _DASHES[index // len(SERIES) % len(_DASHES)]


def legend(names: Sequence[str]) -> Markup:
    """Names with their line, as drawn, above figures that share it."""
    keys = []
    for i, name in enumerate(names):
        css = ("solid", "dashed", "dotted", "double")[i // len(SERIES) % len(_DASHES)]
        colour = f"var(--s{i % len(SERIES) + 1})"
        line = f"background:none;width:1.6em;height:0;border-radius:0;border-top:3px {css} {colour};vertical-align:.25em"
        keys.append(tag("span", tag("i", style=line), name))
    return tag("div", keys, class_="legend")


def forest(pairs: Sequence[PairResult], level: float, *, alt: str) -> Markup:
    """Differences with their intervals, one line each; those that differ after correction in colour."""
    metric = pairs[0].metric
    factor, _ = scale(metric)
    known = [p for p in pairs if np.isfinite(p.value)]
    plot = Plot(f"difference in {title(metric)}, first − second", "", alt, size=(9.6, 0.6 + 0.26 * len(known)))
    with plot as axes:
        axes.axvline(0, color=_INK, linewidth=0.8)
        for row, pair in enumerate(known):
            colour = SERIES[0] if pair.differs(level) else "#7a8594"
            axes.plot([factor * pair.low, factor * pair.high], [row, row], color=colour, linewidth=2.2, solid_capstyle="butt")
            axes.plot([factor * pair.value], [row], "o", color=colour, markersize=4.5)
        axes.set_yticks(range(len(known)), [f"{p.first} − {p.second}" for p in known])
        axes.set_ylim(len(known) - 0.5, -0.5)
        axes.grid(False, axis="y")
    return plot.svg


def curves(c: Comparison, column: str, *, over: str) -> Markup:
    """A logged value of every group over ``steps`` or ``seconds``: mean over seeds, range over seeds as a band."""
    bands: Mapping[int, Band] = {i: g.curves[column] for i, g in enumerate(c.groups) if column in g.curves}
    unit, label = 1.0, "optimiser steps"
    if over == "seconds":
        longest = max((float(b.seconds[-1]) for b in bands.values() if np.isfinite(b.seconds[-1])), default=0.0)
        unit, word = (3600.0, "h") if longest > 3 * 3600 else (60.0, "min") if longest > 180 else (1.0, "s")
        label = f"wall time of training, {word}"
    plot = Plot(label, column, f"{column} over {over}")
    with plot as axes:
        for i, band in bands.items():
            colour, dash = style(i)
            x = (band.steps if over == "steps" else band.seconds) / unit
            axes.fill_between(x, band.low, band.high, color=colour, alpha=0.16, linewidth=0)
            axes.plot(x, band.mean, color=colour, linestyle=dash, linewidth=1.7, marker="o" if len(x) <= 12 else None, markersize=3)  # type: ignore[arg-type]
        everything = np.concatenate([b.mean for b in bands.values()])
        if everything.min() > 0 and everything.max() > 100 * everything.min():
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(lambda *_: "")
        axes.margins(x=0.02)
    return plot.svg


def error_densities(c: Comparison, limit: float) -> Markup:
    """Share of corners (or answers) per fine bin of the pixel error, outlines, with the localisation floor behind."""
    what, error = error_words(c)
    plot = Plot(error, f"share of {what}", f"Distribution of the {error.partition(',')[0]} of each group")
    with plot as axes:
        edges = np.linspace(0, limit, 41)
        floor_marks(axes, c, limit)
        for i, group in enumerate(c.groups):
            if len(group.px_error):
                colour, dash = style(i)
                share = np.histogram(group.px_error, bins=edges)[0] / len(group.px_error)
                axes.stairs(share, edges, color=colour, linestyle=dash, linewidth=1.5)
        axes.set_xlim(0, limit)
        axes.grid(False, axis="x")
    return plot.svg


def error_shares(c: Comparison, limit: float) -> Markup:
    """Share of corners (or answers) within an error, with the localisation floor behind."""
    what, error = error_words(c)
    plot = Plot(error, f"share of {what} within", f"Cumulative {error.partition(',')[0]} of each group")
    with plot as axes:
        at = np.linspace(0, limit, 240)
        floor_marks(axes, c, limit)
        for i, group in enumerate(c.groups):
            if len(group.px_error):
                colour, dash = style(i)
                share = np.searchsorted(np.sort(group.px_error), at, "right") / len(group.px_error)
                axes.plot(at, share, color=colour, linestyle=dash, linewidth=1.6)  # type: ignore[arg-type]
        axes.set(xlim=(0, limit), ylim=(0, 1.02))
    return plot.svg


def error_words(c: Comparison) -> tuple[str, str]:
    """What has an error, and the error with its unit."""
    return ("answers", "point error, px on a side of 384") if c.counting else ("corners", "corner error, source px")


def floor_marks(axes: Axes, c: Comparison, limit: float) -> None:
    """The localisation floor and half a merged patch, once per distinct contract."""
    for floor in {id(g.floor): g.floor for g in c.groups if g.floor is not None}.values():
        floor_band(axes, floor_span(floor), (floor.half_patch,), limit)
