from __future__ import annotations

import functools
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from coordvlm import train
from coordvlm.utils.sweep_process import Child, ChildCommand, last_error, last_line


def test_a_command_is_found_by_another_process_or_not() -> None:
    assert ChildCommand.of(train.main, "train", None, "/sweeps") == ChildCommand("coordvlm.train", "train", None, "/sweeps")
    assert ChildCommand.of(lambda cfg: None, "train", None, None) is None
    assert ChildCommand.of(functools.partial(train.main), "train", None, None) is None


def test_a_job_gets_hydras_settings_but_not_those_of_the_sweep() -> None:
    of_the_sweep = ["hydra.mode=MULTIRUN", "hydra/launcher=processes", "+hydra.launcher.gpus=[0]", "hydra/sweeper=basic",
                    "hydra.sweeper.max_batch_size=1", "hydra.sweep.dir=a", "hydra.run.dir=b"]
    command = ChildCommand("coordvlm.train", "abc", config_dir="/a b")
    line = command.arguments(["loss=ce", "phrase='a, b'"], [*of_the_sweep, "hydra.verbose=true"], Path("/it's ${here}"))
    assert line == [
        sys.executable, "-m", "coordvlm.train", "-cd", "/a b", "-cn", "abc", "hydra.verbose=true", "loss=ce", "phrase='a, b'",
        "hydra.mode=RUN", r"hydra.run.dir='/it\'s \${here}'",
    ]


def child(folder: Path, code: str) -> Child:
    return Child([sys.executable, "-c", code], folder, {"GIVEN": "yes"}, None)


def ended(job: Child) -> Child:
    deadline = time.monotonic() + 30
    while not job.ended():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert job.seconds is not None
    return job


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("import os; assert os.environ['GIVEN'] == 'yes'; open(os.environ['COORDVLM_SWEEP_JOB'], 'w').write('{\"metric\": 0.25}')",
         ("finished", 0.25, None)),
        ("", ("finished", None, None)),
        ("import sys; print('error: no such key\\n  and more'); sys.exit(2)", ("failed", None, "no such key   and more")),
        ("raise RuntimeError('a bug')", ("failed", None, "RuntimeError: a bug")),
        ("import sys; sys.exit(3)", ("failed", None, "exit status 3")),
        ("import sys; sys.exit(130)", ("interrupted", None, "stopped by Ctrl-C")),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", ("failed", None, "killed by SIGSEGV")),
    ],
)
def test_how_a_job_ended(tmp_path: Path, code: str, outcome: tuple[str, float | None, str | None]) -> None:
    assert ended(child(tmp_path / "job", code)).outcome() == outcome


def test_a_job_can_be_interrupted_also_where_the_sweep_ignores_interrupts(tmp_path: Path) -> None:
    """As in the background of a shell script."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        job = child(tmp_path, "import time; print('begun', flush=True); time.sleep(60)")
    finally:
        signal.signal(signal.SIGINT, previous)
    while last_line(tmp_path / "console.log") != "begun":
        time.sleep(0.02)
    job.interrupt()
    assert ended(job).outcome()[0] == "interrupted"


def test_a_killed_job_leaves_no_process_behind(tmp_path: Path) -> None:
    code = "import subprocess, sys, os; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); os.kill(os.getpid(), 9)"
    ended(child(tmp_path, code))
    pid = int(last_line(tmp_path / "console.log"))
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_end_of_a_console(tmp_path: Path) -> None:
    console = tmp_path / "console.log"
    assert (last_line(console), last_error(console)) == ("", None)
    console.write_bytes(b"\xff" * 5000 + b"\nstep 1\rstep 2\x1b[0m\n\n")
    assert (last_line(console), last_error(console)) == ("step 2", None)
    assert os.path.getsize(console) > 5000
