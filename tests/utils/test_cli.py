from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from coordvlm.utils.cli import run_command
from coordvlm.utils.errors import ConfigError, DataError
from coordvlm.utils.overrides import resolved
from tests.utils.test_overrides import NASTY

Run = Callable[..., tuple[int, list[DictConfig]]]


@pytest.fixture
def run(conf: Path) -> Run:
    """Run the command ``train``; gives the exit status and the configurations that ``main`` saw."""

    def call(*argv: str, main: Callable[[DictConfig], Any] | None = None, **options: Any) -> tuple[int, list[DictConfig]]:
        seen: list[DictConfig] = []

        def record(cfg: DictConfig) -> Any:
            seen.append(OmegaConf.create(resolved(OmegaConf.to_container(cfg, resolve=True))))
            return main(cfg) if main else None

        return run_command("train", record, argv=list(argv), **options), seen

    return call


def folders(conf: Path, pattern: str) -> list[Path]:
    return sorted((conf.parent / "outputs" / "train").glob(pattern))


def test_a_run_gets_a_folder_with_its_resolved_config_and_log(run: Run, conf: Path) -> None:
    status, (cfg,) = run("loss=hybrid", "seed=3", main=lambda cfg: logging.getLogger("elsewhere").info("a line"))
    assert status == 0
    assert (cfg.seed, cfg.loss.beta_giou) == (3, 2)
    (folder,) = folders(conf, "*")
    assert cfg.paths.run_dir == str(folder)
    saved = OmegaConf.load(folder / "config.yaml")
    assert (saved.seed, saved.paths.run_dir) == (3, str(folder))
    assert "a line" in (folder / "run.log").read_text()


def test_two_runs_in_one_second_do_not_share_a_folder(run: Run, conf: Path) -> None:
    for _ in range(3):
        assert run()[0] == 0
    assert len(folders(conf, "*/config.yaml")) == 3


def test_the_output_root_can_be_set_in_the_configuration(run: Run, tmp_path: Path) -> None:
    _, (cfg,) = run(f"paths.outputs='{tmp_path}/else where, [1]'")
    assert Path(cfg.paths.run_dir).parent == tmp_path / "else where, [1]" / "train"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("loss.lamda_coord=2", "no such key loss.lamda_coord; nearest: loss.lambda_coord, loss.lambda_coord_ce"),
        ("los=ce", "no such key los; nearest: loss (ce, hybrid)"),
        ("loss=hybird", "no option 'hybird' in group loss; nearest: hybrid"),
        ("trainer.max_step=5", "no such key trainer.max_step; nearest: trainer.max_steps"),
        ("lambda_coord=5", "nearest: loss.lambda_coord"),
        ("sed=1", "nearest: seed"),
        ("~loss.alpha", "nearest: loss.alpha_l1"),
        ("+loss.lamda_coord=2", "nearest: loss.lambda_coord"),
        ("++loss.lamda_coord=2", "nearest: loss.lambda_coord"),
        ("+x=1", "no such key x; an added key would have no effect"),
        ("+trainer.max_step=5", "nearest: trainer.max_steps"),
        ("loss.beta_giou=1", "no such key loss.beta_giou"),
        ("hydra.run.dirr=a", "hydra.run.dirr"),
        ("loss=ce,hybrid", "--multirun"),
        ("nonsense", "'nonsense' is not an override"),
        ("seed=[1", "cannot read override 'seed=[1'"),
        ("debug=fats", "no option 'fats' in group debug; nearest: fast"),
        ("seed=???", "no value for seed"),
        ("seed=${nowhere}", "nowhere"),
    ],
)
def test_what_is_misspelt_is_refused_with_the_nearest(
    run: Run, conf: Path, capfd: pytest.CaptureFixture[str], argument: str, message: str
) -> None:
    status, seen = run(argument)
    error = capfd.readouterr().err
    assert (status, seen) == (2, [])
    assert message in error
    assert "Traceback" not in error
    assert not folders(conf, "*")


def test_a_misspelt_configuration_name_is_refused(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("-cn", "trian")[0] == 2
    assert "nearest: train" in capfd.readouterr().err


def test_a_misspelt_key_refuses_a_sweep_before_its_first_job(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    status, seen = run("-m", "loss=ce,hybird", "seed=1")
    assert (status, seen) == (2, [])
    assert "nearest: hybrid" in capfd.readouterr().err


def test_keys_can_be_added_to_constructors_and_free_mappings_only(run: Run) -> None:
    status, (cfg,) = run("+trainer.precision=32", "+callbacks.mine={_target_: builtins.dict}", "++trainer.max_step=1")
    assert status == 0
    assert (cfg.trainer.precision, cfg.trainer.max_step, cfg.callbacks.mine) == (32, 1, {"_target_": "builtins.dict"})


def test_an_option_of_an_unset_group_can_be_chosen(run: Run) -> None:
    assert run("debug=fast")[1][0].trainer.max_steps == 2


@pytest.mark.parametrize("multirun", [False, True])
def test_text_arrives_character_by_character(run: Run, conf: Path, multirun: bool) -> None:
    status, (cfg,) = run(*["-m"] * multirun, f"phrase={' | '.join(NASTY)}", "data.root=a, [b]=${c}\\", "run='x' and 'y'", "seed=1")
    assert status == 0
    assert (cfg.phrase, cfg.data.root, cfg.run) == (" | ".join(NASTY), "a, [b]=${c}\\", "'x' and 'y'")
    saved = OmegaConf.load(folders(conf, "multirun/*/*_*/config.yaml" if multirun else "*/config.yaml")[0])
    assert (saved.phrase, saved.data.root) == (cfg.phrase, cfg.data.root)


def test_null_unsets_a_run_and_quotes_are_the_users_when_complete(run: Run) -> None:
    assert run("run=null")[1][0].run is None
    assert run("phrase='a, b'")[1][0].phrase == "a, b"


def test_a_sweep_outlives_failed_jobs_and_says_so(run: Run, conf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def main(cfg: DictConfig) -> float:
        if cfg.seed == 2:
            raise DataError("must be a number", where="file.json", value="x")
        if cfg.seed == 3:
            raise RuntimeError("a bug")
        return cfg.seed / 2

    status, seen = run("--multirun", "seed=1,2,3,4", "phrase=a,b", main=main)
    assert status == 1
    assert [cfg.seed for cfg in seen] == [1, 2, 3, 4]
    assert {cfg.phrase for cfg in seen} == {"a,b"}
    (sweep,) = folders(conf, "multirun/*")
    jobs = json.loads((sweep / "jobs.json").read_text())
    assert [job["status"] for job in jobs] == ["finished", "failed", "failed", "finished"]
    assert [job["metric"] for job in jobs] == [0.5, None, None, 2.0]
    assert [Path(job["folder"]).name[:4] for job in jobs] == ["000_", "001_", "002_", "003_"]
    assert all(len(Path(job["folder"]).name) == 12 and Path(job["folder"], "config.yaml").is_file() for job in jobs)
    assert "must be a number" in jobs[1]["error"]
    out, err = capfd.readouterr()
    assert "4 jobs" in out
    assert "file.json: must be a number: got 'x'" in err
    assert "a bug" in err


def test_the_folder_of_a_job_depends_on_its_overrides_alone(run: Run, conf: Path) -> None:
    run("-m", "seed=1,2")
    run("-m", "seed=2,3")
    names = [x.name.split("_")[1] for x in folders(conf, "multirun/*/*_*")]
    assert len(names) == 4
    assert len(set(names)) == 3


def test_a_sweep_file_of_its_own_folder_works_from_there(run: Run, conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweeps = conf.parent / "elsewhere" / "sweeps"
    sweeps.mkdir(parents=True)
    text = "defaults: [train, _self_]\nhydra: {mode: MULTIRUN, sweeper: {params: {loss: 'ce,hybrid', seed: '0,1'}}}\n"
    (sweeps / "abc.yaml").write_text(text)
    monkeypatch.chdir(sweeps.parent)
    status, seen = run("-cd", "sweeps", "-cn", "abc", "loss.alpha_l1=7")
    assert status == 0
    assert [("beta_giou" in cfg.loss, cfg.seed) for cfg in seen] == [(False, 0), (False, 1), (True, 0), (True, 1)]
    assert {cfg.loss.alpha_l1 for cfg in seen} == {7}
    assert run("-cd", "sweeps", "-cn", "abc", "loss.alpha=7")[0] == 2
    assert run("-cd", "nowhere", "-cn", "abc")[0] == 2


@pytest.mark.parametrize(
    ("error", "status", "shown", "traceback"),
    [
        (ConfigError("cannot [be] so"), 1, "error: cannot [be] so", False),
        (RuntimeError("a bug"), 1, "RuntimeError: a bug", True),
        (OSError(28, "No space left on device", "/disk/file"), 1, "/disk/file: cannot write: No space left on device; needed", False),
        (KeyboardInterrupt(), 130, "interrupted: stopped by Ctrl-C", False),
        (SystemExit(3), 3, "", False),
    ],
)
def test_errors_of_a_command(
    run: Run, conf: Path, capfd: pytest.CaptureFixture[str], error: BaseException, status: int, shown: str, traceback: bool
) -> None:
    def main(cfg: DictConfig) -> None:
        raise error

    assert run(main=main)[0] == status
    err = capfd.readouterr().err
    assert shown in err
    assert ("Traceback" in err) == traceback
    if isinstance(error, Exception):
        assert "Traceback" in folders(conf, "*")[0].joinpath("run.log").read_text()


def test_an_error_of_ours_beneath_another_is_shown_short(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    def main(cfg: DictConfig) -> None:
        try:
            raise DataError("must exist", where="a.png")
        except DataError as error:
            raise RuntimeError("Error in call to target") from error

    assert run(main=main)[0] == 1
    err = capfd.readouterr().err
    assert "a.png: must exist" in err
    assert "Traceback" not in err


def test_a_traceback_can_be_asked_for(run: Run, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def main(cfg: DictConfig) -> None:
        raise ConfigError("so")

    monkeypatch.setenv("COORDVLM_DEBUG", "1")
    assert run(main=main)[0] == 1
    assert "Traceback" in capfd.readouterr().err


def test_lightnings_answer_to_ctrl_c_is_an_interruption(run: Run) -> None:
    def main(cfg: DictConfig) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    assert run(main=main)[0] == 130


def test_ctrl_c_ends_a_sweep(run: Run) -> None:
    def main(cfg: DictConfig) -> None:
        raise KeyboardInterrupt

    status, seen = run("-m", "seed=1,2", main=main)
    assert (status, len(seen)) == (130, 1)


def test_the_value_of_main_is_the_exit_status_when_it_is_an_int(run: Run) -> None:
    assert run(main=lambda cfg: 4)[0] == 4
    assert run(main=lambda cfg: 0.5)[0] == 0


def test_a_check_refuses_before_main_and_before_the_first_job(run: Run) -> None:
    def check(cfg: DictConfig) -> None:
        assert "hydra" not in cfg
        if cfg.seed == 1:
            raise ConfigError("not this one")

    assert run("seed=1", check=check) == (2, [])
    assert run("-m", "seed=0,1", check=check) == (2, [])
    assert run("seed=0", check=check)[0] == 0


def test_help_shows_groups_and_the_commands_text(run: Run, conf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with_about = run("--help", about="Train something.\n")
    out = capfd.readouterr().out
    assert with_about == (0, [])
    assert "Train something." in out
    assert "loss: ce, hybrid" in out
    assert "$" not in out
    assert not folders(conf, "*")


def test_cfg_shows_the_composed_config_and_makes_nothing(run: Run, conf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("--cfg", "job", "--resolve", "seed=7", "phrase=a, b") == (0, [])
    shown = OmegaConf.create(capfd.readouterr().out)
    assert (shown.seed, shown.phrase, shown.paths.run_dir) == (7, "a, b", None)
    assert run("--cfg", "job", "sed=7")[0] == 2
    assert not (conf.parent / "outputs").exists()


def test_an_output_folder_that_cannot_be_made_is_a_clear_error(run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "deeper"):
        status, seen = run(f"paths.outputs={root}")
        err = capfd.readouterr().err
        assert (status, seen) == (2, [])
        assert str(root) in err
        assert "cannot write" in err
        assert "Traceback" not in err


def test_jobs_and_runs_leave_no_handlers_behind(run: Run) -> None:
    before = list(logging.getLogger().handlers)
    run("-m", "seed=1,2")
    assert logging.getLogger().handlers == before


@pytest.mark.parametrize(
    ("given", "policy", "spins"),
    [({}, None, "10000"), ({"OMP_WAIT_POLICY": "active"}, "active", None), ({"GOMP_SPINCOUNT": "7"}, None, "7")],
)
def test_environment_is_set_before_main(
    run: Run, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], policy: str | None, spins: str | None
) -> None:
    environment = {"PATH": os.environ["PATH"], "COORDVLM_OUTPUTS": os.environ["COORDVLM_OUTPUTS"], **given}
    monkeypatch.setattr(os, "environ", environment)
    seen: dict[str, str] = {}
    assert run(main=lambda cfg: seen.update(os.environ) or None)[0] == 0
    assert (seen.get("OMP_WAIT_POLICY"), seen.get("GOMP_SPINCOUNT"), seen["TOKENIZERS_PARALLELISM"]) == (policy, spins, "false")


def test_two_processes_started_together_get_two_folders(tmp_path: Path) -> None:
    from coordvlm.utils.locations import FreshFolders

    given: list[str] = []
    threads = [threading.Thread(target=lambda: given.append(FreshFolders(True)(str(tmp_path / "a" / "run")))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(given)) == 8


def test_importing_the_entry_imports_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "lightning", "transformers", "rich", "hydra")
    code = f"import coordvlm.utils.cli, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
