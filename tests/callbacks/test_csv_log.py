from __future__ import annotations

import math
from pathlib import Path

import pytest

from coordvlm.callbacks.csv_log import CSVLog, read_curves, read_rows


def log_of(path: Path, *rows: tuple[int, dict[str, float]]) -> CSVLog:
    log = CSVLog(str(path))
    for step, metrics in rows:
        log.log_metrics(metrics, step)
    return log


def test_rows_are_on_disk_at_once_and_exact(tmp_path: Path) -> None:
    log_of(tmp_path / "new" / "log.csv", (0, {"loss": 0.1 + 0.2, "epoch": 0.0}))
    assert read_rows(tmp_path / "new" / "log.csv") == [{"step": "0", "loss": repr(0.1 + 0.2)}]


def test_a_late_column_leaves_earlier_rows_empty_there(tmp_path: Path) -> None:
    log_of(tmp_path / "log.csv", (0, {"a": 1}), (1, {"b": 2, "a": 3}), (2, {"b": 4}))
    assert read_rows(tmp_path / "log.csv") == [
        {"step": "0", "a": "1.0", "b": ""}, {"step": "1", "a": "3.0", "b": "2.0"}, {"step": "2", "a": "", "b": "4.0"},
    ]


def test_nothing_but_the_epoch_is_no_row(tmp_path: Path) -> None:
    log_of(tmp_path / "log.csv", (0, {"epoch": 1}), (1, {}))
    assert not (tmp_path / "log.csv").exists()


def test_a_resumed_log_keeps_what_came_before_its_checkpoint(tmp_path: Path) -> None:
    old = tmp_path / "old.csv"
    log_of(old, *((step, {"a": step}) for step in range(5)))
    log = CSVLog(str(tmp_path / "new" / "log.csv"))
    log.continue_from(old, 3)
    log.log_metrics({"a": 30, "b": 1}, 3)
    rows = read_rows(tmp_path / "new" / "log.csv")
    assert [row["step"] for row in rows] == ["0", "1", "2", "3"]
    assert [(row["a"], row["b"]) for row in rows] == [("0.0", ""), ("1.0", ""), ("2.0", ""), ("30.0", "1.0")]
    assert len(read_rows(old)) == 5


def test_a_log_that_is_not_there_is_no_gap(tmp_path: Path) -> None:
    log = CSVLog(str(tmp_path / "log.csv"))
    log.continue_from(tmp_path / "nowhere.csv", 3)
    assert read_rows(tmp_path / "log.csv") == []
    assert read_curves(tmp_path / "log.csv") == {}


def test_curves_leave_empty_cells_out_and_keep_what_is_no_number(tmp_path: Path) -> None:
    log_of(tmp_path / "log.csv", (0, {"a": 1}), (1, {"b": float("nan")}), (4, {"a": 2}))
    curves = read_curves(tmp_path / "log.csv")
    assert curves["a"] == ([0, 4], [1, 2])
    assert curves["b"][0] == [1]
    assert math.isnan(curves["b"][1][0])
    assert set(curves) == {"a", "b"}


def test_time_goes_on_where_the_resumed_run_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("coordvlm.callbacks.csv_log.time.monotonic", lambda: now[0])
    first, second = CSVLog(str(tmp_path / "a.csv"), timed=True), CSVLog(str(tmp_path / "b.csv"), timed=True)
    for step in range(3):
        now[0] = 100.0 + 2 * step
        first.log_metrics({"a": step}, step)
    second.continue_from(tmp_path / "a.csv", 2)
    for step in (2, 3):
        now[0] += 1.5
        second.log_metrics({"a": step}, step)
    assert [row["time"] for row in read_rows(tmp_path / "b.csv")] == ["0.00", "2.00", "2.00", "3.50"]
    assert set(read_curves(tmp_path / "b.csv")) == {"a"}
