"""The page of a counting run: what it shows instead of a detection's sections, its numbers, and that it says what is missing."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coordvlm.contracts import Evaluation, PointTruth, Prediction
from coordvlm.metrics.counting import CountingMetric
from coordvlm.metrics.counting_tables import counting_tables
from coordvlm.reports import sections_count_pictures as pictures
from coordvlm.reports import sections_counting as counting
from coordvlm.reports.run_report import write_run_report
from coordvlm.reports.summary import RunSummary
from tests.reports.conftest import make_contract
from tests.reports.counts import answers, dots, draw
from tests.reports.html_check import Checker, read

SECTIONS = {
    "metrics", "checklist", "pixels", "regions", "buckets", "done", "counts", "pictures", "counted", "readouts", "training", "contract",
    "data", "timing", "record",
}  # fmt: skip
FIGURES = {
    "Histogram of the point error", "Signed error in x against y", "Distribution of the probability that everything is marked",
    "Counted against true numbers",
}  # fmt: skip
CURVES = {"train_total_loss": (list(range(1, 40)), [1.0] * 39), "val_total_loss": ([20, 39], [1.5, 2.0])}
CONTRACT = replace(make_contract(), format="count", order="rows", markers=("<x>", "<y>", "<done>"))


def evaluate(truth: PointTruth, predictions: list[Prediction], *, any_unmarked: bool = False, done_taught: bool = True) -> Evaluation:
    metric = CountingMetric(num_replicates=20, seed=0, tolerance_px=5.0, any_unmarked=any_unmarked, done_taught=done_taught, truth=truth)
    metric.update(predictions)
    return metric.compute()


def summary(truth: PointTruth, predictions: list[Prediction], **changes: object) -> RunSummary:
    found = evaluate(truth, predictions)
    base = RunSummary(
        run_info={"status": "finished"}, evaluation=found, predictions=predictions, truth=truth, split="test", curves=CURVES,
        load_image=lambda i: draw(truth, i), contract=CONTRACT, readout="spatial",
        readouts={"spatial": {"pck384_5": 0.8}, "heads": {"pck384_5": 0.1}},
        counting=counting_tables(truth, predictions, found, curves=CURVES, gradients=None),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def run() -> RunSummary:
    truth = dots(30)
    return summary(truth, answers(truth, noise_px=1.0, wrong_done=0.1))


@pytest.fixture(scope="module")
def page(run: RunSummary, tmp_path_factory: pytest.TempPathFactory) -> Checker:
    return read(write_run_report(tmp_path_factory.mktemp("page") / "report.html", run))


def plain(markup: str) -> str:
    """The text of a part of a page."""
    return " ".join(html.unescape(re.sub("<[^>]+>", " ", markup)).split())


def words(page: Checker) -> str:
    return " ".join(" ".join(page.text).split())


def test_the_sections_are_those_of_counting(page: Checker) -> None:
    assert {a["id"] for tag, a in page.tags if tag == "section"} == SECTIONS
    assert {a["href"] for tag, a in page.tags if tag == "a"} >= {f"#{name}" for name in SECTIONS}
    assert {a["aria-label"] for tag, a in page.tags if tag == "svg"} >= FIGURES
    assert "IoU" not in words(page)


def test_numbers_are_those_of_the_evaluation(page: Checker, run: RunSummary) -> None:
    text = words(page)
    assert run.evaluation is not None
    assert run.counting is not None
    values, total = run.evaluation.metrics, run.counting.errors[0]
    counted = run.counting.counts[0]
    for part in (
        "30 samples (an image and a category) on 15 images", f"{values['pck384_5'].value:.4f}",
        f"all all {total.steps:,} {values['pck384_5'].value:.1%} {values['pck384_10'].value:.1%}",
        f"everything is marked (k = N) 30 {run.evaluation.counts['done_said_done']} {run.evaluation.counts['done_said_more']}",
        f"Bias {values['count_bias'].value:+.2f} over all samples", f"{counted.samples} {values['count_mae'].value:.2f}",
        "tier minimum", "median < 5 px", "2.00 × (2 / 1)", "gradient norms were not watched", "not measured",
        "target 90%, stretch 95%", "to the next object in order", "blue <b>dot</b>", "used above",
        "A question ends with <x> <y> <done> ; a point is answered as x' = 2 x / W − 1", "objects are taken in rows order",
    ):
        assert part in text, part


def test_every_kind_of_picture_is_there(page: Checker) -> None:
    kinds = [a["src"].split(";")[0] for tag, a in page.tags if tag == "img" and a["src"] is not None]
    assert kinds.count("data:image/gif") == 1
    assert len(kinds) == 18 + 12 + 1  # steps, counted images, and one of them step by step
    text = words(page)
    for part in ("Best", "Median", "Worst", "Random", "Step by step"):
        assert part in text


def test_regions_hold_the_error_of_their_place() -> None:
    corners = np.array([[16.0, 16.0], [368.0, 16.0]])
    truth = PointTruth.of(ids=[0], categories=["dot"], source_image=[0], image_wh=np.array([[384.0, 384.0]]), points=[corners])
    first, last, end = answers(truth, noise_px=0.0)[0].asked
    asked = (first, replace(last, point_px=(368.0, 116.0)), end)
    run = summary(truth, [Prediction(0, (384, 384), (), asked=asked)])
    assert "100% median 0.0 px 1 steps no step 0% median 100.0 px 1 steps no step" in plain(counting.regions(run))
    assert "The loop was not run (decode.loop=true runs it in the test)" in plain(counting.counts(run))
    assert "The loop was not run, so no image was counted" in plain(pictures.count_pictures(run))


def test_what_was_measured_to_any_unmarked_object_says_so(run: RunSummary) -> None:
    truth, predictions = run.truth, list(run.predictions)
    assert isinstance(truth, PointTruth)
    shown = replace(run, evaluation=evaluate(truth, predictions, any_unmarked=True), counting=None)
    assert "to the unmarked object nearest to the answer" in plain(counting.pixel_errors(shown))


def test_half_of_the_errors_are_always_seen(run: RunSummary) -> None:
    """The histogram of a run whose errors are all large is not empty."""
    truth = run.truth
    assert isinstance(truth, PointTruth)
    far = [replace(p, asked=tuple(replace(a, point_px=(4.0, 4.0)) for a in p.asked)) for p in run.predictions]
    for predictions, seen in ((list(run.predictions), 0.95), (far, 0.5)):
        shown = summary(truth, predictions)
        note = re.search(r"([\d,]+) of ([\d,]+) answers lie beyond (\d+) px", plain(counting.pixel_errors(shown)))
        assert note is None or 1 - int(note[1].replace(",", "")) / int(note[2].replace(",", "")) >= seen


def test_a_run_that_never_learnt_the_end_says_nothing_of_it(run: RunSummary) -> None:
    truth, predictions = run.truth, list(run.predictions)
    assert isinstance(truth, PointTruth)
    found = evaluate(truth, predictions, done_taught=False)
    tables = counting_tables(truth, predictions, found, curves=CURVES, gradients=None)
    assert tables.done == ()
    shown = replace(run, evaluation=found, counting=tables)
    assert "never learnt whether all is marked (sequence.mode=regression)" in plain(counting.done(shown))


def test_without_images_the_reason_is_given(run: RunSummary) -> None:
    for part in (pictures.step_pictures, pictures.count_pictures):
        assert "Images cannot be loaded here" in plain(part(replace(run, load_image=None)))


def test_missing_parts_are_named(run: RunSummary, tmp_path: Path) -> None:
    text = words(read(write_run_report(tmp_path / "report.html", RunSummary(truth=run.truth))))
    for part in (
        "There is no evaluation", "No checklist was made", "No single step with something left to point at", "No single step was asked",
        "The loop was not run", "No predictions were handed over", "Read-outs were not compared",
    ):
        assert part in text, part


def test_an_image_that_cannot_be_read_leaves_its_caption(run: RunSummary) -> None:
    def broken(_: int) -> Image.Image:
        raise OSError("no such file")

    steps, counted = (plain(part(replace(run, load_image=broken))) for part in (pictures.step_pictures, pictures.count_pictures))
    assert steps.count("The image could not be read: OSError: no such file") == 18
    assert steps.count("px of 384") == 18
    assert "The steps could not be drawn: OSError: no such file" in counted


def test_nothing_to_count_at_all() -> None:
    truth = dots(1)  # its only sample has no objects
    run = summary(truth, answers(truth, noise_px=1.0))
    for part in (counting.pixel_errors, counting.regions, counting.buckets, pictures.step_pictures):
        assert "No single step with something left to point at" in plain(part(run))
    assert "everything is marked (k = N) 1 1 0 100.0%" in plain(counting.done(run))
