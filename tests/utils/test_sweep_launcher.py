"""Sweeps of a command that does nothing, in processes that are real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.utils import sweep_command
from tests.utils.test_overrides import NASTY

ROOT = Path(__file__).resolve().parents[2]
Outcome = dict[str, Any]


@pytest.fixture
def root(conf: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Holds ``conf``, ``outputs`` and what the jobs saw; the command runs in this process, its jobs in others."""
    with (conf / "train.yaml").open("a") as file:
        file.write("resume: null\n")
    monkeypatch.setenv("FAKE_ROOT", str(conf.parent))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.chdir(ROOT)
    return conf.parent


def sweep(*argv: str) -> int:
    return sweep_command.cli(["--multirun", *argv])


def seen(root: Path) -> list[Outcome]:
    """What the jobs saw since the last call, in the order they started."""
    files = sorted(root.glob("seen_*.json"))
    found = [json.loads(file.read_text()) for file in files]
    for file in files:
        file.unlink()
    return found


def folder(root: Path) -> Path:
    (found,) = (root / "outputs" / "train" / "multirun").iterdir()
    return found


def jobs(root: Path) -> list[Outcome]:
    found = json.loads((folder(root) / "jobs.json").read_text())
    assert isinstance(found, list)
    return found


def start(root: Path, *argv: str) -> subprocess.Popen[str]:
    """A sweep in a process of its own, its output in ``root / "out"``."""
    with (root / "out").open("a") as out:
        command = [sys.executable, "-m", "tests.utils.sweep_command", *argv]
        return subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, text=True, start_new_session=True)


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def waits(root: Path, seed: int) -> Callable[[], bool]:
    """Whether the job of the seed is in the middle of its work."""
    pattern = f"multirun/*/{seed - 1:03d}_*/waits"
    return lambda: bool(list((root / "outputs" / "train").glob(pattern)))


def test_failed_and_killed_jobs_are_recorded_and_run_again_and_finished_ones_do_not(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    phrase = f"fail:1 kill:2 {' | '.join(NASTY)}"
    assert sweep("seed=1,2,3", f"phrase={phrase}") == 1
    out, _ = capfd.readouterr()
    first = seen(root)
    assert [job["seed"] for job in first] == [1, 2, 3]
    assert len({job["pid"] for job in first} | {os.getpid()}) == 4
    assert {job["phrase"] for job in first} == {phrase}
    assert [(job["status"], job["metric"]) for job in jobs(root)] == [("failed", None), ("failed", None), ("finished", 1.5)]
    assert jobs(root)[0]["error"] == "DataError: file.json: must be a number: got 1"
    assert "killed by SIGKILL" in jobs(root)[1]["error"]
    assert all(job["seconds"] > 0 for job in jobs(root))
    assert [Path(job["folder"]).name[:4] for job in jobs(root)] == ["000_", "001_", "002_"]
    assert "the console of seed 3" in Path(jobs(root)[2]["folder"], "console.log").read_text()
    assert "the console of seed 3" not in out
    assert [line.split("  ")[:2] for line in out.splitlines() if line.startswith("job ")] == [
        ["job 1/3", "failed"], ["job 2/3", "failed"], ["job 3/3", "finished"],
    ]

    (root / "repaired").touch()
    assert sweep_command.cli(["resume_sweep=latest"]) == 0
    assert [(job["seed"], job["phrase"]) for job in seen(root)] == [(1, phrase), (2, phrase)]
    assert [(job["status"], job["metric"]) for job in jobs(root)] == [("finished", seed / 2) for seed in (1, 2, 3)]
    assert [x.name[:3] for x in sorted((folder(root) / "earlier").iterdir())] == ["000", "001"]


def test_a_sweep_can_grow_but_not_change(root: Path, conf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert sweep("seed=2") == 0
    seconds = jobs(root)[0]["seconds"]
    assert sweep_command.cli(["resume_sweep=latest", "seed=1,2"]) == 0
    assert [job["seed"] for job in seen(root)] == [2, 1]
    assert [(job["job"], job["metric"]) for job in jobs(root)] == [(0, 0.5), (1, 1.0)]
    assert jobs(root)[1]["seconds"] == seconds
    assert len(list(folder(root).glob("[0-9]*"))) == 2
    assert sweep_command.cli(["resume_sweep=latest", "seed=2"]) == 0
    assert "also holds jobs of other arguments: 000_" in capfd.readouterr().out
    assert [job["metric"] for job in jobs(root)] == [1.0, 0.5]

    recipe = conf / "loss" / "ce.yaml"
    recipe.write_text(recipe.read_text().replace("alpha_l1: 5", "alpha_l1: 6"))
    assert sweep_command.cli(["resume_sweep=latest", "seed=2,3"]) == 2
    assert "is finished, but its configuration has changed since (loss.alpha_l1: 5 -> 6)" in capfd.readouterr().err
    assert not seen(root)


def test_two_at_a_time_share_the_cores_and_take_the_gpus_in_turn(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordvlm.utils.sweep_launcher.cores", lambda: 6)
    assert sweep("seed=1,2", "phrase=together", "sweep.parallel=2", "hydra.launcher.gpus=[4,7]") == 0
    found = seen(root)
    assert {job["OMP_NUM_THREADS"] for job in found} == {"3"}
    assert {job["CUDA_VISIBLE_DEVICES"] for job in found} == {"4", "7"}


def test_a_sweeper_that_wants_values_back_gets_them(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweepers of the optimising kind launch batch after batch and read each job's value."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    got: list[Any] = []
    monkeypatch.setattr(BasicSweeper, "sweep", _optimise(BasicSweeper.sweep, got))
    assert sweep("seed=1,2", "phrase=fail:2", "hydra.sweeper.max_batch_size=1") == 1
    assert got[0] == 0.5
    with pytest.raises(TypeError):
        float(got[1])  # how such sweepers tell a failed trial
    assert [job["status"] for job in jobs(root)] == ["finished", "failed"]


def _optimise(sweep: Callable[..., Any], got: list[Any]) -> Callable[..., None]:
    def run(self: Any, arguments: Sequence[str]) -> None:
        got.extend(job.return_value for batch in sweep(self, arguments) for job in batch)

    return run


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux interrupts the jobs of a process that was killed")
def test_a_killed_sweep_goes_on_from_the_checkpoint_of_the_job_it_was_at(root: Path) -> None:
    process = start(root, "--multirun", "seed=1,2", "phrase=wait:2")
    wait_for(waits(root, 2), "the second job")
    process.kill()
    process.wait()
    (root / "go").touch()
    assert sweep_command.cli(["resume_sweep=latest"]) == 0
    found = seen(root)
    assert [job["seed"] for job in found] == [1, 2, 2]
    earlier = folder(root) / "earlier"
    assert [job["resume"] for job in found] == [None, None, str(next(earlier.iterdir()))]
    assert [job["status"] for job in jobs(root)] == ["finished"] * 2


def test_ctrl_c_lets_the_running_jobs_save_and_starts_no_other(root: Path) -> None:
    process = start(root, "--multirun", "seed=1,2,3", "phrase=wait:1,2", "sweep.parallel=2")
    wait_for(lambda: waits(root, 1)() and waits(root, 2)(), "both jobs")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert [job["status"] for job in jobs(root)] == ["interrupted", "interrupted", "waiting"]
    assert len(list(folder(root).glob("*/checkpoints/last/trainer.ckpt"))) == 2
    out = (root / "out").read_text()
    assert f"go on with: python -m tests.utils.sweep_command resume_sweep={folder(root)}" in out
    assert "Traceback" not in out


def test_being_terminated_is_ctrl_c_and_a_second_one_kills(root: Path) -> None:
    process = start(root, "--multirun", "seed=1,2", "phrase=wait:1 deaf")
    wait_for(waits(root, 1), "the job")
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: "Ctrl-C again kills" in (root / "out").read_text(), "the hint")
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    (job,) = seen(root)
    wait_for(lambda: not _alive(job["pid"]), "the end of the job")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_two_sweeps_do_not_share_a_folder(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    process = start(root, "--multirun", "seed=1", "phrase=wait:1")
    try:
        wait_for(waits(root, 1), "the job")
        assert sweep_command.cli(["resume_sweep=latest"]) == 2
        assert f"process {process.pid} or one of its jobs still works on this sweep" in capfd.readouterr().err
    finally:
        (root / "go").touch()
        assert process.wait(timeout=30) == 0


@pytest.mark.parametrize("parallel", ["0", "-1", "two", "1.5"])
def test_a_number_of_jobs_that_is_none_is_refused(root: Path, capfd: pytest.CaptureFixture[str], parallel: str) -> None:
    assert sweep("seed=1", f"sweep.parallel={parallel}") == 2
    assert f"sweep.parallel={parallel}: must be a number of jobs, at least 1" in capfd.readouterr().err
    assert not seen(root)


def test_the_basic_launcher_runs_jobs_in_this_process(root: Path) -> None:
    assert sweep("seed=1", "hydra/launcher=basic") == 0
    assert seen(root)[0]["pid"] == os.getpid()


@pytest.mark.parametrize(
    ("launcher", "package"), [("submitit_slurm", "hydra_plugins.hydra_submitit_launcher"), ("ray", "hydra_plugins.hydra_ray_launcher")]
)
def test_other_launchers_take_the_place_of_ours(root: Path, capfd: pytest.CaptureFixture[str], launcher: str, package: str) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed")
    assert sweep_command.cli(["--cfg", "hydra", f"hydra/launcher={launcher}"]) == 0
    shown = capfd.readouterr().out
    assert f"_target_: {package}" in shown
    assert "sweep_launcher" not in shown
