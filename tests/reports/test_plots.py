"""Figures follow the page's colours and keep nothing global."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from coordvlm.reports import plots


def test_colours_are_variables_of_the_page() -> None:
    svg = plots.curves({"train": plots.finite_curve([1, 2], [1.0, 2.0])}, colours={"train": 2}, alt="a <b>")
    assert "var(--s2)" in svg
    assert "var(--ink)" in svg
    assert "#d55e00" not in svg
    assert 'aria-label="a &lt;b&gt;"' in svg
    assert "<style" not in svg
    assert "<metadata" not in svg


def test_the_same_figure_gives_the_same_text() -> None:
    def draw() -> str:
        return plots.histogram([1.0, 2.0], [0, 1, 2, 3], x_label="px", y_label="n", alt="h", marks=(1,), missed=2)

    assert draw() == draw()


def test_curves_lose_what_is_not_a_number_and_are_put_in_order() -> None:
    x, y = plots.finite_curve([3, 1, 2, 4], [30.0, float("nan"), 20.0, float("inf")])
    assert x.tolist() == [2, 3]
    assert y.tolist() == [20, 30]


def test_wide_ranges_get_a_logarithmic_axis() -> None:
    steps = list(range(5))
    linear = plots.curves({"a": plots.finite_curve(steps, [1, 2, 3, 4, 5])}, colours={"a": 1}, alt="x")
    assert ">4.0<" in linear
    log = plots.curves({"a": plots.finite_curve(steps, [1e-3, 1, 2, 3, 1e3])}, colours={"a": 1}, alt="x")
    assert {t for t in (">0.001<", ">0.1<", ">10<", ">1000<") if t in log} == {">0.001<", ">0.1<", ">10<", ">1000<"}
    assert "$" not in log


def test_many_points_stay_small() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(size=50_000)
    svg = plots.agreement(x, np.clip(x + rng.normal(0, 0.02, len(x)), 0, 1), x_label="true", y_label="predicted", alt="x1")
    assert "data:image/png;base64" in svg
    assert len(svg) < 150_000
    steps = np.arange(20_000)
    assert len(plots.curves({"a": plots.finite_curve(steps, rng.normal(size=20_000))}, colours={"a": 1}, alt="a")) < 40_000


def test_matplotlib_is_imported_late_and_without_pyplot() -> None:
    code = (
        "import sys; from coordvlm.reports import plots, run_report, inspect_page\n"
        "assert 'matplotlib' not in sys.modules\n"
        "plots.histogram([1.0], [0, 1, 2], x_label='', y_label='', alt='')\n"
        "import matplotlib; assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert matplotlib.rcParams['svg.fonttype'] == matplotlib.rcParamsDefault['svg.fonttype']"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_floor_is_shaded_and_lines_beyond_the_axis_are_left_out() -> None:
    options = {"x_label": "px", "y_label": "corners", "alt": "x"}
    plain, shaded, dotted, far = (
        plots.histogram([0.5, 1.5], [0, 1, 2], **options, **more)  # type: ignore[arg-type]
        for more in ({}, {"floor": (0.1, 0.4)}, {"dotted": (1.5,)}, {"dotted": (3.0,)})
    )
    assert shaded.count("<path") == plain.count("<path") + 2  # the shade and the line at the median
    assert dotted.count("stroke-dasharray") == plain.count("stroke-dasharray") + 1
    assert far.count("<path") == plain.count("<path")
