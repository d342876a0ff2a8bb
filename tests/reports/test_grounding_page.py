"""The page of a grounding run: what it shows instead of a detection's sections, and that it says what is missing."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coordvlm.contracts import Prediction
from coordvlm.contracts.sample import PhraseTruth
from coordvlm.metrics.failures import failure_table
from coordvlm.metrics.grounding import GroundingMetric
from coordvlm.metrics.offset import estimate_offset
from coordvlm.metrics.phrase_controls import control
from coordvlm.metrics.phrases import Outcomes, outcomes
from coordvlm.reports.gallery import caption_text, choose, scenes
from coordvlm.reports.run_report import write_run_report
from coordvlm.reports.summary import PhraseFindings, RunSummary
from coordvlm.reports.tables import main_metrics, primary
from tests.metrics.phrase_cases import answer, phrases, random_grounding
from tests.reports.html_check import Checker, read

A, B = (10.0, 10.0, 60.0, 60.0), (100.0, 20.0, 150.0, 80.0)
SECTIONS = {
    "metrics", "controls", "pictures", "overlap", "failures", "rejection", "offset", "pixels", "readouts", "drops", "training", "contract",
    "data", "timing", "record",
}  # fmt: skip


def found(truth: PhraseTruth, answers: list[Prediction]) -> Outcomes:
    return outcomes(truth, {int(a.sample_id): a for a in answers})


@pytest.fixture(scope="module")
def run() -> RunSummary:
    truth, answers = random_grounding(0, num=60, images=12)
    truth = replace(truth, phrases=("<script>left cup</script>", *truth.phrases[1:]))
    metric = GroundingMetric(num_replicates=50, seed=0, truth=truth)
    metric.update(answers)
    got, blind = found(truth, answers), found(truth, [answer(int(a.sample_id), (0.0, 0.0, 9.0, 9.0)) for a in answers])
    controls = {
        "shuffled": control("shuffled", truth, got, blind, num_replicates=50, seed=0),
        "blank": control("blank", truth, got, got, num_replicates=50, seed=0),
    }
    findings = PhraseFindings(tuple(failure_table(truth, got)), estimate_offset(got, model_wh=truth.image_wh), controls)
    return RunSummary(
        run_info={"status": "finished"}, evaluation=metric.compute(), predictions=answers, truth=truth, split="test", phrases=findings,
        load_image=lambda i: Image.new("RGB", (640, 480), (90, 90, 90)),
    )


@pytest.fixture(scope="module")
def page(run: RunSummary, tmp_path_factory: pytest.TempPathFactory) -> Checker:
    return read(write_run_report(tmp_path_factory.mktemp("page") / "report.html", run))


def words(page: Checker) -> str:
    return " ".join(" ".join(page.text).split())


def test_the_sections_are_those_of_phrases(page: Checker) -> None:
    assert {a["id"] for tag, a in page.tags if tag == "section"} == SECTIONS
    assert {a["href"] for tag, a in page.tags if tag == "a"} >= {f"#{name}" for name in SECTIONS}
    plots = {a["aria-label"] for tag, a in page.tags if tag == "svg"}
    assert plots >= {"Histogram of the IoU of each phrase", "Share of phrases whose answer reaches each IoU"}
    assert "Precision over recall" not in plots


def test_what_was_found_is_told(page: Checker, run: RunSummary) -> None:
    text = words(page)
    assert run.phrases is not None
    assert run.evaluation is not None
    for part in (
        "60 phrases on 12 images", f"{run.evaluation.metrics['acc_50'].value:.4f}", "A control failed", "does not read the image",
        run.phrases.controls["shuffled"].sentence, run.phrases.offset.sentence, "words in the phrase", "reject_recall",
        "<script>left cup</script>", "left",
    ):
        assert part in text, part


def test_missing_findings_are_named(run: RunSummary, tmp_path: Path) -> None:
    text = words(read(write_run_report(tmp_path / "report.html", replace(run, phrases=None))))
    for part in ("The controls were not run", "No failure table was made", "No offset was estimated"):
        assert part in text


def test_a_named_convention_stands_out(run: RunSummary, tmp_path: Path) -> None:
    assert run.phrases is not None
    assert isinstance(run.truth, PhraseTruth)
    swapped = [answer(i, (b[1] * 4 / 3, b[0] * 3 / 4, b[3] * 4 / 3, b[2] * 3 / 4))
               for i, b in zip(run.truth.ann_image_id.tolist(), run.truth.ann_xyxy_px.tolist(), strict=True)]
    offset = estimate_offset(found(run.truth, swapped), model_wh=run.truth.image_wh)
    text = words(read(write_run_report(tmp_path / "report.html", replace(run, phrases=replace(run.phrases, offset=offset)))))
    assert "read by another convention" in text
    assert "x and y are swapped" in text


def test_few_images_are_said_to_be_few(run: RunSummary, tmp_path: Path) -> None:
    truth = phrases(A, B, source=[1, 2])
    metric = GroundingMetric(num_replicates=10, seed=0, truth=truth)
    metric.update([answer(1, A)])
    text = words(read(write_run_report(tmp_path / "report.html", RunSummary(evaluation=metric.compute(), truth=truth))))
    assert "2 images are too few for these ranges" in text
    assert "Every phrase has a target" in text


def test_pictures_are_ranked_by_their_answer() -> None:
    truth = phrases(A, B, A, None, None, words=["cup", "dog  at\nleft", "hat", "unicorn", "yeti"])
    answers = [answer(1, A), answer(2, A, B), answer(3, none=True), answer(4, none=True), answer(5, A, dropped=["bad_arity"])]
    items = {s.image_id: s for s in scenes(truth, answers, None)}
    assert [items[i].rank[0] for i in (1, 2, 3, 4, 5)] == [1.0, 0.0, 0.0, 1.0, 0.0]
    captions = [caption_text(items[i]) for i in (1, 2, 3, 4, 5)]
    assert captions == [
        "“cup” · phrase 1 · IoU 1.00", "“dog at left” · phrase 2 · IoU 0.00 · 1 further box", "“hat” · phrase 3 · answered “none”",
        "“unicorn” · phrase 4 · names nothing here · answered “none”", "“yeti” · phrase 5 · names nothing here · 1 × bad_arity",
    ]  # fmt: skip
    assert [s.image_id for s in choose(list(items.values()), each=1)["best"]] == [1]


def test_what_a_task_is_judged_by() -> None:
    assert primary(["AP", "px_mean"]) == "AP"
    assert primary({"px_mean": 1, "acc_50": 2}) == "acc_50"
    assert primary([]) == "AP"
    assert main_metrics(["acc_50"])[0] == "acc_50"


def test_an_interval_of_nothing_is_a_dash(run: RunSummary, tmp_path: Path) -> None:
    truth = phrases(A)
    got = found(truth, [answer(1, A)])
    one = control("blank", truth, got, got, num_replicates=10, seed=0)
    assert math.isnan(one.drop.low)
    findings = PhraseFindings((), estimate_offset(got, model_wh=np.ones((1, 2))), {"blank": one})
    text = words(read(write_run_report(tmp_path / "report.html", replace(run, phrases=findings))))
    assert "0.000 –" in text
