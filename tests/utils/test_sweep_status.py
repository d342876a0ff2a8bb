from __future__ import annotations

import os
from pathlib import Path

import pytest

from coordvlm.utils.sweep import JobResult
from coordvlm.utils.sweep_status import SweepStatus


def test_a_line_for_each_job_and_no_other_where_there_is_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = SweepStatus(every_seconds=0)
    status.total = 3
    status.working([("seed=0", tmp_path)], 1)
    status.job_ended(JobResult(0, (), "finished", 0.125, "/s/000_x"), "seed=0", 61)
    status.job_ended(JobResult(1, (), "failed", None, "/s/001_y", "DataError: a\n[b]"), "seed=1", 2)
    assert capsys.readouterr().out.splitlines() == [
        "job 1/3  finished  1:01  0.1250  seed=0  000_x",
        "job 2/3  failed  0:02  seed=1  001_y",
        "    DataError: a",
        "[b]",
        "    console: /s/001_y/console.log",
    ]


def test_on_a_terminal_one_line_shows_what_the_jobs_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((64, 20)))
    (tmp_path / "console.log").write_text("step 1\nstep 20 / 60  l1 0.2\n")
    status = SweepStatus(every_seconds=0)
    status.total = 4
    status.working([("seed=0", tmp_path), ("seed=1", tmp_path / "b")], 2)
    assert capsys.readouterr().out == "\r\x1b[2Kjob 2/4 | seed=0  step 20 / 60  l1  | seed=1"
    status.job_ended(JobResult(0, (), "finished", None, "/s/000_x"), "seed=0", 60)
    status.working([("seed=1" * 20, tmp_path)], 2)
    last = capsys.readouterr().out.split("\r\x1b[2K")[-1]
    assert last.startswith("job 2/4, about 1:30 left | seed=1seed=1")
    assert len(last) == 63
