"""Processes that start and end together; real ones, without torch."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from coordvlm.utils import launch
from coordvlm.utils.cli import run_command
from coordvlm.utils.errors import ConfigError
from tests.utils import rank_command


@pytest.fixture
def outputs(conf: Path) -> Path:
    return conf.parent / "outputs"


def run(outputs: Path, phrase: str = "null", *argv: str) -> tuple[int, Path, dict[str, Any]]:
    """Exit status, the run's folder, its record."""
    status = run_command("train", rank_command.main, argv=[f"phrase={phrase}", *argv])
    (folder,) = outputs.glob("train/*")
    return status, folder, json.loads((folder / "run.json").read_text())


def test_ranks_share_a_folder_and_rank_0_speaks_and_writes(
    outputs: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(launch, "usable_cpus", lambda: 7)
    status, folder, record = run(outputs, "a, ${b} 'c'", "loss=hybrid")
    assert status == 0
    assert (record["rank"], record["status"]) == (0, "finished")
    assert record["threads"] == "3"  # cores are shared out
    assert record["phrase"] == "a, ${b} 'c'"
    assert "loss=hybrid" in record["overrides"]
    assert shlex.split(record["command_line"]) == [Path(sys.executable).name, *sys.orig_argv[1:]]
    assert {p.name for p in folder.iterdir()} == {".hydra", "config.yaml", "here.0", "here.1", "run.json", "run.log", "run.rank1.log"}
    out = capfd.readouterr().out
    assert "the console of rank 0" in out
    assert "rank 1" not in out
    assert "the console of rank 1" in (folder / "run.rank1.log").read_text()


def test_the_value_is_rank_0s(outputs: Path) -> None:
    seen: list[Any] = []
    run_command("train", lambda cfg: seen.append(rank_command.main(cfg)), argv=[])
    assert seen == [0.25]


@pytest.mark.parametrize(
    ("phrase", "message", "kind"),
    [
        ("fail:1 notice:0", "process 1: file.json: must be a number: got 7", "RankError"),
        ("fail:0 notice:1", "file.json: must be a number: got 7", "DataError"),
        ("bug:1 notice:0", "process 1: a bug", "RankError"),
        ("kill:1 notice:0", "process 1: it was ended by SIGKILL (out of memory?)", "RankError"),
        ("kill:0 notice:1", "process 0: it was ended by SIGKILL (out of memory?)", "Killed"),
    ],
)
def test_the_cause_is_told_by_whichever_rank_it_came_from(
    outputs: Path, capfd: pytest.CaptureFixture[str], phrase: str, message: str, kind: str
) -> None:
    status, _, record = run(outputs, phrase)
    error = capfd.readouterr().err
    assert status == 1
    assert [line for line in error.splitlines() if line.startswith("error")] == [f"error: {message}"]
    assert "Traceback" not in error
    assert record["status"] == "failed"
    assert (record["error"]["type"], record["error"]["message"]) == (kind, message)


def test_a_rank_that_hangs_is_ended(outputs: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "GRACE", 0.8)
    started = time.monotonic()
    status, _, record = run(outputs, "fail:1 hang:0")
    assert (status, record["status"]) == (1, "failed")
    assert "error: process 1: file.json: must be a number: got 7" in capfd.readouterr().err
    assert record["error"]["message"] == "process 1: file.json: must be a number: got 7"
    assert time.monotonic() - started < 20


def test_ctrl_c_reaches_every_rank_once(outputs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def press() -> None:
        while len(list(outputs.glob("train/*/here.*"))) < 2:
            time.sleep(0.05)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    status, _, record = run(outputs, "wait:0 wait:1")
    thread.join()
    assert status == 130
    assert record["status"] == "interrupted"
    assert "Traceback" not in capfd.readouterr().err


def test_ranks_end_when_their_supervisor_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[Any] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: ended.append((pid, number)))
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(launch, "GRACE", 0.0)
    launch._end_with(os.getppid() + 1)  # not this process's parent
    assert ended == [(os.getpid(), signal.SIGTERM), 1]


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_processes_started_from_outside_are_refused(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "2")
    with pytest.raises(ConfigError, match=f"{variable}=2: several processes were started from outside"):
        launch.refuse_foreign_launcher()
    monkeypatch.setenv(variable, "1")
    launch.refuse_foreign_launcher()


def test_without_ranks_errors_pass_unchanged() -> None:
    with pytest.raises(RuntimeError, match="nccl"), launch.shared_fate():
        raise RuntimeError("nccl")
