from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from coordvlm.callbacks.evaluation_writer import READOUT_METRICS, readout_table, write_evaluation
from coordvlm.contracts import Evaluation, Prediction, Record
from coordvlm.metrics.detection import DetectionMetric
from tests.metrics.cases import truth

TRUTH = truth((1, "cat", (10, 10, 50, 60)), (2, "dog", (0, 0, 30, 30)), images=(1, 2, 3))
PREDICTIONS = [
    Prediction(3, (200, 100), (), "", (7,), frozenset({"no_output"})),
    Prediction(1, (200, 100), (Record("cat", (10, 10, 50, 60), 0.9, "ok"),), "</script> é"),
    Prediction(2, (200, 100), (Record("dog", (1, 0, 30, 30), 0.4, "ok"), Record("dog", None, 0.0, "bad_arity"))),
]


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    metric = DetectionMetric(backend="faster", num_replicates=7, seed=3, casefold=False, truth=TRUTH)
    metric.update(PREDICTIONS)
    result = metric.compute()
    assert isinstance(result, Evaluation)
    return result


def write(folder: Path, evaluation: Evaluation) -> None:
    write_evaluation(
        folder, evaluation, PREDICTIONS, TRUTH, split="test", protocol={"hash": "abc", "data": "d"}, selected_on="val",
        timing={"seconds": 1.5, "unknown": float("nan")}, readouts=readout_table({"local": evaluation}), seed=3,
        prompt=lambda i: f"prompt of {i}", sha1=lambda i: None if i == 3 else f"sha1 of {i}",
    )


def test_all_four_files_hold_what_was_found(tmp_path: Path, evaluation: Evaluation) -> None:
    write(tmp_path, evaluation)
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert (found["split"], found["protocol"], found["selected_on"]) == ("test", "abc", "val")
    assert found["protocol_values"] == {"hash": "abc", "data": "d"}
    assert found["metrics"]["AP50"]["value"] == pytest.approx(1.0)
    assert found["timing"] == {"seconds": 1.5, "unknown": None}
    assert found["readouts"]["local"]["AP"] == evaluation.metrics["AP"].value
    with (tmp_path / "metrics.csv").open(newline="") as file:
        table = {row["name"]: row["value"] for row in csv.DictReader(file)}
    assert float(table["AP"]) == evaluation.metrics["AP"].value
    with np.load(tmp_path / "bootstrap.npz") as replicates:
        assert replicates["metric/AP"].tolist() == evaluation.replicates["AP"].tolist()
        assert (int(replicates["seed"]), replicates["image_ids"].tolist()) == (3, [1, 2, 3])


def test_one_line_per_image_in_the_order_of_ids(tmp_path: Path, evaluation: Evaluation) -> None:
    write(tmp_path, evaluation)
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["id"], line["prompt"], line["sha1"]) for line in lines] == [
        (1, "prompt of 1", "sha1 of 1"), (2, "prompt of 2", "sha1 of 2"), (3, "prompt of 3", None),
    ]
    assert [len(line["records"]) for line in lines] == [1, 2, 0]
    assert [len(line["matches"]) for line in lines] == [1, 1, 0]
    assert lines[0]["raw_text"] == "</script> é"


def test_a_second_evaluation_replaces_the_first(tmp_path: Path, evaluation: Evaluation) -> None:
    (tmp_path / "predictions.jsonl").write_text("old\n" * 10)
    write(tmp_path, evaluation)
    assert "old" not in (tmp_path / "predictions.jsonl").read_text()
    assert not list(tmp_path.glob(".*"))


def test_the_table_of_readouts_names_only_what_there_is(evaluation: Evaluation) -> None:
    table = readout_table({"b": evaluation, "a": evaluation})
    assert list(table) == ["a", "b"]
    assert set(table["a"]) <= set(READOUT_METRICS)
