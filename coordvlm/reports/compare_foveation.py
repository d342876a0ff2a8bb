"""The page of a comparison of clips: does looking pay, told per task, with every way of looking beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from coordvlm.reports import compare_words as words
from coordvlm.reports.compare_data import Comparison, Estimate
from coordvlm.reports.foveation_data import ArmsRow, Foveation, LookVerdict
from coordvlm.reports.foveation_names import ARM_WORDS, is_struck
from coordvlm.reports.page import Child, Markup, definitions, join, missing, section, table, tag
from coordvlm.reports.tables import number

_PILLS = {"used": ("good", "used"), "not_the_plan": ("warn", "not the plan"), "worse": ("bad", "worse"), "no_difference": ("", "not shown")}
_NAMES = ("coarse", "fine", "auto", "swap", "random", "no_image", "no_text")


def looks(c: Comparison) -> Markup:
    """Verdicts on looking, arms, and what compares them."""
    found = c.foveation
    assert found is not None, "the page asks for it where there is one"
    items = [_verdict(v) for v in found.verdicts]
    listed: Child = missing("No run trained a fine pass.")
    if items:
        listed = tag("ul", items, class_="checks", style="grid-template-columns:1fr")
    note = (
        "Looking pays where fine is better than coarse, and than swapped and random queries, beyond the noise of seeds and clips "
        f"({c.coverage * 100:g} % intervals, not corrected for the number of verdicts). Coarse counts only where it was trained like fine: "
        "with equal weight in the same run, or by itself with equal steps, seed and data."
    )
    tables = [part for kind in dict.fromkeys(r.kind for r in found.rows) for part in _of_kind(found, kind)]
    arms = definitions([(_title(arm), ARM_WORDS[arm]) for arm in _NAMES])
    return section("looking", "Does looking pay?", listed, *tables, tag("h3", "Ways of looking"), arms, note=note)


def _verdict(v: LookVerdict) -> Markup:
    kind, word = _PILLS.get(v.outcome, ("warn", "no verdict"))
    return tag("li", tag("span", word, class_=f"pill {kind} mark"), v.words)


def _title(arm: str) -> str:
    return arm.replace("_", " ")


def _of_kind(found: Foveation, kind: str) -> list[Child]:
    rows = [r for r in found.rows if r.kind == kind]
    points = not any("acc" in arm for r in rows for arm in r.arms.values())
    metric = "px384_median" if points else "acc"
    what = "Median error of points, px on a side of 384" if points else "Answers that are right as a whole, %"
    heading = f"{what}: {kind}" if kind else what
    shown = [arm for arm in _NAMES if any(arm in r.arms for r in rows)]
    body = [[r.group, str(len(r.seeds)), *(_arm(r, arm, metric) for arm in shown)] for r in rows]
    note = "Mean ± standard deviation over seeds, below it the interval over seeds and clips. In grey: that pass was not trained."
    return [
        tag("h3", heading), table(("group", "seeds", *map(_title, shown)), body), tag("p", note, class_="note"), *_compared(rows, kind),
    ]


def _arm(row: ArmsRow, arm: str, metric: str) -> Child:
    found = row.arms.get(arm, {}).get(metric)
    if found is None:
        return "–"
    ends = words.span(metric, found.low, found.high)
    cell = join(words.estimate(metric, found), tag("br"), tag("span", ends, class_="note")) if ends else words.estimate(metric, found)
    trained = row.trained.get("coarse" if arm == "coarse" else "fine", 0.0) > 0
    return cell if trained else tag("span", cell, class_="note", title="this pass was not trained")


def _compared(rows: Sequence[ArmsRow], kind: str) -> list[Child]:
    names = list(dict.fromkeys(n for r in rows for n in r.compared))
    if not names:
        return []
    bare = {n: n.removesuffix(f".{kind}") if kind else n for n in names}
    body = [[r.group, _weights(r), *(_compared_cell(n, r.compared.get(n)) for n in names)] for r in rows]
    head = [tag("s", bare[n]) if is_struck(n) else bare[n] for n in names]
    note = tag("p", tag("s", "Struck out"), ": unmatched, not evidence. The coarse pass was not trained with the weight of the fine one.",
               class_="note")
    return [table(("group", "weights", *head), body, text_columns=(0, 1), class_="wide"), note if any(map(is_struck, names)) else None]


def _weights(row: ArmsRow) -> str:
    return ", ".join(f"{arm} {weight:g}" for arm, weight in row.trained.items())


def _compared_cell(name: str, found: Estimate | None) -> Child:
    if found is None:
        return "–"
    ends = f"[{number(name, found.low)}, {number(name, found.high)}]" if math.isfinite(found.low) and math.isfinite(found.high) else ""
    cell = join(number(name, found.value), tag("br"), tag("span", ends, class_="note")) if ends else number(name, found.value)
    return tag("s", cell) if is_struck(name) else cell
