"""Metric tables for terminal, Markdown and CSV."""

from __future__ import annotations

import csv
import io

import pytest
from rich.console import Console

from coordvlm.contracts import Interval
from coordvlm.reports.foveation_names import FOVEATION
from coordvlm.reports.tables import (
    COUNTING,
    DETECTION,
    GROUNDING,
    MAIN,
    describe,
    main_metrics,
    metric_table,
    metrics_csv,
    metrics_markdown,
    number,
    primary,
    rows,
    task_of,
)
from tests.metrics.clip_cases import clips, said
from tests.metrics.clip_cases import evaluate as evaluate_clips
from tests.metrics.count_cases import evaluate, random_counting

METRICS = {
    "pck_15": Interval(1.0), "pck_2": Interval(0.5, 0.4, 0.6), "px_median": Interval(1.234, 1.1, 1.4), "zz|new": Interval(0.1),
    "AP75": Interval(0.25, 0.2, 0.3), "AP": Interval(0.6312, 0.6, 0.66), "AP_small": Interval(float("nan")), "F1_50": Interval(0.9),
}
READOUTS = {"argmax": {"AP": 0.61, "px_mean": 2.0}, "[bold]local": {"AP": 0.63}}


def test_main_metrics_come_first_then_the_specified_order_then_the_rest() -> None:
    assert [r.name for r in rows(METRICS)] == ["AP", "F1_50", "px_median", "AP75", "AP_small", "pck_2", "pck_15", "zz|new"]
    assert [r.name for r in rows(METRICS) if r.main] == [n for n in MAIN if n in METRICS]


def test_numbers_have_the_digits_of_their_unit() -> None:
    assert number("px_mean", 1.236) == "1.24"
    assert number("AP", 0.63125) == "0.6312"
    assert number("AP", float("nan")) == "–"
    assert number("AP", float("inf")) == "inf"


def test_direction_is_known_for_patterns_too() -> None:
    assert describe("pck_all_8") == ("corners of all true boxes within 8 px (missed boxes count)", 1)
    assert describe("px384_p90")[1] == -1
    assert describe("pck384_5") == ("answers within 5 px of their object on a 384 px frame", 1)
    assert describe("k_10_19_pck384_5") == ("answers within 5 px when 10 – 19 objects are marked, 384 px frame", 1)
    assert describe("k_20_up_pck384_5")[0].startswith("answers within 5 px when 20 or more objects")
    assert describe("px384_x_mean") == ("mean error in x alone on a 384 px frame", -1)
    assert describe("unheard_of") == ("", 0)


def test_every_metric_of_counting_is_explained_and_its_own() -> None:
    names = evaluate(*random_counting(0)).metrics
    assert main_metrics(names) == COUNTING
    assert primary(names) == "pck384_5"
    assert not [n for n in names if not describe(n)[0]]
    shared = {n for n in names if task_of(n) != "count"}
    assert shared <= {n for n in names if n.startswith(("px", "pck_"))} | {"seconds_per_image"}
    assert [r.name for r in rows(names)[: len(COUNTING)]] == list(COUNTING)
    assert number("n5_px384_median", 1.236) == "1.24"


def test_tasks_do_not_share_the_metric_they_are_judged_by() -> None:
    assert [task_of(group[0]) for group in (DETECTION, GROUNDING, COUNTING)] == ["detect", "ground", "count"]


def test_terminal_shows_values_intervals_and_read_outs() -> None:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(metric_table(METRICS, READOUTS, title="[red]test"))
    text = console.export_text()
    lines = [" ".join(line.replace("│", " ").replace("┃", " ").split()) for line in text.splitlines()]
    assert "[red]test" in lines
    assert any(line.startswith("AP ↑ 0.6312 0.6000 – 0.6600 COCO average precision") for line in lines)
    assert any(line.startswith("AP_small ↑ – – ") for line in lines)
    assert "argmax 0.6100 2.00" in lines
    assert "[bold]local 0.6300 –" in lines


def test_a_narrow_terminal_cuts_the_meaning_and_never_a_number() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    many = {**METRICS, "seconds_per_image": Interval(0.0314, 0.03, 0.0328), "F1_50_best": Interval(0.5123, 0.4, 0.6)}
    console.print(metric_table(many))
    lines = console.export_text().splitlines()
    for name, item in many.items():
        (line,) = (x for x in lines if x.split()[:1] == [name])
        assert "…" not in line[:40]
        assert number(name, item.value) in line
    assert max(map(len, lines)) <= 80


def test_markdown_is_a_table_that_a_name_cannot_break() -> None:
    lines = metrics_markdown(METRICS, READOUTS).splitlines()
    assert lines[2] == "| **AP** | 0.6312 | 0.6000 – 0.6600 | COCO average precision, mean over IoU 0.50:0.95 |"
    assert "| zz\\|new | 0.1000 | – |  |" in lines
    assert "| argmax | 0.6100 | 2.00 |" in lines


def test_csv_keeps_full_precision_and_leaves_undefined_empty() -> None:
    read = {r["name"]: r for r in csv.DictReader(io.StringIO(metrics_csv({**METRICS, "AP": Interval(1 / 3, 0.1, 0.5)})))}
    assert float(read["AP"]["value"]) == 1 / 3
    assert read["AP_small"]["value"] == ""
    assert read["F1_50"]["low"] == ""
    assert len(read) == len(METRICS)


def clip_metrics(**weights: float) -> dict[str, Interval]:
    """Every metric of clips in words and points, of two kinds."""
    truth = clips("a", "b", (1.0, 1.0), kinds=["qa", "global", "ball"])
    arms = ("coarse", "fine", "auto", "swap", "random", "no_image", "no_text")
    return dict(evaluate_clips(truth, [said(i, dict.fromkeys(arms, (1.0, 2, 2, (3.0, 1.0)))) for i in (1, 2, 3)], **weights).metrics)


@pytest.mark.parametrize("coarse", [1.0, 0.0])
def test_every_metric_of_clips_is_explained_and_its_own(coarse: float) -> None:
    names = clip_metrics(coarse=coarse)
    assert primary(names) == "acc"
    assert [n for n in names if not describe(n)[0]] == []
    shared = {n for n in names if task_of(n) != "video"}
    assert shared == {"px384_median", "px_median", "pck384_20"}  # of the reported arm, named as elsewhere
    assert main_metrics(names)[0] == "acc"
    assert all(row.main == (row.name in FOVEATION) for row in rows(names))


def test_controls_and_comparisons_have_no_better_side() -> None:
    assert [describe(n)[1] for n in ("acc_fine", "acc_coarse.qa", "acc_auto", "pck384_20_fine", "acc")] == [1] * 5
    assert [describe(n)[1] for n in ("loss_fine", "loss", "px384_median_auto", "px_median_coarse.ball")] == [-1] * 4
    neither = ("acc_swap", "loss_random", "px384_median_no_text", "gain_acc", "ratio_matched", "ratio_unmatched")
    assert [describe(n)[1] for n in neither] == [0] * 6
    assert describe("acc_swap.cue")[0].endswith("looks where another clip's plan says (control); questions of kind cue")
    assert [task_of(n) for n in ("acc_50", "acc_mean", "loss_x", "pck384_5", "px_median")] == ["ground", "ground", "count", "count", ""]


def test_what_is_not_evidence_is_struck_out_everywhere() -> None:
    names = clip_metrics(coarse=0.0)
    struck = {row.name for row in rows(names) if row.struck}
    assert {"ratio_unmatched", "gain_acc_unmatched", "px_ratio_unmatched", "ratio_unmatched.qa"} <= struck
    assert all("unmatched" in n for n in struck)
    assert not any(row.struck for row in rows(clip_metrics()))
    lines = metrics_markdown(names).splitlines()
    (line,) = (x for x in lines if x.startswith("| ~~ratio_unmatched~~ "))
    assert line.startswith("| ~~ratio_unmatched~~ | ~~1.0000~~ |")
    assert "unmatched, not evidence" in line
    console = Console(width=160, record=True, file=io.StringIO(), force_terminal=True)
    console.print(metric_table(names))
    row = next(x for x in console.export_text(styles=True).splitlines() if "ratio_unmatched" in x)
    assert "9mratio_unmatched" in row  # 9: struck out
    assert "unmatched, not evidence" in row


def test_a_ratio_is_no_distance() -> None:
    assert number("px_ratio", 0.51234) == "0.5123"
    assert number("px384_median_fine", 1.236) == "1.24"


def test_one_read_out_needs_no_table_of_read_outs() -> None:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(metric_table(METRICS, {"local": {}}))
    assert "Read-outs" not in console.export_text()
    assert "read-out" not in metrics_markdown(METRICS, {"local": {"AP": 0.5}})
