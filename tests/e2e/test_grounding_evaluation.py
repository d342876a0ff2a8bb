"""What a run over phrases leaves behind, by train, by eval, and on two processes."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path

import pytest

from coordvlm.utils.devices import usable_cpus
from tests.e2e.commands import Ran, evaluate, finished, refusal, train

FILES = {"metrics.json", "metrics.csv", "predictions.jsonl", "bootstrap.npz", "grounding.csv", "failures.json", "failures.csv"}


def of(ran: Ran) -> tuple[str, ...]:
    return (f"run={shlex.quote(str(ran.run))}", "metrics.num_replicates=10")


def test_a_run_over_phrases_leaves_its_findings(ground_run: Ran) -> None:
    assert {p.name for p in ground_run.run.iterdir()} >= FILES
    metrics = ground_run.json("metrics.json")
    num = metrics["counts"]["phrases"]
    assert metrics["controls"]["phrases"] == metrics["counts"]["phrases_with_target"] > 0
    assert {"acc_50_shuffled", "drop_shuffled", "acc_50_blank", "drop_blank", "sentence_blank"} <= set(metrics["controls"])
    assert metrics["controls"]["unchanged"] == 0
    assert metrics["offset"]["verdict"] == "too_few"
    assert "AP" not in metrics["metrics"]
    with (ground_run.run / "grounding.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (ground_run.run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == len(lines) == num
    assert [row["phrase"] for row in rows] == [line["phrase"] for line in lines]
    assert all(line["phrase"] in line["prompt"] for line in lines)
    assert {row["kind"] for row in rows} <= {"attribute", "relation"}
    kinds = [row for row in ground_run.json("failures.json")["rows"] if row["group"] == "kind"]
    assert sum(row["phrases"] for row in kinds) == metrics["counts"]["phrases_with_target"]
    assert "With the phrases permuted" in ground_run.out
    assert "With blank images" in ground_run.out
    assert ground_run.record["timings"]["controls"] > 0


def test_eval_does_the_same_unless_told_not_to(ground_run: Ran, fast_outputs: Path) -> None:
    again = evaluate(fast_outputs, *of(ground_run), "controls=false", "trainer.limit_test_batches=1", f"base={ground_run.run}")
    assert again.status == 0, again.err
    metrics = again.json("metrics.json")
    assert "controls" not in metrics
    assert "offset" in metrics
    assert metrics["metrics"]["acc_50"] == ground_run.json("metrics.json")["metrics"]["acc_50"]
    assert "Tuned and base cannot be told apart: +0.0 points of Acc@0.5" in again.json("base.json")["sentence"]
    page = (again.run / "report.html").read_text(encoding="utf-8")
    assert "The controls were not run" in page
    assert "Where it fails" in page


def test_a_control_without_phrases_is_refused_before_training(tmp_path: Path) -> None:
    message = refusal(train(tmp_path, "debug=fast", "data=phrases", "control_samples=0"))
    assert "control_samples must be an integer of at least 1" in message


@pytest.mark.slow
@pytest.mark.skipif(usable_cpus() < 2, reason="two processes want two cores")
def test_two_processes_answer_the_controls_together(ground_run: Ran, tmp_path: Path) -> None:
    both = finished(tmp_path, "data=phrases", "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "data.batch_size=8")
    controls = both.json("metrics.json")["controls"]
    assert controls["phrases"] == ground_run.json("metrics.json")["controls"]["phrases"]
    assert (both.run / "failures.csv").is_file()
