"""Figures of a foveated run: what each frame adds, and how near points come by each way of looking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from coordvlm.reports.page import Child, Markup
from coordvlm.reports.plots import SERIES, Plot
from coordvlm.reports.plots_counting import heat_table

FloatArray = NDArray[np.float64]


def over_frames(series: Mapping[str, FloatArray], *, colours: Mapping[str, int], y_label: str, alt: str) -> Markup:
    """Values float64[T] after each frame. colours: series number of each line."""
    plot = Plot("asked after frame", y_label, alt)
    with plot as axes:
        from matplotlib.ticker import MaxNLocator

        for name, values in series.items():
            axes.plot(np.arange(len(values)), values, color=SERIES[colours[name] - 1], linewidth=1.6, marker="o", markersize=4)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        axes.margins(x=0.06)
    return plot.svg


def within(errors: Mapping[str, FloatArray], limit: float, *, colours: Mapping[str, int], marks: Sequence[float], alt: str) -> Markup:
    """Share of clips whose point comes within r px, over r in [0, ``limit``]; an error that is not finite never does."""
    plot = Plot("r, px on a side of 384", "share within r", alt)
    with plot as axes:
        radii = np.linspace(0, limit, 200)
        for name, values in errors.items():
            found = np.sort(values[np.isfinite(values)])
            share = np.searchsorted(found, radii, side="right") / max(len(values), 1)
            axes.plot(radii, share, color=SERIES[colours[name] - 1], linewidth=1.7)
        for mark in marks:
            axes.axvline(mark, color="#dfe4eb", linewidth=1.0, linestyle=(0, (4, 3)))
        axes.set(xlim=(0, limit), ylim=(0, 1.02))
    return plot.svg


def entropy_sheet(entropy: FloatArray, *, label: str) -> Markup:
    """float64[layers, heads] in [0, 1]: the narrower a head looks, the stronger its cell."""
    layers, heads = entropy.shape
    cells: list[tuple[Sequence[Child], float]] = []
    for layer, head in np.ndindex(layers, heads):
        value = float(entropy[layer, head])
        cells.append(((f"{value:.2f}",), 0.85 * (1 - value)))
    return heat_table(cells, heads, label=label)
