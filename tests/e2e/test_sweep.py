"""The shipped sweeps, and a sweep of real trainings that is killed in the middle."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file

from coordvlm.utils import locations
from tests.e2e.commands import FAST, call, losses

SWEEPS = Path(__file__).resolve().parents[2] / "sweeps"
FILES = sorted(SWEEPS.glob("*.yaml"))
ADAPTERS, LEVERS, CONTROLS = (SWEEPS / f"{name}.yaml" for name in ("lora_capacity", "point_levers", "foveation_controls"))
#: Test images of the data of a sweep: shapes, dots.
EVAL_SEEDS = {"detect": 20240, "count": 20241}


def params(file: Path) -> dict[str, list[str]]:
    found = yaml.safe_load(file.read_text())["hydra"]["sweeper"]["params"]
    return {key: re.split(r",(?![^\[]*\])", str(value)) for key, value in found.items()}


def plain(job: DictConfig) -> dict[str, Any]:
    """Without what says where output goes; interpolations as they are written."""
    found = OmegaConf.to_container(job, resolve=False)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items() if key not in ("hydra", "paths")}


@pytest.fixture
def jobs_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], list[DictConfig]]:
    """File -> the configurations of its first seed's jobs."""
    from hydra.core.global_hydra import GlobalHydra

    from coordvlm.utils import cli, config_check

    monkeypatch.setenv("COORDVLM_OUTPUTS", str(tmp_path))

    def compose(file: Path) -> list[DictConfig]:
        monkeypatch.setattr(config_check, "MAX_CHECKED_JOBS", len(params(file).get("loss", "1")))
        cli._register_resolvers(locations.FreshFolders(reserve=False), None)
        GlobalHydra.instance().clear()
        args = cli.argparse.Namespace(config_path=None, config_dir=str(SWEEPS))
        try:
            return config_check.check_overrides(cli._make_hydra("train", args), file.stem, [])
        finally:
            GlobalHydra.instance().clear()

    return compose


@pytest.mark.parametrize("file", [f for f in FILES if f not in (ADAPTERS, LEVERS, CONTROLS)], ids=lambda file: file.stem)
def test_the_jobs_of_a_shipped_sweep_differ_in_nothing_but_seed_and_loss(file: Path, jobs_of: Callable[[Path], list[DictConfig]]) -> None:
    jobs = jobs_of(file)
    assert {job.hydra.mode.name for job in jobs} == {"MULTIRUN"}
    rest = []
    for job in jobs:
        assert job.loss.average == "group"
        assert job.data.source.eval_seed == EVAL_SEEDS[job.task]
        assert job.data.source.num_test >= 300
        rest.append({key: value for key, value in plain(job).items() if key not in ("loss", "seed")})
    assert all(other == rest[0] for other in rest)
    assert len({json.dumps(OmegaConf.to_container(job.loss, resolve=False), sort_keys=True) for job in jobs}) == len(jobs)


def test_the_jobs_of_a_sweep_of_adapters_differ_in_nothing_but_what_is_swept(
    jobs_of: Callable[[Path], list[DictConfig]], monkeypatch: pytest.MonkeyPatch
) -> None:
    swept = params(ADAPTERS)
    monkeypatch.setattr(sys.modules[__name__], "params", lambda _: {"loss": [""] * math.prod(map(len, swept.values()))})  # all jobs
    jobs = jobs_of(ADAPTERS)
    settings = {(job.adapter.r, job.adapter.alpha, job.adapter.dropout, job.optim.schedule) for job in jobs}
    assert len(settings) == len(jobs) == 24
    for job in jobs:
        job.adapter.r = job.adapter.alpha = job.adapter.dropout = job.optim.schedule = None
    assert all(plain(job) == plain(jobs[0]) for job in jobs)
    assert (jobs[0].task, jobs[0].optim.lr, jobs[0].optim.muon_lr, jobs[0].model.load.dtype) == ("ground", 2e-4, None, "bfloat16")


def test_the_jobs_of_a_sweep_of_controls_differ_in_their_question_and_their_module(
    jobs_of: Callable[[Path], list[DictConfig]], monkeypatch: pytest.MonkeyPatch
) -> None:
    swept = params(CONTROLS)
    monkeypatch.setattr(sys.modules[__name__], "params", lambda _: {"loss": [""] * math.prod(map(len, swept.values()))})  # all jobs
    jobs = jobs_of(CONTROLS)
    settings = {
        (job.seed, tuple(job.data.source.eval_kinds), job.module.coarse_weight, job.module.fine_weight, job.module.queries) for job in jobs
    }
    assert len(settings) == len(jobs) == 63
    assert len({(s[2] > 0, s[3] > 0, s[4]) for s in settings}) == 7
    for kind in ("qa", "cue", "global"):
        mine = [plain(job) for job in jobs if list(job.data.source.eval_kinds) == [kind]]
        rest = [{key: value for key, value in job.items() if key not in ("module", "seed")} for job in mine]
        assert len(rest) == 21
        assert all(other == rest[0] for other in rest)


def test_the_jobs_of_a_sweep_of_levers_differ_in_nothing_but_these(
    jobs_of: Callable[[Path], list[DictConfig]], monkeypatch: pytest.MonkeyPatch
) -> None:
    swept = params(LEVERS)
    monkeypatch.setattr(sys.modules[__name__], "params", lambda _: {"loss": [""] * math.prod(map(len, swept.values()))})  # all jobs
    jobs = jobs_of(LEVERS)
    settings = {tuple(str(OmegaConf.select(job, key)) for key in swept) for job in jobs}
    assert len(settings) == len(jobs) == 48
    for job in jobs:
        for key in swept:
            OmegaConf.update(job, key, None)
    assert all(plain(job) == plain(jobs[0]) for job in jobs)
    assert (jobs[0].task, jobs[0].adapter.r, jobs[0].data.batch_size, jobs[0].schedule.tasks.regression.optim.lr) == ("count", 16, 2, None)


def test_the_same_loss_is_the_same_run_in_every_sweep_on_the_same_data(jobs_of: Callable[[Path], list[DictConfig]]) -> None:
    first, second = (jobs_of(SWEEPS / f"{name}.yaml")[0] for name in ("phase1_abc", "stage1_distribution"))
    assert plain(first) == plain(second)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_shipped_sweep_says_how_to_run_it_and_what_it_costs(file: Path) -> None:
    header = "\n".join(line for line in file.read_text().splitlines() if line.startswith("#"))
    assert f"python -m coordvlm.train -cd sweeps -cn {file.stem} --multirun" in header
    for word in ("Hardware:", "Cost", "Reached:"):
        assert word in header
    number = math.prod(len(values) for values in params(file).values())
    assert re.search(rf"\b{number} jobs\b", header)
    assert f"| `{file.stem}` |" in (SWEEPS / "README.md").read_text()
    assert re.search(rf"`{file.stem}` \|.*\| {number} \|", (SWEEPS / "README.md").read_text())


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux interrupts the jobs of a process that was killed")
def test_a_sweep_killed_in_the_middle_ends_as_if_nothing_had_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = ("loss=ce,hybrid", *FAST, "trainer.max_steps=40", "trainer.val_check_interval=1000", "trainer.log_every_n_steps=1")
    assert call(tmp_path / "one_go", "train", "--multirun", *options).status == 0
    killed = tmp_path / "killed"
    environment = {**os.environ, "COORDVLM_OUTPUTS": str(killed)}
    command = [sys.executable, "-m", "coordvlm.train", "--multirun", *options]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 200
    while not [log for log in killed.glob("train/multirun/*/001_*/log.csv") if len(losses(log.parent)) > 3]:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert call(killed, "train", "resume_sweep=latest").status == 0

    (one_go,), (resumed,) = (list((root / "train" / "multirun").iterdir()) for root in (tmp_path / "one_go", killed))
    expected, found = (json.loads((folder / "jobs.json").read_text()) for folder in (one_go, resumed))
    assert [(job["status"], job["overrides"], job["metric"]) for job in found] == [
        ("finished", job["overrides"], job["metric"]) for job in expected
    ]
    first, second = (Path(job["folder"]) for job in found)
    assert json.loads((first / "run.json").read_text()).get("resumed_from") is None
    earlier = resumed / "earlier" / f"{second.name}_1"
    assert json.loads((second / "run.json").read_text())["resumed_from"] == str(earlier / "checkpoints" / "last")
    for folder, job in zip((first, second), expected, strict=True):
        mine, theirs = (load_file(x / "checkpoints" / "last" / "trained.safetensors") for x in (folder, Path(job["folder"])))
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            torch.testing.assert_close(mine[name], value, rtol=0, atol=1e-6)
