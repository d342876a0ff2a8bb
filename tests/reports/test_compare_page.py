from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coordvlm.reports.compare_data import Comparison
from coordvlm.reports.compare_page import write_comparison
from tests.reports.comparisons import comparison, group, pair
from tests.reports.html_check import read


def page(tmp_path: Path, c: Comparison) -> str:
    """The written page, which is whole and self-contained."""
    path = write_comparison(tmp_path / "compare.html", c)
    read(path)
    return path.read_text(encoding="utf-8")


def test_the_page_is_whole_and_its_verdict_comes_first(tmp_path: Path) -> None:
    text = page(tmp_path, comparison())
    verdict = text.index("hybrid beats ce by 3.1 AP [1.2, 5.0]")
    assert verdict < text.index("Two seeds only.") < text.index('id="metrics"') < text.index('id="differences"') < text.index('id="runs"')
    assert text.count("<svg") == 7  # forest, the curve over steps and time, two more curves, two of pixel errors
    assert "63.0 ± 1.0" in text
    assert "/out/broken" in text
    assert text.count("<img") == 2


def test_shares_statuses_levels_and_costs_are_shown(tmp_path: Path) -> None:
    text = page(tmp_path, comparison())
    patch = "half a merged patch, 8.0 px"
    for words in ("60% (70%)", "odd_one", "2.00%", "30 (1/3)", "20 · 2 min 00 s", "never", "1.00 GiB", patch, "used above"):
        assert words in text, words


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    bare = [replace(group(n, ap), curves={}, reach=(), snapshots={}, readouts={}, cost={}, loss_share={}, px_error=np.zeros(0), floor=None)
            for n, ap in (("ce", 0.5), ("hybrid", math.nan))]
    gone = pair(value=math.nan, low=math.nan, high=math.nan, p=math.nan)
    text = page(tmp_path, comparison(groups=bare, pairs=[gone], curve="", disagreements=[], left_out=[], notes=[]))
    for words in ("No validated score was logged", "No matched boxes in any run", "hold no parts of the loss", "recorded no cost",
                  "Read-outs were not compared", "No image separates", "No run was left out", "cannot be compared", "No interval."):
        assert words in text, words


def test_without_images_ids_and_scores_remain(tmp_path: Path) -> None:
    text = page(tmp_path, comparison(load_image=None, no_image="The images cannot be had here: /data: no such folder"))
    assert "/data: no such folder" in text
    assert "<img" not in text
    assert "0.90" in text


def test_names_cannot_break_the_page(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    groups = [group("ce", 0.5), replace(group("hybrid", 0.6), short=evil, name=evil)]
    found = comparison(groups=groups, pairs=[pair(first=evil)], disagreements=[], command=f"python {evil}", left_out=[(evil, evil)])
    text = page(tmp_path, found)
    assert "<script" not in text


@pytest.mark.parametrize("count", [2, 9])
def test_many_groups_stay_distinguishable(tmp_path: Path, count: int) -> None:
    names = [f"g{i}" for i in range(count)]
    groups = [group(n, 0.5 + i / 100) for i, n in enumerate(names)]
    pairs = [pair(first=a, second=b) for i, a in enumerate(names) for b in names[:i]]
    text = page(tmp_path, comparison(groups=groups, pairs=pairs, disagreements=[]))
    legend = text[text.index('class="legend"'):][: 400 * count]
    styles = {part.split('"')[0] for part in legend.split('<i style="')[1 : count + 1]}
    assert len(styles) == count
    assert ("16 more pairs" in text) == (count == 9)
