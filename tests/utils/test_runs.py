from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from coordvlm.utils.errors import ConfigError
from coordvlm.utils.record import RunRecord
from coordvlm.utils.runs import RunRef, find_checkpoint, resolve_run, train_runs


def make_run(folder: Path, *checkpoints: str, command: str = "train", started: str | None = None) -> Path:
    record = RunRecord(folder, command=command)
    record.close("finished")
    if started:
        record.update(started=started)
    for name in checkpoints:
        checkpoint = folder / "checkpoints" / name
        checkpoint.mkdir(parents=True)
        for file in ("trained.safetensors", "contract.json"):
            (checkpoint / file).write_text("")
    return folder


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """Newest first: a run without a checkpoint, an eval run, a job of a sweep, an older run that was touched last."""
    root = tmp_path / "outputs"
    make_run(root / "train" / "a", "best", "last", "100", started="2025-01-01T10:00:00+00:00")
    make_run(root / "train" / "multirun" / "m" / "000_x", "last", started="2025-01-02T10:00:00+00:00")
    make_run(root / "eval" / "e", "best", command="eval", started="2025-01-03T10:00:00+00:00")
    make_run(root / "train" / "b", started="2025-01-04T10:00:00+00:00")
    os.utime(root / "train" / "a")
    return root


def test_latest_is_the_train_run_that_started_last_and_has_a_checkpoint(outputs: Path) -> None:
    job = outputs / "train" / "multirun" / "m" / "000_x"
    assert resolve_run("latest", outputs=outputs) == RunRef(job, job / "checkpoints" / "last")


def test_time_zones_do_not_confuse_the_order(outputs: Path) -> None:
    run = make_run(outputs / "train" / "z", "best", started="2025-01-02T06:30:00-05:00")
    assert resolve_run("latest", outputs=outputs).run_dir == run


def test_a_corrupt_record_does_not_stop_the_search(outputs: Path) -> None:
    (outputs / "train" / "c").mkdir()
    (outputs / "train" / "c" / "run.json").write_text("{")
    assert [folder.name for folder, _ in train_runs(outputs)] == ["b", "000_x", "a"]


def test_a_run_gives_best_then_last_then_the_newest_step(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", "best", "last", "100", "step_000200", "step=30")
    chosen = []
    for _ in range(5):
        found = find_checkpoint(run)
        assert found is not None
        chosen.append(found.name)
        (found / "contract.json").unlink()
    assert chosen == ["best", "last", "step_000200", "100", "step=30"]
    assert find_checkpoint(run) is None


def test_resuming_prefers_the_last(outputs: Path) -> None:
    assert resolve_run(outputs / "train" / "a", prefer=("last",)).checkpoint_dir.name == "last"


def test_a_checkpoint_folder_is_taken_as_it_is(outputs: Path, tmp_path: Path) -> None:
    folder = outputs / "train" / "a" / "checkpoints" / "100"
    assert resolve_run(folder) == RunRef(outputs / "train" / "a", folder)
    copied = tmp_path / "copied"
    folder.rename(copied)
    assert resolve_run(str(copied)) == RunRef(copied, copied)


def test_paths_may_be_relative_to_here_or_to_the_outputs(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for start, run in ((outputs, "train/a"), (outputs.parent, "a"), (outputs.parent, "train/a"), (outputs / "train", "a/checkpoints/best")):
        monkeypatch.chdir(start)
        assert resolve_run(run, outputs=outputs).checkpoint_dir == outputs / "train" / "a" / "checkpoints" / "best"


@pytest.mark.parametrize(
    ("run", "message"), [("nowhere", "no such folder"), ("b", "a run without a checkpoint"), ("multirun", "neither a run nor")]
)
def test_what_cannot_be_found_lists_the_newest(outputs: Path, run: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        resolve_run(run, outputs=outputs)
    lines = str(caught.value).splitlines()
    assert [Path(line.split(" (")[0]).name for line in lines[1:]] == ["b", "000_x", "a"]
    assert "no checkpoint" in lines[1]


def test_latest_without_any_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there are no train runs under"):
        resolve_run("latest", outputs=tmp_path)


def test_a_checkpoint_left_between_two_renames_is_found(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", "best")
    (run / "checkpoints" / "best").rename(run / "checkpoints" / ".best.old")
    assert resolve_run(run).checkpoint_dir.name == "best"
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
