"""An audit in the terminal: one table per topic with a column per split, then the places worth looking at."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from coordvlm.reports.audit_data import TOPICS, Audit, Finding, Level
from coordvlm.reports.page import visible

STYLES = {Level.OK: "dim", Level.NOTE: "cyan", Level.WARN: "yellow", Level.FAIL: "bold red"}
#: Examples that the terminal shows of each check; audit.json and the page have more.
_SHOWN = 3
#: Splits that have a column each.
_MOST_COLUMNS = 3
#: The least width of the column of rules, and the width of output that is no terminal.
_RULE_WIDTH, _FILE_WIDTH = 18, 120


@dataclass(frozen=True)
class Row:
    """One check over all splits. by_split: split -> its finding."""

    check: str
    by_split: dict[str, Finding]

    @property
    def worst(self) -> Finding:
        """The finding that decides the level and lends its rule; the first of several."""
        return max(self.by_split.values(), key=lambda f: f.level)

    @property
    def level(self) -> Level:
        return self.worst.level


def rows(findings: Iterable[Finding]) -> list[Row]:
    """Findings of one topic by check, in the order in which checks were met."""
    found: dict[str, dict[str, Finding]] = {}
    for finding in findings:
        found.setdefault(finding.check, {})[finding.split] = finding
    return [Row(check, by_split) for check, by_split in found.items()]


def splits_of(findings: Iterable[Finding]) -> list[str]:
    """Different splits, in the order in which they were met."""
    return list(dict.fromkeys(f.split for f in findings))


def words(check: str) -> str:
    """``near_duplicate`` as it is read."""
    return check.replace("_", " ")


def verdict(audit: Audit) -> str:
    """``2 fail, 3 warn, 5 note, 40 ok``."""
    return ", ".join(f"{number} {level}" for level, number in audit.counts.items() if number or level in ("fail", "warn"))


def audit_table(audit: Audit, title: str) -> Group:
    """What the terminal shows."""
    parts: list[RenderableType] = [Text(f"Audit of {title}", style="bold")]
    parts += [Text(f"  {split}: {text}") for split, text in audit.looked_at.items()]
    for topic, heading in TOPICS.items():
        found = [f for f in audit.findings if f.topic == topic]
        if found:
            parts += [Text(), _topic(heading, found)]
    parts += [*_examples(audit.findings), Text(), Text(verdict(audit), style=STYLES[audit.level])]
    return Group(*parts)


def _topic(heading: str, findings: Sequence[Finding]) -> Table:
    wide = len(splits_of(findings)) <= _MOST_COLUMNS
    return _wide_topic(heading, findings) if wide else _short_topic(heading, findings)


def _short_topic(heading: str, findings: Sequence[Finding]) -> Table:
    """A row per finding worth a look, where a column per split would not fit."""
    fine = sum(f.level is Level.OK for f in findings)
    table = _frame(f"{heading} ({fine} of {len(findings)} checks are ok and not shown)")
    for column in ("split", "found"):
        table.add_column(column, justify="right" if column == "found" else "left", no_wrap=True)
    table.add_column("what should hold", min_width=_RULE_WIDTH)
    for f in sorted((f for f in findings if f.level > Level.OK), key=lambda f: -f.level):
        style = STYLES[f.level]
        table.add_row(Text(f.level.key, style=style), words(visible(f.check)), Text(visible(f.split)), Text(visible(f.shown), style=style),
                      Text(visible(f.rule)))
    return table


def _frame(title: str) -> Table:
    table = Table(title=title, title_justify="left", header_style="dim", box=box.SIMPLE_HEAD, pad_edge=False, expand=False)
    table.add_column("level", no_wrap=True)
    table.add_column("check", no_wrap=True)
    return table


def _wide_topic(heading: str, findings: Sequence[Finding]) -> Table:
    """A row per check and a column per split."""
    table = _frame(heading)
    splits = splits_of(findings)
    for split in splits:
        table.add_column(Text(split), justify="right", no_wrap=True)
    table.add_column("what should hold", min_width=_RULE_WIDTH)
    for row in rows(findings):
        cells = [_cell(row.by_split.get(split), row.level) for split in splits]
        fine = row.level is Level.OK  # its rule is cut where the terminal is narrow; what is not fine is said in full
        rule = Text(visible(row.worst.rule), no_wrap=fine, overflow="ellipsis" if fine else "fold")
        table.add_row(Text(row.level.key, style=STYLES[row.level]), words(visible(row.check)), *cells, rule, style="dim" if fine else None)
    return table


def _cell(finding: Finding | None, worst: Level) -> Text:
    if finding is None:
        return Text("")
    return Text(visible(finding.shown), style=STYLES[finding.level] if worst is not Level.OK else "")


def _examples(findings: Sequence[Finding]) -> list[RenderableType]:
    parts: list[RenderableType] = []
    named = sorted((f for f in findings if f.level >= Level.WARN and f.examples), key=lambda f: -f.level)
    for finding in named:
        head = f"{words(finding.check)} in {finding.split}: {finding.shown}"
        parts += [Text(), Text(visible(head), style=STYLES[finding.level])]
        places = [(e.where, finding.value_text(e)) for e in finding.examples[:_SHOWN]]
        parts += [Padding(Text(visible(f"{w}: {v}" if v else w), overflow="fold"), (0, 0, 0, 2)) for w, v in places]
    return parts


def show(audit: Audit, title: str, *, width: int | None = None) -> None:
    """Print it. ``width``: None takes that of the terminal or of COLUMNS."""
    console = Console(width=width, highlight=False)
    if width is None and not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=_FILE_WIDTH, highlight=False)
    console.print(audit_table(audit, title))
