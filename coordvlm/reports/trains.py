"""The table of what trains, for a console and a page; its lines are those of ``modules.trains``, as ``run.json`` keeps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coordvlm.reports.page import Child, table, tag

HEADER = ("part", "parameters", "trained", "share", "type", "learning rate")
_TEXT = (0, 4)  # columns of words


def cells(line: Mapping[str, Any]) -> tuple[str, ...]:
    """Of one group of parameters, as in ``HEADER``."""
    rates = " and ".join(f"{x:.3g}" for x in line["lr"]) or "-"
    share = f"{100 * line['share']:.3g} %"
    return (line["group"], f"{line['parameters']:,}", f"{line['trained']:,}", share, " and ".join(line["types"]), rates)


def as_text(lines: Sequence[Mapping[str, Any]]) -> str:
    """Aligned columns."""
    rows = [HEADER, *(cells(line) for line in lines)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    aligned = ([t.ljust(w) if i in _TEXT else t.rjust(w) for i, (t, w) in enumerate(zip(row, widths, strict=True))] for row in rows)
    return "\n".join("  ".join(row).rstrip() for row in aligned)


def as_table(lines: object) -> Child:
    """With its heading; nothing when the run did not record it."""
    if not isinstance(lines, list):
        return None
    return [tag("h3", "What trains"), table(HEADER, (cells(line) for line in lines), text_columns=_TEXT)]
