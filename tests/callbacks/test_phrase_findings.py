"""What a grounding evaluation leaves behind beside an image's: fields per phrase, tables, controls, offset."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from coordvlm.callbacks.evaluation_writer import write_evaluation
from coordvlm.callbacks.finish import control_phrases
from coordvlm.callbacks.phrase_findings import kinds_of, model_sizes, write_controls, write_findings
from coordvlm.callbacks.split_images import SplitImages
from coordvlm.contracts import Prediction, ResizeRule, Sample
from coordvlm.data.overfit import FewSamples
from coordvlm.metrics.grounding import GroundingMetric
from coordvlm.metrics.phrase_controls import control
from coordvlm.metrics.phrases import outcomes
from coordvlm.metrics.records import line_to_prediction
from coordvlm.utils.errors import ConfigError
from tests.metrics.phrase_cases import answer, phrases

A, B = (10.0, 10.0, 60.0, 60.0), (100.0, 20.0, 150.0, 80.0)
TRUTH = phrases(A, B, None, source=[4, 4, 9], words=["cup", "left, dog", "yeti"])
ANSWERS = [answer(3, none=True), answer(1, A), answer(2, A)]
SQUARE = ResizeRule("square", patch=8, merge=2, size=(96, 96))


def write(folder: Path, answers: list[Prediction]) -> None:
    metric = GroundingMetric(num_replicates=5, seed=0, truth=TRUTH)
    metric.update(answers)
    write_evaluation(
        folder, metric.compute(), answers, TRUTH, split="test", protocol={"hash": "abc"}, selected_on="val", timing={}, readouts={}, seed=0,
        prompt=str, sha1=lambda i: None,
    )


def experiment(answers: list[Prediction]) -> Any:
    contract = SimpleNamespace(resize=SQUARE)
    return SimpleNamespace(truth=TRUTH, module=SimpleNamespace(predictions=answers), model=SimpleNamespace(contract=contract))


def test_each_line_says_its_phrase_and_overlap(tmp_path: Path) -> None:
    write(tmp_path, ANSWERS)
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [(line["id"], line["phrase"], line["source_image"], line["iou"], line["answer"]) for line in lines] == [
        (1, "cup", 4, 1.0, "box"), (2, "left, dog", 4, 0.0, "box"), (3, "yeti", 9, None, "none"),
    ]  # fmt: skip
    assert line_to_prediction(lines[0]) == ANSWERS[1]


def test_tables_and_the_entry_of_metrics(tmp_path: Path) -> None:
    write(tmp_path, ANSWERS)
    got = write_findings(tmp_path, experiment(ANSWERS), {1: "attribute"})
    assert got.failures[0].phrases == 2
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["offset"]["verdict"] == "too_few"
    assert metrics["metrics"]["acc_50"]["value"] == 0.5
    assert json.loads((tmp_path / "failures.json").read_text())["rows"][1]["bucket"] == "attribute"
    assert (tmp_path / "failures.csv").read_text().startswith("group,bucket,")
    assert len((tmp_path / "grounding.csv").read_text().splitlines()) == 4


def test_a_failed_control_is_a_loud_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, ANSWERS)
    found = outcomes(TRUTH, {int(a.sample_id): a for a in ANSWERS})
    same = control("blank", TRUTH, found, found, num_replicates=5, seed=0)
    with caplog.at_level(logging.WARNING):
        write_controls(tmp_path, {"blank": same})
    assert "CONTROL FAILED: With blank images" in caplog.text
    content = json.loads((tmp_path / "metrics.json").read_text())["controls"]
    assert content["ignored"] == ["image"]
    assert content["drop_blank"]["value"] == 0.0


def test_kinds_come_from_the_samples() -> None:
    image = Image.new("RGB", (20, 20))
    samples = [Sample(1, image, 20, 20, (), phrase="a", meta={"kind": "relation"}), Sample(2, image, 20, 20, (), phrase="b"),
               Sample(3, image, 20, 20, (), phrase="c", meta={"kind": 7})]
    assert kinds_of(SplitImages(FewSamples("val", samples), 1000), [1, 2, 3]) == {1: "relation"}


def test_sizes_as_the_model_sees_them() -> None:
    assert model_sizes(TRUTH, SQUARE).tolist() == [[96.0, 96.0]] * 3
    strip = phrases(A, size=(4000.0, 10.0))
    assert np.isnan(model_sizes(strip, ResizeRule("smart", patch=14, merge=2, min_pixels=3136, max_pixels=200_000))).all()


@pytest.mark.parametrize("samples", [0, -1, 2.5, "many", True])
def test_the_number_of_control_phrases_is_checked(samples: Any) -> None:
    with pytest.raises(ConfigError, match="control_samples"):
        control_phrases(True, samples)
    assert (control_phrases(True, 7), control_phrases(False, 7)) == (7, 0)
