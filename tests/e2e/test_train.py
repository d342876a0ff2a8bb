from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from coordvlm.contracts import Contract
from tests.e2e.commands import FAST, Ran, finished, losses, refusal, train

METRICS = {
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR1", "AR10", "AR100", "AP_score1", "AP50_score1", "F1_50",
    "F1_75", "F1_95", "F1_mean", "duplicate_rate", "absent_class_rate", "parse_rate", "truncation_rate", "px_mean", "px_median",
    "px_p90", "px_p95", "pck_2", "pck_5", "pck_8", "pck_10", "pck_15",
}


@pytest.fixture(scope="module")
def ran(fast_run: Ran) -> Ran:
    return fast_run


def test_a_run_leaves_every_file(ran: Ran) -> None:
    wanted = {
        "config.yaml", "run.json", "run.log", "log.csv", "metrics.json", "metrics.csv", "predictions.jsonl", "bootstrap.npz",
        "report.html", "first_batch.html",
    }
    assert wanted <= {p.name for p in ran.run.iterdir()}
    for name in ("best", "last"):
        files = {p.name for p in (ran.run / "checkpoints" / name).iterdir()}
        assert files == {"trained.safetensors", "contract.json", "trainer.ckpt"}
    assert not [p for p in ran.run.rglob("*") if p.name.endswith(".part") or p.name.endswith(".old")]


def test_the_command_ends_with_the_table_and_the_reports_path(ran: Ran) -> None:
    assert "AP50" in ran.out
    assert "4 test images" in ran.out
    assert ran.out.strip().splitlines()[-1] == f"report: {ran.run / 'report.html'}"
    assert "Traceback" not in ran.err


def test_the_record_is_complete(ran: Ran) -> None:
    record = ran.record
    assert (record["status"], record["error"], record["seed"], record["steps"]) == ("finished", None, 0, 4)
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0] or record["versions"]["torch"] == torch.__version__
    assert set(record["git"] or {"commit": 1, "branch": 1, "dirty": 1}) == {"commit", "branch", "dirty"}
    assert set(record["data"]) == {"train", "val", "test"}
    assert all(len(digest) == 12 for digest in record["data"].values())
    assert {name: counts["images"] for name, counts in record["data_counts"].items()} == {"train": 200000, "val": 200, "test": 500}
    assert {"import", "build", "first_batch", "train", "evaluate", "write"} <= set(record["timings"])
    assert record["peak_memory"]["rss_bytes"] > 10**8
    assert record["choices"] == {
        "task": "detect", "loss": "ce_group", "model": "tiny", "adapter": "none", "data": "shapes", "sequence": "objects", "coords": "k999",
        "schedule": "single", "debug": "fast",
    }
    assert record["overrides"] == list(FAST)
    assert record["selected"]["checkpoint"] == "best"
    assert record["selected"]["images"] == 8


def test_metrics_have_the_names_of_the_protocol_and_intervals(ran: Ran) -> None:
    found = ran.json("metrics.json")
    assert set(found["metrics"]) >= METRICS
    assert (found["split"], found["selected_on"], found["protocol"]) == ("test", "val", ran.record["protocol"])
    ap = found["metrics"]["AP"]
    assert ap["low"] <= ap["value"] <= ap["high"]
    assert set(found["readouts"]) == {"argmax", "expectation", "local"}
    with (ran.run / "metrics.csv").open(newline="") as file:
        assert {row["name"] for row in csv.DictReader(file)} >= METRICS


def test_only_images_that_were_shown_are_scored(ran: Ran) -> None:
    """A limited loader must not make the other images look missed."""
    lines = [json.loads(line) for line in (ran.run / "predictions.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [0, 1, 2, 3]
    assert ran.json("metrics.json")["counts"]["images"] == 4
    with np.load(ran.run / "bootstrap.npz") as replicates:
        assert replicates["metric/AP"].shape == (10,)
        assert replicates["image_ids"].tolist() == [0, 1, 2, 3]


def test_a_prediction_line_holds_what_was_asked_and_answered(ran: Ran) -> None:
    line = json.loads((ran.run / "predictions.jsonl").read_text().splitlines()[0])
    assert "Describe all objects" in str(line["prompt"])
    assert {"id", "sha1", "prompt", "token_ids", "records"} <= set(line)


def test_checkpoints_load_without_pickled_code(ran: Ran) -> None:
    for name in ("best", "last"):
        folder = ran.run / "checkpoints" / name
        state = torch.load(folder / "trainer.ckpt", weights_only=True)
        assert state["global_step"] in (2, 4)
        assert state["state_dict"] == {}
        with safe_open(folder / "trained.safetensors", "pt") as file:
            assert any(key.startswith("rows.") for key in file.keys())  # noqa: SIM118 - not a mapping
            assert file.metadata() == {"step": str(state["global_step"])}
        assert Contract.load(folder / "contract.json").hash() == ran.record["contract"]


def test_train_and_validation_log_the_same_names(ran: Ran) -> None:
    rows = losses(ran.run)
    training_only = ("train_grad_norm/", "train_grad_cos/")
    names = {key.removeprefix("train_") for key in rows[0] if key.startswith("train_") and not key.startswith(training_only)}
    assert names == {key.removeprefix("val_") for key in rows[0] if key.startswith("val_")}
    assert {"total_loss", "text_loss", "coord_loss", "coord_ce_loss", "term/text_ce", "term/coord_ce"} <= names
    assert {"coord_probe/expected_bin_mae", "coord_probe/iou_expected", "coord_probe/x1/token_acc"} <= names
    assert {"train_grad_norm/coord_ce", "train_grad_cos/coord_ce", "train_grad_norm/total"} <= set(rows[0])
    assert [row["step"] for row in rows if row["train_total_loss"]] == ["0", "1", "2", "3"]
    assert all(row["lr"] and row["grad_norm"] for row in rows if row["train_total_loss"])


def test_the_report_says_what_was_run(ran: Ran) -> None:
    page = (ran.run / "report.html").read_text()
    assert "finished" in page
    assert ran.record["data"]["train"] in page
    assert "were not recorded" not in page
    assert "<script src" not in page


def test_a_seed_is_honoured_and_zero_is_a_seed(tmp_path: Path, ran: Ran) -> None:
    def course(folder: Path) -> list[str]:
        return [row["train_total_loss"] for row in losses(folder)]

    few = ("trainer.max_steps=2",)
    first, again, other = (finished(tmp_path, f"seed={seed}", *few) for seed in (0, 0, 1))
    assert course(first.run) == course(again.run)
    assert course(first.run)[0] == course(ran.run)[0]  # seed=0 is also what no seed means
    assert course(first.run) != course(other.run)
    assert (first.record["seed"], other.record["seed"]) == (0, 1)


def test_a_seed_that_was_drawn_is_kept(tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    ran = finished(tmp_path, "seed=null", "trainer.max_steps=1")
    config = OmegaConf.load(ran.run / "config.yaml")
    assert ran.record["seed"] == config.seed == config.data.source.seed == config.model.load.seed


def test_inspect_shows_the_first_batch_and_stops(tmp_path: Path) -> None:
    ran = train(tmp_path, "debug=inspect", "data.batch_size=3")
    assert ran.status == 0, ran.err
    assert ran.record["status"] == "finished"
    assert (ran.run / "first_batch.html").is_file()
    assert not (ran.run / "checkpoints").exists()
    assert not (ran.run / "metrics.json").exists()
    assert "<obj_start>" in ran.out
    assert str(ran.run / "first_batch.html") in ran.out


@pytest.mark.parametrize("loss", ["ce", "coordexp"])
def test_every_recipe_takes_steps(tmp_path: Path, loss: str) -> None:
    terms = {"ce": {"text_ce", "coord_ce"}, "coordexp": {"text_ce", "gate", "l1", "giou"}}[loss]
    ran = finished(tmp_path, f"loss={loss}", "trainer.max_steps=2")
    logged = {key.partition("/")[2] for key in losses(ran.run)[0] if key.startswith("train_term/")}
    assert logged == terms


def test_k1000_a_frozen_tower_and_accumulation_train(tmp_path: Path) -> None:
    ran = finished(tmp_path, "coords=k1000", "model.freeze=[vision,merger]", "trainer.accumulate_grad_batches=2", "trainer.max_steps=2",
                   "trainer.val_check_interval=4")
    assert json.loads((ran.run / "checkpoints/last/contract.json").read_text())["coords"] == "k1000"
    with safe_open(ran.run / "checkpoints/last/trained.safetensors", "pt") as file:
        assert not [key for key in file.keys() if ".visual." in key]  # noqa: SIM118
    assert ran.record["parameters"]["trained"] < ran.record["parameters"]["all"]
    assert ran.record["steps"] == 2
    assert [row["step"] for row in losses(ran.run) if row["train_total_loss"]] == ["0", "1"]


def test_nothing_left_to_train_is_refused(tmp_path: Path) -> None:
    message = refusal(train(tmp_path, *FAST, "trainer.limit_test_batches=0"))
    assert "limit_test_batches=0 leaves no image" in message


def test_a_sweep_leaves_a_folder_for_each_job(tmp_path: Path) -> None:
    ran = train(tmp_path, "--multirun", "loss=ce,hybrid", *FAST, "trainer.max_steps=1")
    assert ran.status == 0, ran.err
    jobs = json.loads((ran.run.parent / "jobs.json").read_text())
    assert [(job["status"], job["overrides"][0]) for job in jobs] == [("finished", "loss=ce"), ("finished", "loss=hybrid")]
    assert all(isinstance(job["metric"], float) for job in jobs)
    for job in jobs:
        assert (Path(job["folder"]) / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_one_batch_can_be_overfitted(tmp_path: Path, seed: int) -> None:
    """The whole chain is right: images, targets, positions, losses, decoding, parsing, scoring."""
    ran = train(tmp_path, "debug=overfit", "data.batch_size=4", "data.eval_batch_size=4", f"seed={seed}")
    assert ran.status == 0, ran.err
    metrics = ran.json("metrics.json")["metrics"]
    assert metrics["AP50"]["value"] >= 0.95
    assert metrics["AP"]["value"] >= 0.75
    assert metrics["parse_rate"]["value"] == 1.0
