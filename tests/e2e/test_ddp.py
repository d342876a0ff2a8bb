"""Two real processes train, validate and score exactly like one."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from coordvlm.callbacks.checkpoint import steps_done
from coordvlm.utils.devices import usable_cpus
from coordvlm.utils.launch import _free_port
from tests.e2e import coco, ranks
from tests.e2e.commands import FAST, call, finished, losses, refusal, train

pytestmark = [
    pytest.mark.skipif(usable_cpus() < 2, reason="two processes want two cores"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Everything two ranks computed, in one go."""
    folder = tmp_path_factory.mktemp("ranks")
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in range(2):
        with (folder / f"log{rank}").open("w") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.e2e.ranks", str(folder / "out.pt")], stdout=log, stderr=subprocess.STDOUT,
                    env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, cwd=Path(__file__).parents[2],
                )
            )
    try:
        codes = [p.wait(timeout=240) for p in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], (folder / "log0").read_text()[-3000:] + (folder / "log1").read_text()[-3000:]
    found: dict[str, Any] = torch.load(folder / "out.pt", weights_only=False)
    return found


def worst(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Largest difference, relative to the largest value."""
    assert mine.keys() == theirs.keys()
    return max(float((mine[n] - theirs[n]).abs().max()) for n in theirs) / max(float(g.abs().max()) for g in theirs.values())


@pytest.fixture(scope="module")
def whole() -> dict[str, dict[str, torch.Tensor]]:
    return ranks.gradients(ranks.WHOLE, ranks.RECIPES, torch.float64)


@pytest.mark.parametrize("recipe", ranks.RECIPES)
def test_the_gradient_of_a_step_is_that_of_one_process(two: dict[str, Any], whole: dict[str, Any], recipe: str) -> None:
    """Whatever is cut how between ranks and micro-batches, also where a rank has no slot, nothing at all, or the window ends early."""
    others = {k: v for k, v in two["double"].items() if k.startswith(f"{recipe}/")}
    assert len(others) == (5 if recipe in ("ce", "hybrid") else 4)
    off = {name: worst(found, whole[f"{recipe}/1x1"]) for name, found in others.items()}
    assert max(off.values()) <= 1e-10, off


def test_counts_of_one_rank_alone_would_be_noticed(two: dict[str, Any], whole: dict[str, Any]) -> None:
    assert worst(two["planted"]["hybrid/2x1"], whole["hybrid/1x1"]) > 0.1


def test_nor_does_it_depend_on_micro_batches_alone(whole: dict[str, Any]) -> None:
    alone = ranks.gradients(ranks.ONE, ["hybrid"], torch.float64)
    assert len(alone) == 3
    assert max(worst(found, whole["hybrid/1x1"]) for found in alone.values()) <= 1e-10


def test_in_single_precision_too(two: dict[str, Any]) -> None:
    alone = ranks.gradients(ranks.WHOLE, ["hybrid"], torch.float32)
    assert max(worst(found, alone["hybrid/1x1"]) for found in two["single"].values()) <= 1e-5


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return ranks.scores()


@pytest.mark.parametrize("how", ["scores", "sharded"])
def test_validation_logs_the_same_values(two: dict[str, Any], one: dict[str, Any], how: str) -> None:
    mine, theirs = two[how]["validation"], one["validation"]
    assert {"val_total_loss", "val_term/giou", "val_iou", "val/AP"} <= set(theirs)
    assert mine == pytest.approx(theirs, rel=1e-5, nan_ok=True)


def test_a_rank_that_saw_no_image_changes_no_value(two: dict[str, Any], one: dict[str, Any]) -> None:
    assert two["scores"]["one rank alone"] == pytest.approx(one["one rank alone"], rel=1e-6)


@pytest.mark.parametrize("how", ["scores", "sharded"])
def test_an_odd_number_of_images_is_scored_once_each(two: dict[str, Any], one: dict[str, Any], how: str) -> None:
    """Of seven images one rank has four and decodes longer."""
    assert one["counts"]["images"] == 7
    assert one["counts"]["sampler_duplicates"] == 0
    assert two[how]["counts"] == one["counts"]
    assert str(two[how]["metrics"]) == str(one["metrics"])  # as text: NaN equals NaN
    assert str(two[how]["replicates"]) == str(one["replicates"])
    mine, theirs = ([json.loads(line) for line in found["lines"].splitlines()] for found in (two[how], one))
    assert [line["id"] for line in mine] == [line["id"] for line in theirs] == list(range(7))
    assert [line["token_ids"] for line in mine] == [line["token_ids"] for line in theirs]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_clipped_steps_lead_to_the_same_weights(two: dict[str, Any], kind: str) -> None:
    assert worst(two["course"][kind], ranks.course(None)) < 1e-9


def test_a_head_beside_shards_is_averaged_over_ranks(two: dict[str, Any]) -> None:
    mine, theirs = two["head"]["fsdp"], ranks.course(None, "ce_box_head")
    assert any(name.startswith("heads.") for name in mine)
    assert worst(mine, theirs) < 1e-9


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_an_adapter_on_a_frozen_base_is_averaged_over_ranks(two: dict[str, Any], kind: str) -> None:
    mine, theirs = two["adapter"][kind], ranks.course(None, adapter=True)
    assert any(".lora_magnitude_vector." in name for name in mine)
    assert worst(mine, theirs) < 1e-9


# ------------------------------------------------------------------ the command
#: Nine samples in steps of four over two epochs: the last step of an epoch has one sample, so one rank has none. Five images are scored.
COURSE = (*FAST, "loss=hybrid",
          "data.source.num_train=9", "data.source.num_test=5", "trainer.limit_test_batches=1.0", "data.val_images=5", "optim=adamw",
          "data.eval_batch_size=2", "trainer.max_steps=5", "trainer.val_check_interval=3")
ON_TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "data.batch_size=2")
ON_ONE = ("trainer=cpu", "trainer.accelerator=cpu", "trainer.devices=1", "data.batch_size=4")


def command(outputs: Path, *argv: str, name: str = "train") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COORDVLM_OUTPUTS": str(outputs), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", f"coordvlm.{name}", *argv], env=environment, capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="module")
def run_of_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    outputs = tmp_path_factory.mktemp("outputs")
    done = command(outputs, *COURSE, *ON_TWO)
    assert done.returncode == 0, done.stderr
    (folder,) = outputs.glob("train/*")
    return done, folder


def test_the_command_leaves_one_run(run_of_two: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    done, folder = run_of_two
    record = json.loads((folder / "run.json").read_text())
    assert (record["status"], record["steps"]) == ("finished", 5)
    assert record["command_line"].endswith(shlex.join(["-m", "coordvlm.train", *COURSE, *ON_TWO]))
    assert record["overrides"] == [*COURSE, *ON_TWO]
    assert done.stdout.count("report: ") == 1
    assert done.stdout.strip().endswith(str(folder / "report.html"))
    assert "Traceback" not in done.stderr
    assert not list(folder.rglob("*.part"))
    for name in ("best", "last"):
        assert {p.name for p in (folder / "checkpoints" / name).iterdir()} == {"trained.safetensors", "contract.json", "trainer.ckpt"}
    assert [line for line in (folder / "run.rank1.log").read_text().splitlines() if "Traceback" in line] == []


def test_its_course_is_that_of_one_process_with_twice_the_batch(
    run_of_two: tuple[subprocess.CompletedProcess[str], Path], tmp_path: Path
) -> None:
    alone = finished(tmp_path, *COURSE, *ON_ONE)
    mine, theirs = losses(run_of_two[1]), losses(alone.run)
    assert [row["step"] for row in mine] == [row["step"] for row in theirs]
    for row, other in zip(mine, theirs, strict=True):
        for name in ("train_total_loss", "train_term/giou", "val_total_loss", "grad_norm"):
            assert (row[name] == "") == (other[name] == "")
            if row[name]:
                assert float(row[name]) == pytest.approx(float(other[name]), rel=2e-3), (row["step"], name)
    first, other = (next(row for row in rows if row["train_total_loss"]) for rows in (mine, theirs))
    assert float(first["train_total_loss"]) == pytest.approx(float(other["train_total_loss"]), rel=1e-6)


def test_one_process_goes_on_and_scores_the_same(run_of_two: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    """Resuming where nothing is left to train scores the best checkpoint again: every number and every line is the same."""
    folder = run_of_two[1]
    again = call(folder.parents[1], "train", f"resume={folder}", *ON_ONE, page=False)
    assert again.status == 0, again.err
    mine, theirs = (json.loads((f / "metrics.json").read_text()) for f in (folder, again.run))
    assert mine["counts"] == theirs["counts"]
    assert mine["counts"]["images"] == 5
    del mine["metrics"]["seconds_per_image"], theirs["metrics"]["seconds_per_image"]
    assert mine["metrics"] == theirs["metrics"]
    assert predictions(folder) == predictions(again.run)
    with np.load(folder / "bootstrap.npz") as a, np.load(again.run / "bootstrap.npz") as b:
        assert set(a) == set(b)
        assert all(np.array_equal(a[key], b[key], equal_nan=True) for key in a if "seconds" not in key and a[key].dtype.kind == "f")


def predictions(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "timing"} for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_resume_in_the_middle_of_an_epoch(tmp_path: Path, kind: str) -> None:
    how = (*ON_TWO[1:], f"trainer={kind}", "optim.schedule=constant", "trainer.accumulate_grad_batches=2", "data.source.num_train=20")
    half, whole = tmp_path / "half", tmp_path / "whole"
    for outputs, steps in ((half, 2), (whole, 4)):
        outputs.mkdir()
        assert command(outputs, *COURSE, *how, f"trainer.max_steps={steps}").returncode == 0
    done = command(half, "resume=latest", "trainer.max_steps=4")
    assert done.returncode == 0, done.stderr
    resumed, one_go = max(half.glob("train/*")), max(whole.glob("train/*"))
    assert [row["train_total_loss"] for row in losses(resumed)] == [row["train_total_loss"] for row in losses(one_go)]
    mine, theirs = (load_file(f / "checkpoints" / "last" / "trained.safetensors") for f in (resumed, one_go))
    assert all(torch.equal(mine[name], value) for name, value in theirs.items())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_all_ranks_after_the_same_step(tmp_path: Path, number: int) -> None:
    environment = {**os.environ, "COORDVLM_OUTPUTS": str(tmp_path), "OMP_NUM_THREADS": "1"}
    argv = ("debug=fast", *ON_TWO, "trainer.max_steps=100000", "trainer.val_check_interval=50000")
    with (tmp_path / "out").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "coordvlm.train", *argv], env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("train/*/log.csv")):
        assert process.poll() is None, (tmp_path / "out").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1)
    os.killpg(process.pid, number)
    assert process.wait(timeout=60) == 130, (tmp_path / "out").read_text()
    (folder,) = tmp_path.glob("train/*")
    text = (tmp_path / "out").read_text()
    assert "Traceback" not in text
    assert f"resume={folder}" in text
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    assert steps_done(folder / "checkpoints" / "last" / "trainer.ckpt") >= 1


@pytest.mark.slow
def test_a_broken_image_on_one_rank_ends_the_run_and_is_named(tmp_path: Path) -> None:
    data = coco.write(tmp_path / "data", train=coco.content(6), val=coco.content(3, first_id=50))
    broken = sorted((tmp_path / "data").rglob("*.jpg"))[3]
    broken.write_bytes(broken.read_bytes()[:100])
    done = command(tmp_path, *FAST, *data, *ON_TWO, "data.val_images=2", "trainer.max_steps=9")
    assert done.returncode == 1, done.stderr
    assert broken.name in done.stderr
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
    record = json.loads(next(tmp_path.glob("train/*/run.json")).read_text())
    assert record["status"] == "failed"
    assert broken.name in record["error"]["message"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=4096"), "trainer.devices=4096: there are only"),
        (("trainer.strategy=dpd",), "trainer.strategy='dpd' is not known; nearest: ddp"),
        (("trainer.precision=bf16mixed",), "trainer.precision='bf16mixed' is not known; nearest: bf16-mixed"),
    ],
)
def test_what_cannot_run_here_is_refused_before_anything_is_built(tmp_path: Path, argv: tuple[str, ...], message: str) -> None:
    ran = train(tmp_path, *argv)
    assert ran.status == 2
    assert message in refusal(ran)
    assert ran.folder is None
