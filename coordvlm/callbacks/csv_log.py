"""log.csv: one row per step that logged anything. Columns may appear late; the file is then rewritten once."""

from __future__ import annotations

import csv
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class CSVLog(Logger):
    """A logger whose file survives a crash (each row is flushed) and a resume (rows beyond the checkpoint are cut).

    Args:
        path: the file.
        timed: add the column ``time``: seconds of logged training up to this row, those of the run that is resumed included.
    """

    def __init__(self, path: str, timed: bool = False) -> None:
        super().__init__()
        self.path, self.timed = Path(path), timed
        self._began: float | None = None
        self._before = 0.0
        self._columns: list[str] = []

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The resolved config is kept beside this file."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if self._began is None:
            self._began = time.monotonic()
        row = {"step": str(step), **{k: repr(float(v)) for k, v in metrics.items() if k != "epoch"}}
        if len(row) == 1:
            return
        if self.timed:
            row["time"] = f"{self._before + time.monotonic() - self._began:.2f}"
        if new := [k for k in row if k not in self._columns]:
            rows = list(read_rows(self.path)) if self._columns else []
            self._columns += new
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._write(rows, "w", header=True)
        self._write([row], "a", header=False)

    def _write(self, rows: list[dict[str, str]], mode: str, *, header: bool) -> None:
        with self.path.open(mode, newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns, restval="")
            if header:
                writer.writeheader()
            writer.writerows(rows)

    @rank_zero_only
    def continue_from(self, path: Path, last_step: int) -> None:
        """Copy the rows of an earlier run up to its checkpoint, so that curves have no gap."""
        rows = [r for r in read_rows(path) if int(r["step"]) < last_step]
        if rows:
            self._before = float(rows[-1].get("time") or 0)
            self._columns = list(rows[0])
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._write(rows, "w", header=True)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a log; an absent file has none."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_curves(path: Path) -> Mapping[str, tuple[list[float], list[float]]]:
    """Column -> (steps, values); empty cells are left out."""
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for row in read_rows(path):
        for name, text in row.items():
            if name not in ("step", "time") and text:
                steps, values = curves.setdefault(name, ([], []))
                steps.append(float(row["step"]))
                values.append(float(text))
    return curves
