"""A counting evaluation leaves its tables and every single step; the checklist knows the training, also of an evaluation beside it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from coordvlm.callbacks.count_findings import write_count_findings
from coordvlm.metrics.counting import CountingMetric
from tests.reports.counts import answers, dots

HEALTH = {
    "healthy": [1e-4, 10.0], "spike_factor": 5.0, "spike_window": 10, "groups": {"x": {"share_outside": 0.0}},
    "tasks": {"all": {"steps": 100, "loss_spikes": 0}},
}  # fmt: skip


def write(folder: Path, *, log: Path, record: dict[str, object]) -> dict[str, str]:
    """Item of the checklist -> status."""
    truth = dots(8)
    predictions = answers(truth, noise_px=0.5)
    metric = CountingMetric(num_replicates=0, seed=0, tolerance_px=5.0, any_unmarked=False, truth=truth)
    metric.update(predictions)
    found = write_count_findings(folder, truth, predictions, metric.compute(), log=log, record=record)
    stored = json.loads((folder / "counting.json").read_text())
    assert [c["status"] for c in stored["checks"]] == [c.status for c in found.checks]
    with (folder / "steps.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == sum(len(p.asked) for p in predictions)
    return {c.name: c.status for c in found.checks}


def test_a_training_without_log_and_health_leaves_items_open(tmp_path: Path) -> None:
    status = write(tmp_path, log=tmp_path / "log.csv", record={})
    assert status["train/validation gap"] == status["gradients in range"] == status["loss spikes"] == "not measured"
    assert status["median"] == "pass"


def test_log_and_health_of_the_run_itself(tmp_path: Path) -> None:
    rows = "".join(f"{i},1.0,{2.0 if i == 9 else ''}\n" for i in range(10))
    (tmp_path / "log.csv").write_text(f"step,train_total_loss,val_total_loss\n{rows}")
    status = write(tmp_path, log=tmp_path / "log.csv", record={"gradient_health": HEALTH})
    assert status["train/validation gap"] == status["gradients in range"] == status["loss spikes"] == "pass"


def test_an_evaluation_reads_the_health_of_its_training(tmp_path: Path) -> None:
    trained, own = tmp_path / "trained", tmp_path / "eval"
    for folder in (trained, own):
        folder.mkdir()
    (trained / "run.json").write_text(json.dumps({"status": "finished", "gradient_health": HEALTH}))
    status = write(own, log=trained / "log.csv", record={"status": "running"})
    assert status["gradients in range"] == "pass"
    assert status["train/validation gap"] == "not measured"
