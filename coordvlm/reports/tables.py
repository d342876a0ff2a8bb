"""Metric tables: rich for the terminal at the end of a run, Markdown and CSV for files; and the words that explain a metric."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from coordvlm.contracts import Interval
from coordvlm.reports.foveation_names import describe_clips, is_struck, judged_by, of_clips

#: The metrics a run is judged by, in the order they are shown; the first one of a task is what it is chosen by.
DETECTION = ("AP", "AP50", "AP_score1", "F1_50", "parse_rate", "px_median")
GROUNDING = ("acc_50", "acc_75", "iou_mean_all", "detection_rate", "parse_rate", "px_median")
COUNTING = ("pck384_5", "px384_median", "n5_pck384_5", "done_acc_end", "done_acc_last", "done_acc_early", "count_mae", "loc_f1")
MAIN = tuple(dict.fromkeys((*DETECTION[:4], *GROUNDING, *COUNTING)))

#: name -> (meaning, better: +1 higher, -1 lower). Order is the order of every table.
METRICS: Mapping[str, tuple[str, int]] = {
    "AP": ("COCO average precision, mean over IoU 0.50:0.95", 1),
    "AP50": ("average precision at IoU 0.50", 1),
    "AP75": ("average precision at IoU 0.75", 1),
    "AP_small": ("AP of objects below 32² px", 1),
    "AP_medium": ("AP of objects from 32² to 96² px", 1),
    "AP_large": ("AP of objects above 96² px", 1),
    "AP_score1": ("AP with every score set to 1: boxes without ranking", 1),
    "AP50_score1": ("AP50 with every score set to 1", 1),
    "AP75_score1": ("AP75 with every score set to 1", 1),
    "AR1": ("average recall, 1 prediction per image", 1),
    "AR10": ("average recall, 10 predictions per image", 1),
    "AR100": ("average recall, 100 predictions per image", 1),
    "AR_small": ("average recall of objects below 32² px", 1),
    "AR_medium": ("average recall of objects from 32² to 96² px", 1),
    "AR_large": ("average recall of objects above 96² px", 1),
    "F1_50": ("class-aware F1 at IoU 0.50", 1),
    "F1_50_best": ("F1 at IoU 0.50 with the best score threshold for these images: optimistic", 1),
    "F1_75": ("class-aware F1 at IoU 0.75", 1),
    "F1_95": ("class-aware F1 at IoU 0.95", 1),
    "F1_mean": ("class-aware F1, mean over IoU 0.50:0.95", 1),
    "acc_25": ("phrases with a target whose box reaches IoU 0.25; every failure is a miss", 1),
    "acc_50": ("phrases with a target whose box reaches IoU 0.50; every failure is a miss", 1),
    "acc_75": ("phrases with a target whose box reaches IoU 0.75", 1),
    "acc_90": ("phrases with a target whose box reaches IoU 0.90", 1),
    "acc_mean": ("the same, mean over IoU 0.50:0.95", 1),
    "first_try_acc_50": ("acc_50 if nothing had been asked a second time", 1),
    "iou_mean_all": ("mean IoU over phrases with a target; a failure counts 0", 1),
    "iou_median_all": ("median IoU over phrases with a target; a failure counts 0", 1),
    "iou_mean_parsed": ("mean IoU of those answered by a box: failures left out", 1),
    "iou_median_parsed": ("median IoU of those answered by a box: failures left out", 1),
    "detection_rate": ("phrases with a target that are answered by a box", 1),
    "first_try_detection_rate": ("detection_rate if nothing had been asked a second time", 1),
    "reject_precision": ("answers of “none” that are right", 1),
    "reject_recall": ("phrases without a target that are answered by “none”", 1),
    "reject_f1": ("harmonic mean of both", 1),
    "none_rate": ("phrases answered by “none”", 0),
    "point_in_box": ("phrases with a target whose answered box has its centre in the true one", 1),
    "center_error_mean": ("mean distance of the boxes' centres, source px, of answered boxes", -1),
    "center_error_median": ("median distance of the boxes' centres, source px, of answered boxes", -1),
    "extra_box_rate": ("phrases answered by more than one box; the first one counts", -1),
    "parse_rate": ("answers whose records all parse", 1),
    "truncation_rate": ("answers without an end token", -1),
    "duplicate_rate": ("predictions that repeat an earlier one of their class (IoU ≥ 0.9)", -1),
    "absent_class_rate": ("predictions of a class that is not in the image", -1),
    "seconds_per_image": ("decoding, wall time; only comparable on one machine at one load", -1),
    "tokens_per_image": ("emitted tokens", 0),
    "px_mean": ("mean error of points, or of the corners of matched boxes, source px", -1),
    "px_median": ("median error of points, or of the corners of matched boxes, source px", -1),
    "px_p90": ("90th percentile of the same, source px", -1),
    "px_p95": ("95th percentile of the same, source px", -1),
    "done_acc": ("single steps that tell rightly whether everything is marked", 1),
    "done_acc_end": ("everything is marked and the answer says so", 1),
    "done_acc_last": ("one object is left and the answer does not say done", 1),
    "done_acc_early": ("two or more are left and the answer does not say done", 1),
    "on_unmarked": ("answers on any unmarked object", 1),
    "n5_on_unmarked": ("the same with at most 5 objects", 1),
    "miss_on_unmarked": ("of the answers off their object, those on another unmarked one: a wrong pick, not a wrong place", 0),
    "loss_x": ("mean squared error in x, image width = 2", -1),
    "loss_y": ("mean squared error in y, image height = 2", -1),
    "count_mae": ("mean absolute error of the count", -1),
    "count_rmse": ("root mean squared error of the count", -1),
    "count_bias": ("mean error of the count: above 0 counts too many", 0),
    "count_mae_n5": ("mean absolute error with at most 5 objects", -1),
    "count_bias_n5": ("mean error with at most 5 objects", 0),
    "count_nae": ("mean absolute error over the true number, where there is something", -1),
    "count_sre": ("root of the mean of squared error over the true number", -1),
    "count_exact": ("counts that are right", 1),
    "count_within_one": ("counts off by one at most", 1),
    "count_within_5pct": ("counts within 5 % of the true number", 1),
    "count_within_10pct": ("counts within 10 % of the true number", 1),
    "count_within_20pct": ("counts within 20 % of the true number", 1),
    "finished_rate": ("counts that the model ended itself", 1),
    "loc_precision": ("counted points on a true one, one to one", 1),
    "loc_recall": ("true points that a counted one is on", 1),
    "loc_f1": ("harmonic mean of both", 1),
}
_PATTERNS: tuple[tuple[str, str, int], ...] = (
    (r"pck_(\d+)", "points, or corners of matched boxes, within {} px", 1),
    (r"pck384_(\d+)", "answers within {} px of their object on a 384 px frame", 1),
    (r"n5_pck384_(\d+)", "answers within {} px with at most 5 objects, 384 px frame", 1),
    (r"k_(\w+)_pck384_5", "answers within 5 px when {} objects are marked, 384 px frame", 1),
    (r"pck_all_(\d+)", "corners of all true boxes within {} px (missed boxes count)", 1),
    (r"px384_([xy])_mean", "mean error in {} alone on a 384 px frame", -1),
    (r"px384_(\w+)", "error of points or corners on a 384 px frame: {}", -1),
    (r"n5_px384_(\w+)", "the same with at most 5 objects: {}", -1),
)
_OF_DETECTION = re.compile(r"AP|AR\d|AR_|F1|duplicate_rate|absent_class_rate")
_OF_COUNTING = re.compile(r"pck384_|n5_|k_|done_acc|(miss_)?on_unmarked|loss_[xy]|count_|finished_rate|loc_")
_OF_GROUNDING = re.compile(r"acc_|iou_|first_try_|reject_|detection_rate|none_rate|point_in_box|center_error|extra_box_rate")


@dataclass(frozen=True)
class Row:
    """One metric as shown. ``better``: +1 higher is better, -1 lower, 0 unknown."""

    name: str
    value: float
    low: float
    high: float
    meaning: str
    better: int
    main: bool

    @property
    def struck(self) -> bool:
        """Whether it is no evidence; it is then shown struck out."""
        return is_struck(self.name)

    @property
    def shown(self) -> str:
        return number(self.name, self.value)

    @property
    def interval(self) -> str:
        """``0.61 – 0.66``, or a dash when it is undefined."""
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            return "–"
        return f"{number(self.name, self.low)} – {number(self.name, self.high)}"


def number(name: str, value: float) -> str:
    """A metric's value: pixels with two decimals, everything else with four digits; a dash for NaN."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else str(value)
    return f"{value:.2f}" if in_pixels(name) else f"{value:.4f}" if abs(value) < 100 else f"{value:.1f}"


def in_pixels(name: str) -> bool:
    """Whether a metric is a distance in px; the others are shares, times or counts."""
    return name.startswith(("px", "n5_px", "center_error")) and not name.startswith("px_ratio")


def task_of(name: str) -> str:
    """``detect``, ``ground``, ``count`` or ``video`` for a metric that only this task has; "" for others."""
    if of_clips(name):
        return "video"
    found = (("detect", _OF_DETECTION), ("ground", _OF_GROUNDING), ("count", _OF_COUNTING))
    return next((task for task, names in found if names.match(name)), "")


def main_metrics(metrics: Container[str]) -> tuple[str, ...]:
    """The metrics that the task behind these names is judged by."""
    if clips := judged_by(metrics):
        return clips
    return GROUNDING if "acc_50" in metrics else COUNTING if "pck384_5" in metrics else DETECTION


def primary(metrics: Container[str]) -> str:
    """The one metric by which a run of this task is chosen: ``AP``, ``acc_50`` for phrases, ``pck384_5`` for counting."""
    return main_metrics(metrics)[0]


def rows(metrics: Mapping[str, Interval]) -> list[Row]:
    """The main metrics, then the others in the order of the specification, then what it does not name."""
    main = main_metrics(metrics)
    order = {name: i for i, name in reversed(list(enumerate((*main, *METRICS))))}
    names = sorted(metrics, key=lambda name: (order.get(name, len(order)), _natural(name)))
    out = []
    for name in names:
        meaning, better = describe(name)
        item = metrics[name]
        out.append(Row(name, float(item.value), float(item.low), float(item.high), meaning, better, name in main))
    return out


def describe(name: str) -> tuple[str, int]:
    """What a metric means, and its better direction; ("", 0) for one this table does not know."""
    if name in METRICS:
        return METRICS[name]
    if (of_clip := describe_clips(name)) is not None:
        return of_clip
    for pattern, meaning, better in _PATTERNS:
        if found := re.fullmatch(pattern, name):
            return meaning.format(found[1].replace("_up", " or more").replace("_", " – ")), better
    return "", 0


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def arrow(better: int) -> str:
    """Which way is better."""
    return {1: "↑", -1: "↓"}.get(better, "")


def metric_table(
    metrics: Mapping[str, Interval], readouts: Mapping[str, Mapping[str, float]] | None = None, *, title: str = ""
) -> Group:
    """What the terminal shows at the end of a run: main metrics in bold, the rest below a line, several read-outs in a table of their
    own. What is no evidence is struck out."""
    table = Table(title=Text(title) if title else None, title_justify="left", header_style="dim", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("metric", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("95 % interval", justify="right", no_wrap=True)
    table.add_column("", style="dim")  # the one column that may shrink; its cells are cut, not wrapped
    shown = rows(metrics)
    for i, row in enumerate(shown):
        last_main = row.main and (i + 1 == len(shown) or not shown[i + 1].main)
        label = Text(row.name, style="strike" if row.struck else "").append(f" {arrow(row.better)}", style="none")
        value, ends = (Text(text, style="strike" if row.struck else "") for text in (row.shown, row.interval))
        table.add_row(
            label, value, ends, Text(row.meaning, no_wrap=True, overflow="ellipsis"),
            style="bold" if row.main else None, end_section=last_main,
        )
    if not readouts or len(readouts) < 2:  # one read-out is the table above
        return Group(table)
    names = readout_columns(readouts)
    compare = Table(title="Read-outs of the same decode", title_justify="left", header_style="dim", box=box.SIMPLE_HEAD, pad_edge=False)
    compare.add_column("read-out")
    for name in names:
        compare.add_column(Text(name), justify="right")
    for readout, values in readouts.items():
        compare.add_row(Text(readout), *(number(n, values.get(n, math.nan)) for n in names))
    return Group(table, Text(), compare)


def readout_columns(readouts: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Every metric that some read-out has, in table order."""
    return [row.name for row in rows({name: Interval(0.0) for values in readouts.values() for name in values})]


def metrics_markdown(metrics: Mapping[str, Interval], readouts: Mapping[str, Mapping[str, float]] | None = None) -> str:
    """The same as Markdown."""
    lines = ["| metric | value | 95 % interval | meaning |", "|---|--:|--:|---|"]
    for row in rows(metrics):
        strike = "~~" if row.struck else ""
        name = f"**{_cell(row.name)}**" if row.main and not strike else f"{strike}{_cell(row.name)}{strike}"
        lines.append(f"| {name} | {strike}{row.shown}{strike} | {row.interval} | {_cell(row.meaning)} |")
    if readouts and len(readouts) > 1:
        names = readout_columns(readouts)
        lines += ["", f"| read-out | {' | '.join(map(_cell, names))} |", f"|---|{'--:|' * len(names)}"]
        for readout, values in readouts.items():
            lines.append(f"| {_cell(readout)} | {' | '.join(number(n, values.get(n, math.nan)) for n in names)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def metrics_csv(metrics: Mapping[str, Interval]) -> str:
    """``name,value,low,high`` with full precision; an undefined value is an empty field."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["name", "value", "low", "high"])
    for row in rows(metrics):
        writer.writerow([row.name, *("" if math.isnan(v) else repr(v) for v in (row.value, row.low, row.high))])
    return out.getvalue()
