"""Base beside tuned: another evaluation under the same protocol next to this one, on the page and in the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from coordvlm.contracts import Interval
from coordvlm.reports import tables
from coordvlm.reports.page import Child, Markup, fold, section, table, tag

#: Differences shown in the terminal; the page has all.
_SHOWN = (*tables.MAIN, "AP75", "F1_mean", "acc_90", "reject_f1", "duplicate_rate", "tokens_per_image")
#: What the deciding metric is called in a sentence, in points of 100.
_TITLES = {"acc_50": "points of Acc@0.5", "pck384_5": "points of answers within 5 px"}


@dataclass(frozen=True)
class Beside:
    """One metric of both. ``difference`` is tuned minus base with the paired interval; ``p_value`` NaN: not tested."""

    base: Interval
    tuned: Interval
    difference: Interval
    p_value: float = math.nan

    def better(self, name: str) -> int:
        """+1 tuned is better, -1 worse, 0 not told apart: the interval holds zero, or there is none."""
        low, high = self.difference.low, self.difference.high
        sign = 1 if low > 0 else -1 if high < 0 else 0
        return sign * tables.describe(name)[1]


@dataclass(frozen=True)
class BaseComparison:
    """This evaluation beside another one.

    Args:
        name: what the other one is, in words. folder: where it is.
        num_images: on which both were scored. metrics: those that both have.
    """

    name: str
    folder: str
    num_images: int
    metrics: Mapping[str, Beside]

    @property
    def sentence(self) -> str:
        """The verdict on what decides (AP, Acc@0.5, pck384_5), in points of 100: ``Tuned beats base by 31.2 AP [28.0, 34.1].``"""
        name = tables.primary(self.metrics)
        title = _TITLES.get(name, name)
        if name not in self.metrics:
            return f"{name} was not measured on both, so there is no verdict."
        both = self.metrics[name]
        value, low, high = (100 * v for v in (both.difference.value, both.difference.low, both.difference.high))
        if not math.isfinite(value):
            return f"{name} is undefined on one of the two, so there is no verdict."
        if not (math.isfinite(low) and math.isfinite(high)):
            return f"Tuned is {_signed(value)} {title} from base; without replicates nothing says whether that is more than chance."
        interval = f"[{low:.1f}, {high:.1f}]"
        if (better := both.better(name)) > 0:
            return f"Tuned beats base by {value:.1f} {title} {interval}."
        if better < 0:
            return f"Tuned is worse than base by {-value:.1f} {title} [{-high:.1f}, {-low:.1f}]."
        return f"Tuned and base cannot be told apart: {_signed(value)} {title} {interval}."

    @property
    def verdict(self) -> str:
        """``good``, ``bad`` or ``warn``."""
        name = tables.primary(self.metrics)
        found = self.metrics[name].better(name) if name in self.metrics else 0
        return {1: "good", -1: "bad"}.get(found, "warn")

    def rows(self) -> list[tuple[tables.Row, Beside]]:
        """In the order of every table."""
        return [(row, self.metrics[row.name]) for row in tables.rows({name: both.tuned for name, both in self.metrics.items()})]


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def difference(name: str, value: float) -> str:
    """A difference of two values of a metric, with its sign."""
    text = tables.number(name, value)
    return f"+{text}" if value > 0 and math.isfinite(value) else text.replace("-", "−")


def interval(name: str, found: Interval) -> str:
    """``+0.2810 to +0.3402``, or a dash."""
    if not (math.isfinite(found.low) and math.isfinite(found.high)):
        return "–"
    return f"{difference(name, found.low)} to {difference(name, found.high)}"


def headline(compared: BaseComparison | None) -> Markup | None:
    """The sentence, before everything but a failure."""
    if compared is None:
        return None
    over = f"Base: {compared.name}. 95 % interval of the paired difference over {compared.num_images:,} images, in points of 100."
    return tag("div", tag("strong", compared.sentence), over, class_=f"alert {compared.verdict}")


def beside(compared: BaseComparison | None) -> Markup | None:
    """The table; nothing without a base."""
    if compared is None:
        return None
    rows = compared.rows()
    head = ("metric", "", "base", "tuned", "tuned − base", "95 % interval", "")
    main, rest = ([_cells(row, both) for row, both in rows if row.main is wanted] for wanted in (True, False))
    note = (
        "Both were scored under one protocol on the same images with the same bootstrap weights, so the interval is that of the paired "
        "difference: narrower than the two intervals suggest. Many metrics are tested; judge by the one chosen beforehand."
    )
    more = fold(f"{len(rest)} more metrics", table(head, rest, text_columns=(0, 1, 6), class_="wide")) if rest else None
    place = tag("p", "Base: ", compared.name, ", ", tag("code", compared.folder), class_="lead")
    return section("base", "Base beside tuned", place, table(head, main, text_columns=(0, 1, 6), class_="wide"), more, note=note)


def _cells(row: tables.Row, both: Beside) -> tuple[Child, ...]:
    name = row.name
    kind, word = {1: ("good", "better"), -1: ("bad", "worse")}.get(both.better(name), ("", "not told apart"))
    known = bool(row.better) and math.isfinite(both.difference.low)
    pill = tag("span", word, class_=f"pill {kind}".strip()) if known else None
    return (
        tag("b", name) if row.main else name, tables.arrow(row.better), tables.number(name, both.base.value), row.shown,
        tag("b", difference(name, both.difference.value)), interval(name, both.difference), pill,
    )


def beside_table(compared: BaseComparison) -> Group:
    """For the terminal: the main differences, and the sentence last."""
    shown = Table(title="Base beside tuned", title_justify="left", header_style="dim", box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("metric", no_wrap=True)
    for column in ("base", "tuned", "tuned − base", "95 % interval"):
        shown.add_column(column, justify="right", no_wrap=True)
    for row, both in compared.rows():
        if row.name in _SHOWN:
            style = {1: "green", -1: "red"}.get(both.better(row.name))
            cells = (tables.number(row.name, both.base.value), row.shown, difference(row.name, both.difference.value))
            shown.add_row(f"{row.name} {tables.arrow(row.better)}", *cells, interval(row.name, both.difference), style=style)
    return Group(Text(), shown, Text(compared.sentence, style="bold"))


def comparison_to_json(compared: BaseComparison) -> dict[str, object]:
    """The content of base.json; strict JSON, undefined values are null."""

    def plain(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "base": compared.folder,
        "name": compared.name,
        "images": compared.num_images,
        "sentence": compared.sentence,
        "metrics": {
            name: {
                "base": plain(both.base.value), "tuned": plain(both.tuned.value), "difference": plain(both.difference.value),
                "low": plain(both.difference.low), "high": plain(both.difference.high), "p_value": plain(both.p_value),
            }
            for name, both in compared.metrics.items()
        },
    }
