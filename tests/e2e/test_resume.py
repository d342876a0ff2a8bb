from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from coordvlm.utils.errors import NonFiniteLossError
from tests.e2e.commands import FAST, Ran, call, finished, losses, refusal

#: 40 images in batches of 4 and windows of 2: six steps are 12 batches, so the run crosses an epoch and stops in the middle of the next.
COURSE = ("data.source.num_train=40", "trainer.accumulate_grad_batches=2", "trainer.max_steps=6", "trainer.val_check_interval=2",
          "optim.schedule=constant")


def train(outputs: Path, *argv: str) -> Ran:
    return call(outputs, "train", *argv, page=False)


def diverge(*_: object, **__: object) -> None:
    raise NonFiniteLossError("the loss is not finite")


def weights(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / name / "trained.safetensors")


def assert_same_course(one_go: Ran, resumed: Ran) -> None:
    mine, theirs = weights(resumed.run), weights(one_go.run)
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
    assert losses(resumed.run) == losses(one_go.run)
    assert resumed.record["steps"] == one_go.record["steps"]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def half(outputs: Path) -> Ran:
    return finished(outputs, *COURSE, "trainer.max_steps=3")


def test_a_resumed_run_is_the_run_in_one_go(outputs: Path, half: Ran, tmp_path: Path) -> None:
    one_go = finished(tmp_path, *COURSE)
    resumed = train(outputs, f"resume={half.run}", "trainer.max_steps=6")
    assert resumed.status == 0, resumed.err
    assert_same_course(one_go, resumed)
    assert resumed.record["resumed_from"] == str(half.run / "checkpoints" / "last")
    assert resumed.run != half.run


@pytest.mark.slow
@pytest.mark.parametrize("steps", [2, 4, 5])
def test_worker_processes_resume_alike(tmp_path: Path, steps: int) -> None:
    more = ("data.num_workers=2",)
    one_go = finished(tmp_path / "a", *COURSE, *more)
    half = finished(tmp_path / "b", *COURSE, *more, f"trainer.max_steps={steps}")
    resumed = train(tmp_path / "b", f"resume={half.run}", "trainer.max_steps=6")
    assert resumed.status == 0, resumed.err
    assert_same_course(one_go, resumed)


def test_resume_alone_means_with_that_runs_settings(outputs: Path, half: Ran) -> None:
    again = train(outputs, f"resume={half.run}")
    assert again.status == 0, again.err
    assert again.record["overrides"] == [*half.record["overrides"], f"resume='{half.run}'"]
    assert again.record["steps"] == 3
    assert {k: v.tolist() for k, v in weights(again.run, "best").items()} == {k: v.tolist() for k, v in weights(half.run, "best").items()}


def test_the_best_checkpoint_survives_when_nothing_better_comes(tmp_path: Path) -> None:
    half = finished(tmp_path, *COURSE, "trainer.max_steps=2")
    best = half.run / "checkpoints" / "best" / "trainer.ckpt"
    state = torch.load(best, weights_only=True)
    (callback,) = [v for k, v in state["callbacks"].items() if "FolderCheckpoint" in k]
    # A best value that later validations cannot beat.
    last = half.run / "checkpoints" / "last" / "trainer.ckpt"
    state = torch.load(last, weights_only=True)
    for key in state["callbacks"]:
        if "FolderCheckpoint" in key:
            state["callbacks"][key]["best"] = 2.0
    torch.save(state, last)
    resumed = train(tmp_path, f"resume={half.run}", "trainer.max_steps=4")
    assert resumed.status == 0, resumed.err
    kept = torch.load(resumed.run / "checkpoints" / "best" / "trainer.ckpt", weights_only=True)
    assert kept["global_step"] == callback["best_step"]
    assert resumed.record["selected"]["checkpoint"] == "best"


def test_a_drawn_seed_comes_back(tmp_path: Path) -> None:
    half = finished(tmp_path, *COURSE, "seed=null", "trainer.max_steps=1")
    resumed = train(tmp_path, "resume=latest", "trainer.max_steps=2")
    assert resumed.status == 0, resumed.err
    assert resumed.record["seed"] == half.record["seed"]


def test_resume_finds_runs_under_another_output_root(tmp_path: Path) -> None:
    root = f"paths.outputs={tmp_path / 'else where'}"
    first = train(tmp_path, *FAST, root, "trainer.max_steps=1")
    assert first.status == 0, first.err
    again = train(tmp_path, "resume=latest", root, "trainer.max_steps=2")
    assert again.status == 0, again.err
    assert len(list((tmp_path / "else where" / "train").iterdir())) == 2


def test_a_checkpoint_of_another_contract_is_refused(outputs: Path, half: Ran) -> None:
    message = refusal(train(outputs, f"resume={half.run}", "coords=k1000"))
    assert "coords: the checkpoint has 'k999', this run's config has 'k1000'" in message


def test_other_settings_in_the_middle_of_an_epoch_are_refused(outputs: Path, half: Ran) -> None:
    message = refusal(train(outputs, f"resume={half.run}", "data.batch_size=8", "trainer.max_steps=6"))
    assert "batch_size was 4 and is 8" in message


def test_a_refused_resume_leaves_no_checkpoint(outputs: Path, half: Ran) -> None:
    ran = train(outputs, f"resume={half.run}", "data.batch_size=8", "trainer.max_steps=6")
    assert ran.status == 1
    assert not (ran.run / "checkpoints").exists()


def test_a_run_that_dies_early_can_still_be_resumed(tmp_path: Path, half: Ran) -> None:
    """Before its first own checkpoint, a resumed run holds the one it came from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coordvlm.modules.finite_guard.refuse_non_finite", diverge)
        ran = train(tmp_path, f"resume={half.run}", "trainer.max_steps=6")
    assert "not finite" in refusal(ran)
    kept = torch.load(ran.run / "checkpoints" / "last" / "trainer.ckpt", weights_only=True)
    assert kept["global_step"] == 3


def test_a_cut_checkpoint_is_refused(outputs: Path, half: Ran, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(half.run, broken)
    file = broken / "checkpoints" / "last" / "trained.safetensors"
    file.write_bytes(file.read_bytes()[: 10**5])
    message = refusal(train(outputs, f"resume={broken}", "trainer.max_steps=6"))
    assert str(file) in message
    (file.parent / "trainer.ckpt").write_bytes((file.parent / "trainer.ckpt").read_bytes()[: 10**5])
    shutil.copyfile(half.run / "checkpoints" / "last" / file.name, file)
    message = refusal(train(outputs, f"resume={broken}", "trainer.max_steps=6"))
    assert str(file.parent / "trainer.ckpt") in message
    (file.parent / "trainer.ckpt").unlink()
    message = refusal(train(outputs, f"resume={broken}", "trainer.max_steps=6"))
    assert str(file.parent / "trainer.ckpt") in message


def test_another_models_checkpoint_is_refused(outputs: Path, half: Ran) -> None:
    message = refusal(train(outputs, f"resume={half.run}", "model.load.intermediate_size=128"))
    assert "does not fit the configured model" in message
    assert "checkpoint (256, 128), model (128, 128)" in message


def test_a_run_that_is_not_there_is_refused_with_those_that_are(outputs: Path, half: Ran, tmp_path: Path) -> None:
    shutil.copytree(half.run, tmp_path / "other" / "train" / "one")
    assert str(tmp_path / "other" / "train" / "one") in refusal(train(tmp_path / "other", "resume=typo"))
    assert "no train runs" in refusal(train(tmp_path, "resume=latest"))
    empty = tmp_path / "train" / "empty"
    empty.mkdir(parents=True)
    (empty / "run.json").write_text(json.dumps({"status": "failed", "command": "train"}))
    assert "a run without a checkpoint" in refusal(train(tmp_path, f"resume={empty}"))


def test_a_run_of_a_config_file_of_ones_own_goes_on_with_that_file(tmp_path: Path) -> None:
    """A job of a sweep, gone on with by itself: the file's settings hold, and it is one run, no sweep."""
    (tmp_path / "mine.yaml").write_text(
        "defaults: [train, {override /loss: ce}, _self_]\nhydra: {mode: MULTIRUN, sweeper: {params: {seed: '0,1'}}}\n"
        "loss: {average: group}\ntrainer: {max_steps: 4}\n"
    )
    where = ("-cd", str(tmp_path), "-cn", "mine", "--run")
    first = finished(tmp_path / "out", *where, "seed=3", *FAST, "trainer.max_steps=2")
    second = finished(tmp_path / "out", f"resume={first.run}", "trainer.max_steps=4")
    config = yaml.safe_load((second.run / "config.yaml").read_text())
    assert (config["loss"]["average"], config["loss"]["use_geom_loss"], config["seed"]) == ("group", False, 3)
    assert second.record["steps"] == 4
