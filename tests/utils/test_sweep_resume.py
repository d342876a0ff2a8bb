from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from coordvlm.utils import sweep_resume
from coordvlm.utils.errors import ConfigError, DataError
from coordvlm.utils.record import RunRecord
from coordvlm.utils.runs import CHECKPOINT_FILES, TRAINER_STATE
from coordvlm.utils.sweep import JobResult, write_results
from coordvlm.utils.sweep_resume import Before

CONFIG = {"seed": 0, "loss": {"alpha": 5.0, "names": ["a", "b"]}, "notes": "x", "num_threads": None, "paths": {"run_dir": "a"}}


def args(*overrides: str, config_name: str | None = None) -> argparse.Namespace:
    return argparse.Namespace(overrides=list(overrides), multirun=False, config_name=config_name, config_dir=None, config_path=None)


@pytest.fixture
def sweeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two sweeps of ``train``; the name of the one that started last sorts first."""
    monkeypatch.setenv("COORDVLM_OUTPUTS", str(tmp_path))
    root = tmp_path / "train" / "multirun"
    for name, day in (("b", "01"), ("a", "02")):
        folder = root / name
        folder.mkdir(parents=True)
        sweep_resume.write_sweep(
            folder, overrides=["hydra.sweep.dir=x", "hydra.mode=MULTIRUN", "loss=ce,hybrid", f"seed={day}"],
            config_name="abc", config_path=None, config_dir="/sweeps",
        )
        data = json.loads((folder / "sweep.json").read_text())
        (folder / "sweep.json").write_text(json.dumps({**data, "started": f"2025-01-{day}T00:00:00+00:00"}))
    return root


def test_arguments_that_mean_nothing_to_a_sweep_stay(sweeps: Path) -> None:
    given = args("loss=ce", "resume=latest")
    sweep_resume.expand("train", given)
    assert (given.overrides, given.multirun) == (["loss=ce", "resume=latest"], False)


def test_the_number_of_jobs_at_a_time_has_a_short_name() -> None:
    given = args("sweep.parallel=3")
    sweep_resume.expand("train", given)
    assert given.overrides == ["hydra.launcher.parallel=3"]


@pytest.mark.parametrize("wanted", ["latest", "a", "'a'"])
def test_a_sweep_alone_means_with_its_arguments(sweeps: Path, wanted: str) -> None:
    given = args(f"resume_sweep={wanted}")
    sweep_resume.expand("train", given)
    assert given.overrides == ["loss=ce,hybrid", "seed=02", f"hydra.sweep.dir='{sweeps / 'a'}'"]
    assert (given.multirun, given.config_name, given.config_dir) == (True, "abc", "/sweeps")


def test_what_is_given_now_replaces_what_was_given_then(sweeps: Path) -> None:
    given = args("seed=5", "+loss.gate=1", f"resume_sweep={sweeps / 'b'}", config_name="other")
    sweep_resume.expand("train", given)
    assert given.overrides == ["loss=ce,hybrid", "seed=5", "+loss.gate=1", f"hydra.sweep.dir='{sweeps / 'b'}'"]
    assert given.config_name == "other"


def test_a_sweep_that_is_not_there_is_refused_with_those_that_are(sweeps: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"resume_sweep=c: no such folder; the newest sweeps:\n  {sweeps / 'a'}\n  {sweeps / 'b'}"):
        sweep_resume.expand("train", args("resume_sweep=c"))
    with pytest.raises(ConfigError, match=f"{tmp_path} is not the folder of a sweep"):
        sweep_resume.expand("train", args(f"resume_sweep={tmp_path}"))
    with pytest.raises(ConfigError, match="there are no sweeps under"):
        sweep_resume.expand("eval", args("resume_sweep=latest"))
    with pytest.raises(ConfigError, match="there are no sweeps under"):
        sweep_resume.expand("train", args("resume_sweep=latest", f"paths.outputs={tmp_path / 'elsewhere'}"))


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_a_corrupt_sweep_is_refused(sweeps: Path, text: str) -> None:
    (sweeps / "a" / "sweep.json").write_text(text)
    with pytest.raises(DataError, match=r"a/sweep\.json"):
        sweep_resume.expand("train", args("resume_sweep=a"))


def attempt(folder: Path, status: str, config: object = CONFIG, checkpoint: bool = False, metric: float | None = None) -> Path:
    folder.mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    RunRecord(folder, command="train").close(status)
    (folder / "job.json").write_text(json.dumps({"metric": metric}))
    for name in (*CHECKPOINT_FILES, TRAINER_STATE) if checkpoint else ():
        (folder / "checkpoints" / "last").mkdir(parents=True, exist_ok=True)
        (folder / "checkpoints" / "last" / name).touch()
    return folder


def test_a_job_that_is_new(tmp_path: Path) -> None:
    assert sweep_resume.look_back(tmp_path / "000_x", CONFIG) == Before()


def test_a_finished_job(tmp_path: Path) -> None:
    before = sweep_resume.look_back(attempt(tmp_path / "000_x", "finished", metric=0.5), CONFIG)
    assert (before.finished, before.metric, before.changed) == (True, 0.5, ())


@pytest.mark.parametrize("key", ["paths", "notes", "num_threads"])
def test_what_changes_no_result_may_change(tmp_path: Path, key: str) -> None:
    assert sweep_resume.look_back(attempt(tmp_path / "000_x", "finished"), {**CONFIG, key: "other"}).changed == ()


@pytest.mark.parametrize(
    ("now", "changed"),
    [
        ({"seed": 1}, ("seed: 0 -> 1",)),
        ({"seed": None}, ()),  # drawn then
        ({"loss": {"alpha": 5.0, "names": ["a"]}}, ("loss.names: ['a', 'b'] -> ['a']",)),
        ({"loss": {"names": ["a", "b"], "beta": {}}}, ("loss.alpha: 5.0 -> 'not there'", "loss.beta: 'not there' -> {}")),
    ],
)
def test_other_changes_are_named(tmp_path: Path, now: dict[str, object], changed: tuple[str, ...]) -> None:
    assert sweep_resume.look_back(attempt(tmp_path / "000_x", "finished"), {**CONFIG, **now}).changed == changed


def test_a_finished_job_without_its_configuration_counts_as_changed(tmp_path: Path) -> None:
    (attempt(tmp_path / "000_x", "finished") / "config.yaml").unlink()
    assert "config.yaml: cannot be read" in sweep_resume.look_back(tmp_path / "000_x", CONFIG).changed[0]


@pytest.mark.parametrize("status", ["interrupted", "failed", "running"])
def test_an_unfinished_job_goes_on_from_its_newest_checkpoint(tmp_path: Path, status: str) -> None:
    job = tmp_path / "000_x"
    for checkpoint in (True, True, False):
        attempt(job, status, checkpoint=checkpoint)
        kept = sweep_resume.set_aside(job)
        assert kept is not None
    assert sweep_resume.look_back(job, CONFIG).checkpoint == tmp_path / "earlier" / "000_x_2"
    attempt(job, status, checkpoint=True)
    assert sweep_resume.look_back(job, CONFIG).checkpoint == job
    assert not sweep_resume.look_back(job, CONFIG).finished


def test_it_begins_anew_without_a_checkpoint_or_with_another_configuration(tmp_path: Path) -> None:
    attempt(tmp_path / "000_x", "interrupted")
    assert sweep_resume.look_back(tmp_path / "000_x", CONFIG).checkpoint is None
    attempt(tmp_path / "001_y", "interrupted", checkpoint=True)
    before = sweep_resume.look_back(tmp_path / "001_y", {**CONFIG, "seed": 4})
    assert (before.checkpoint, before.changed) == (None, ("seed: 0 -> 4",))


def test_the_table_of_jobs_survives_a_move_and_a_corrupt_one_is_refused(tmp_path: Path) -> None:
    assert sweep_resume.read_results(tmp_path) == []
    write_results(tmp_path, [JobResult(0, ("seed=0",), "finished", 0.5, "/elsewhere/000_x", None, 1.5)])
    assert sweep_resume.read_results(tmp_path) == [JobResult(0, ("seed=0",), "finished", 0.5, str(tmp_path / "000_x"), None, 1.5)]
    (tmp_path / "jobs.json").write_text("[{}]")
    with pytest.raises(DataError, match=r"jobs\.json"):
        sweep_resume.read_results(tmp_path)
