from __future__ import annotations

import json
from pathlib import Path

import pytest

from coordvlm.utils.sweep import RESULT_FILE, JobFailure, JobResult, SweepTask, clock, report_job, varying


def test_only_what_tells_jobs_apart_is_shown() -> None:
    assert varying([["loss=ce", "seed=0", "debug=fast"], ["loss=ce", "seed=1", "debug=fast"]]) == [["seed=0"], ["seed=1"]]
    assert varying([["loss=ce", "seed=0"]]) == [["loss=ce", "seed=0"]]
    assert varying([]) == []


@pytest.mark.parametrize(("seconds", "shown"), [(None, ""), (0.4, "0:00"), (59.6, "1:00"), (3723, "1:02:03")])
def test_clock(seconds: float | None, shown: str) -> None:
    assert clock(seconds) == shown


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0.5, {"metric": 0.5, "error": None}),
        (float("nan"), {"metric": None, "error": None}),
        (None, {"metric": None, "error": None}),
        (JobFailure(1, "DataError", "a: b"), {"metric": None, "error": "DataError: a: b"}),
    ],
)
def test_a_job_tells_the_sweep_that_started_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: object, told: object) -> None:
    monkeypatch.delenv(RESULT_FILE, raising=False)
    report_job(value)  # nobody asked
    monkeypatch.setenv(RESULT_FILE, str(tmp_path / "job.json"))
    report_job(value)
    assert json.loads((tmp_path / "job.json").read_text()) == told


def test_a_sweep_is_done_when_all_jobs_asked_for_are(capsys: pytest.CaptureFixture[str]) -> None:
    done, failed = (JobResult(n, (f"seed={n}",), status, None, f"/s/00{n}_x") for n, status in enumerate(("finished", "failed")))
    assert SweepTask(lambda cfg: None, None, [done, failed]).finish(None) == 1
    assert SweepTask(lambda cfg: None, None, [done], earlier=[failed]).finish(None) == 0
    assert "001_x" in capsys.readouterr().out
    assert SweepTask(lambda cfg: None, None).finish(None) == 0  # an optimiser that reports for itself
