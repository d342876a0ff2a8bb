"""Augmentation, curriculum and the regression head in whole runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from coordvlm.utils.errors import NonFiniteLossError
from tests.e2e.commands import FAST, Ran, call, evaluate, finished, losses, refusal
from tests.e2e.test_resume import assert_same_course, weights

#: 40 phrases in batches of 4 and windows of 2: an epoch is 5 steps, and the ramp of the curriculum lasts for all 6.
COURSE = (
    "data=phrases", "data.source.num_train=40", "trainer.accumulate_grad_batches=2", "trainer.max_steps=6", "trainer.val_check_interval=2",
    "optim.schedule=constant", "augment=ground", "data.curriculum={by: objects, share: 1.0, start: 0.3}", "loss=ce_box_head",
)


@pytest.fixture(scope="module")
def one_go(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return finished(tmp_path_factory.mktemp("whole"), *COURSE)


def test_a_run_that_died_in_mid_epoch_goes_on_to_the_same_end(one_go: Ran, tmp_path: Path) -> None:
    calls = []

    def die_later(*_: object, **__: object) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise NonFiniteLossError("the loss is not finite")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coordvlm.modules.finite_guard.refuse_non_finite", die_later)
        died = call(tmp_path, "train", *FAST, *COURSE, page=False)
    assert "not finite" in refusal(died)
    state = torch.load(died.run / "checkpoints" / "last" / "trainer.ckpt", weights_only=True)
    assert 0 < state["global_step"] < 5  # in the middle of the first epoch, and of the ramp
    resumed = call(tmp_path, "train", f"resume={died.run}", page=False)
    assert resumed.status == 0, resumed.err
    assert_same_course(one_go, resumed)
    longer = call(tmp_path, "train", f"resume={died.run}", "trainer.max_steps=8", page=False)
    assert "curriculum_steps was 6 and is 8" in refusal(longer)


def test_the_head_is_saved_read_and_scored(one_go: Ran, tmp_path: Path) -> None:
    assert {n for n in weights(one_go.run) if n.startswith("heads.")} == {
        f"heads.box_end.{layer}.{kind}" for layer in ("inner", "outer") for kind in ("weight", "bias")
    }
    assert set(one_go.json("metrics.json")["readouts"]) == {"argmax", "expectation", "local", "head"}
    names = {name for row in losses(one_go.run) for name, value in row.items() if value}
    assert {"train_term/head_l1", "train_term/head_giou", "train_head_iou", "val_head_iou", "val_term/head_giou"} <= names
    assert any("training samples are augmented: flip, crop, colour" in note for note in one_go.record["data_notes"])
    again = evaluate(tmp_path, f"run={one_go.run}", "split=test")
    assert again.status == 0, again.err
    assert again.json("metrics.json")["readouts"] == one_go.json("metrics.json")["readouts"]


@pytest.mark.slow
def test_a_head_can_be_added_to_a_trained_run_and_digits_have_one_too(tmp_path: Path) -> None:
    digits = ("data=phrases", "sequence=json_digits", "coords=qwen1000")
    plain = finished(tmp_path, *digits, "loss=ce")
    warm = finished(tmp_path, *digits, "loss=ce_box_head", f"init={plain.run}")
    assert "heads.box_end.outer.weight" in weights(warm.run)
    assert set(warm.json("metrics.json")["readouts"]) == {warm.record["decode"]["readout"], "head"}
