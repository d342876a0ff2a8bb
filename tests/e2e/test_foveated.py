"""Clips from data to report, by the commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import coordvlm
from coordvlm.utils.errors import ConfigError
from tests.e2e.commands import FAST, Ran, call, evaluate, finished, predict, refusal, train

#: A run of a few seconds.
SMALL = (
    "data=grid_symbols", "data.batch_size=4", "data.source.num_test=4", "data.source.num_val=4", "data.val_images=4", "trainer.max_steps=2",
    "decode.pictures=1",
)
ARMS = ("coarse", "fine", "auto", "swap", "random", "no_image", "no_text")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module")
def run(outputs: Path) -> Ran:
    return finished(outputs, *SMALL, "decode.diagnosed=4", page=True)


def names(ran: Ran) -> set[str]:
    return set(ran.json("metrics.json")["metrics"])


def test_a_run_leaves_metrics_predictions_and_a_report(run: Ran) -> None:
    assert {f"acc_{arm}" for arm in ARMS} | {f"loss_{arm}" for arm in ARMS} <= names(run)
    assert "ratio_matched" in names(run)
    assert not any("unmatched" in name for name in names(run))
    rows = [json.loads(line) for line in (run.run / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    assert "ratio_matched" in (run.run / "report.html").read_text()
    assert json.loads((run.run / "foveation_stats.json").read_text())["clips"] == 4
    assert len(list((run.run / "looking").glob("clip_*.png"))) == 1


def test_a_run_is_evaluated_again_with_the_same_result(outputs: Path, run: Ran) -> None:
    ran = evaluate(outputs, f"run={run.run}", "metrics.num_replicates=10", "decode.diagnosed=0")
    assert ran.status == 0, ran.err
    mine, theirs = (r.json("metrics.json")["metrics"] for r in (ran, run))
    assert {name: m["value"] for name, m in mine.items()} == pytest.approx({name: m["value"] for name, m in theirs.items()})
    few = evaluate(outputs, f"run={run.run}", "decode.arms=[coarse,fine]", "decode.diagnosed=0")
    assert few.status == 0, few.err
    assert {"acc_coarse", "acc_fine"} <= names(few)
    assert not {"acc_auto", "acc_swap"} & names(few)


def test_a_coarse_pass_that_did_not_train_gives_no_matched_ratio(outputs: Path) -> None:
    ran = finished(outputs, *SMALL, "module.coarse_weight=0", "decode.diagnosed=0")
    assert not any(name.startswith("ratio_matched") for name in names(ran))
    assert any(name.startswith("ratio_unmatched") for name in names(ran))


@pytest.mark.parametrize("overrides", [
    ("model.num_frames=1", "trainer.accumulate_grad_batches=2"),
    pytest.param(("module.iterations=2", "module.queries=diverse", "loss=caption_focus"), marks=pytest.mark.slow),
    pytest.param(("module.fine_weight=0", "model.attention.depth=shallow"), marks=pytest.mark.slow),
    pytest.param(("data=moving_ball", "loss=clip_point_heads", "model.attention.top_k=4"), marks=pytest.mark.slow),
])  # fmt: skip
def test_other_settings_run_through(outputs: Path, overrides: tuple[str, ...]) -> None:
    given = {o.split("=")[0]: o for o in (*SMALL, "decode.diagnosed=0", *overrides)}
    ran = finished(outputs, *given.values())
    assert any(name.startswith(("acc", "px384")) for name in names(ran))


def test_one_batch_is_trained_and_tested_again_and_again(outputs: Path) -> None:
    ran = finished(outputs, *SMALL, "overfit=true", "decode.diagnosed=0")
    assert ran.json("metrics.json")["counts"]["clips"] == 4


def test_the_first_batch_is_shown(outputs: Path) -> None:
    ran = call(outputs, "train", "debug=inspect", *SMALL)
    assert ran.status == 0, ran.err
    page = (ran.run / "first_batch.html").read_text()
    assert "[mode] z_1 .. z_2" in page
    assert "mode and frames stand in the same columns, seen in every clip" in page


@pytest.mark.slow
def test_a_run_goes_on_and_another_starts_from_its_weights(outputs: Path, run: Ran) -> None:
    for override in (f"resume={run.run}", f"init={run.run}"):
        given = [*FAST, *SMALL, "decode.diagnosed=0"] if override.startswith("init") else []
        ran = call(outputs, "train", override, *[g for g in given if not g.startswith("trainer.max")], "trainer.max_steps=4", page=False)
        assert ran.status == 0, ran.err


def test_clips_are_not_asked_about_as_images_are(outputs: Path, run: Ran, tmp_path: Path) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    said = "this run is of task=video: it answers about clips"
    for argv in ((), ("phrase=a cup",)):
        assert said in refusal(predict(outputs, f"run={run.run}", f"images={tmp_path / 'a.png'}", *argv))
    with pytest.raises(ConfigError, match=said):
        coordvlm.load(run.run)


def test_settings_of_other_tasks_are_one_clear_line(outputs: Path) -> None:
    assert "adapter" in refusal(train(outputs, *FAST, *SMALL, "adapter=lora"))
    assert "no multiple of the patch size" in refusal(train(outputs, *FAST, *SMALL, "model.frame_size=72"))


@pytest.mark.slow
def test_a_sweep_over_queries(outputs: Path) -> None:
    ran = call(outputs, "train", "--multirun", "module.queries=llm,random", *FAST, *SMALL, page=False)
    assert ran.status == 0, ran.err
