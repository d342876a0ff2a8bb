from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from coordvlm.analysis.runs import find_folders, read_log, read_run, read_runs
from coordvlm.utils.errors import ConfigError, DataError
from tests.analysis.factory import CONTRACT, edit


@pytest.fixture
def run(sweep: Path, tmp_path: Path) -> Path:
    """A run that a test may break."""
    return Path(shutil.copytree(sweep / "ce_0", tmp_path / "ce_0"))


def test_a_run_is_read_as_it_was_written(sweep: Path) -> None:
    found = read_run(sweep / "hybrid_1")
    assert found is not None
    written = json.loads((sweep / "hybrid_1" / "metrics.json").read_text())
    assert found.values["AP"] == written["metrics"]["AP"]["value"]
    assert found.replicates["AP"].shape == (100,)
    assert (found.seed, found.choices["loss"], len(found.image_ids)) == (1, "hybrid", 40)
    assert found.contract == CONTRACT
    assert found.protocol["readout"] == "local"
    assert found.config["loss.alpha_l1"] == 5.0
    assert str(sweep) not in " ".join(map(str, found.config.values()))
    steps, values = found.curves["val/AP"]
    assert steps.tolist() == [24, 49, 74, 99]
    assert values[-1] == pytest.approx(found.values["AP"])


def test_folders_are_found_wherever_they_are(sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = tmp_path / "outputs"
    job = outputs / "train" / "multirun" / "2026-01-01" / "000_aaaa"
    shutil.copytree(sweep / "ce_0", job)
    shutil.copytree(sweep / "ce_1", outputs / "train" / "with, comma")
    assert len(find_folders(str(sweep), outputs=outputs)) == 9
    assert len(find_folders(f"{sweep}/ce_*", outputs=outputs)) == 3
    assert find_folders("multirun", outputs=outputs) == [job]
    assert find_folders("train/multirun/2026-01-01", outputs=outputs) == [job]
    assert find_folders(str(outputs / "train" / "with, comma"), outputs=outputs) == [outputs / "train" / "with, comma"]
    both = f"{sweep / 'ce_0'}, {sweep / 'ce_1'}"
    assert find_folders(both, outputs=outputs) == find_folders(both.split(", "), outputs=outputs) == [sweep / "ce_0", sweep / "ce_1"]
    monkeypatch.chdir(sweep)
    assert find_folders(["ce_0", "ce_0"], outputs=outputs) == [sweep / "ce_0"]


def test_latest_is_the_sweep_that_started_last(sweep: Path, tmp_path: Path) -> None:
    root = tmp_path / "train" / "multirun"
    for name, started in (("a", "2026-01-02T00:00:00"), ("b", "2026-01-01T00:00:00")):
        shutil.copytree(sweep / "ce_0", root / name / "000_aaaa")
        names = {"config_name": None, "config_dir": None, "config_path": None}
        (root / name / "sweep.json").write_text(json.dumps({"started": started, "overrides": [], **names}))
    assert find_folders("latest", outputs=tmp_path) == [root / "a" / "000_aaaa"]
    with pytest.raises(ConfigError, match="runs=latest: there is no sweep"):
        find_folders("latest", outputs=tmp_path / "elsewhere")


def test_nothing_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="runs=nowhere: no such folder"):
        find_folders("nowhere", outputs=tmp_path)
    with pytest.raises(ConfigError, match="no run"):
        find_folders(str(tmp_path), outputs=tmp_path)


@pytest.mark.parametrize("status", ["failed", "interrupted", "running"])
def test_an_unfinished_run_is_left_out_with_its_reason(run: Path, status: str) -> None:
    edit(run, "run.json", status=status, error={"type": "DataError", "message": "box 7 is broken"}, hostname="elsewhere")
    kept, rest = read_runs([run])
    assert kept == []
    assert f"only a finished run can be compared, this one is {status}" in rest[0].reason
    assert "DataError: box 7 is broken" in rest[0].reason


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("run.json", "{", "cannot read the record"),
        ("run.json", "[]", "must be the record of a run"),
        ("run.json", None, "cannot read the record"),
        ("metrics.json", None, "cannot be read"),
        ("metrics.json", '{"metrics": {}}', "must hold metrics, protocol"),
        ("bootstrap.npz", None, "bootstrap replicates cannot be read"),
        ("bootstrap.npz", "no zip", "bootstrap replicates cannot be read"),
        ("predictions.jsonl", None, "the run has no predictions"),
        ("config.yaml", None, "the configuration cannot be read"),
        ("config.yaml", "- a\n", "must hold the resolved configuration"),
        ("log.csv", "step,val/AP\n3,high\n", "log.csv:2: column 'val/AP' must hold numbers by step: got 'high'"),
        ("checkpoints/best/contract.json", "{}", "contract fields differ"),
    ],
)
def test_a_broken_file_is_named(run: Path, name: str, content: str | None, reason: str) -> None:
    (run / ".hydra").mkdir()
    file = run / name
    file.unlink() if content is None else file.write_text(content)
    kept, rest = read_runs(find_folders(str(run), outputs=run))
    assert kept == []
    assert reason in rest[0].reason
    assert name in rest[0].reason


def test_a_run_without_replicates_says_which_setting(run: Path) -> None:
    np.savez(run / "bootstrap.npz", image_ids=np.arange(40), seed=0)
    with pytest.raises(DataError, match="num_replicates=0"):
        read_run(run)


def test_folders_of_other_commands_are_passed_over(run: Path) -> None:
    edit(run, "run.json", command="compare")
    assert read_runs([run]) == ([], [])


def test_an_evaluation_counts_as_the_run_it_scored(run: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(run, tmp_path / "eval"))
    shutil.rmtree(again / "checkpoints")
    (again / "log.csv").unlink()
    (again / "config.yaml").write_text("decode: {grammar: true, readout: null}\nrun: x\nseed: 99\n")
    edit(again, "run.json", command="eval", evaluated={"run": str(run)})
    found = read_run(again)
    assert found is not None
    assert (found.seed, found.config["decode.grammar"], found.config["decode.readout"]) == (0, True, "local")
    assert "val/AP" in found.curves
    assert found.contract == CONTRACT


def test_an_untouched_base_model_stands_for_itself(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "log.csv").unlink()
    edit(run, "run.json", command="eval", evaluated={"what": "base model, untouched"}, choices={"model": "tiny"})
    found = read_run(run)
    assert found is not None
    assert found.choices == {"model": "tiny", "loss": "untouched"}
    assert found.curves == {}
    assert found.contract is None


def test_a_log_without_numbers_has_no_curve(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("step,a,b\n0,1.5,\n1,nan,\n")
    found = read_log(tmp_path / "log.csv")
    assert list(found) == ["a"]
    assert found["a"][1].tolist() == [1.5]
    assert read_log(tmp_path / "none.csv") == {}
