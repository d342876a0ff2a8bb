from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from coordvlm.callbacks.csv_log import CSVLog
from coordvlm.callbacks.tracker import Picture, Tracker, close_trackers, draw, summary_values
from coordvlm.contracts import Asked, Evaluation, Interval, PointTruth, Prediction
from coordvlm.reports.overlay import GREEN, RED
from coordvlm.reports.run_report import RunSummary
from tests.reports.conftest import make_run

TRAINER: Any = SimpleNamespace(is_global_zero=True)


class Memory(Tracker):
    """Keeps what it is given; ``broken`` names what fails."""

    def __init__(self, folder: Path, *, broken: Sequence[str] = ()) -> None:
        super().__init__(folder=str(folder), num_images=2, max_source_pixels=10**8)
        self.broken = set(broken)
        self.seen: list[tuple[Any, ...]] = []

    @property
    def name(self) -> str:
        return "memory"

    def _see(self, *what: Any) -> None:
        if what[0] in self.broken:
            raise OSError("the line is dead")
        self.seen.append(what)

    def begin(self, config: Mapping[str, Any]) -> None:
        self._see("begin", config)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._see("scalars", dict(values), step)

    def table(self, split: str, evaluation: Evaluation, step: int) -> None:
        self._see("table", split, step)

    def pictures(self, split: str, pictures: Sequence[Picture], step: int) -> None:
        self._see("pictures", split, step)

    def summary(self, values: Mapping[str, float], step: int) -> None:
        self._see("summary", dict(values))

    def end(self, *, ok: bool) -> None:
        self._see("end", ok)


def started(folder: Path, **options: Any) -> Memory:
    tracker = Memory(folder, **options)
    tracker.setup(TRAINER, TRAINER, "fit")
    return tracker


def test_it_begins_once_with_the_saved_configuration_and_ends_once(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 3\nmodel:\n  name: tiny\n  note: \\${escaped}\n")
    tracker = started(tmp_path)
    tracker.setup(TRAINER, TRAINER, "test")
    trainer: Any = SimpleNamespace(loggers=[CSVLog(str(tmp_path / "log.csv")), tracker])
    close_trackers(trainer, ok=True)
    tracker.on_exception(TRAINER, TRAINER, ValueError())
    tracker.log_metrics({"a": 1.0}, 1)
    assert tracker.seen == [("begin", {"seed": 3, "model": {"name": "tiny", "note": "${escaped}"}}), ("end", True)]


def test_other_ranks_are_silent(tmp_path: Path) -> None:
    tracker = Memory(tmp_path)
    tracker.setup(SimpleNamespace(is_global_zero=False), TRAINER, "fit")  # type: ignore[arg-type]
    tracker.log_metrics({"a": 1.0}, 1)
    tracker.close(ok=True)
    assert tracker.seen == []


def test_a_resumed_run_hands_on_the_curves_it_inherited(tmp_path: Path) -> None:
    log = CSVLog(str(tmp_path / "log.csv"))
    log.log_metrics({"a": 1.0, "epoch": 0.0}, 0)
    log.log_metrics({"b": 2.5}, 1)
    tracker = started(tmp_path)
    tracker.log_metrics({"a": 3.0, "epoch": 1.0}, 2)
    assert tracker.seen[1:] == [("scalars", {"a": 1.0}, 0), ("scalars", {"b": 2.5}, 1), ("scalars", {"a": 3.0}, 2)]


def test_a_failing_begin_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="the line is dead"):
        started(tmp_path, broken=["begin"])


def test_failures_while_running_are_told_once_and_the_rest_arrives(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = started(tmp_path, broken=["scalars", "end"])
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            tracker.log_metrics({"a": 1.0}, step)
        tracker.broken.discard("scalars")
        tracker.log_metrics({"a": 1.0}, 3)
        tracker.close(ok=True)
    words = "memory: logging failed (OSError: the line is dead); the run goes on, and log.csv has every number"
    assert [r.getMessage() for r in caplog.records] == [words]
    assert tracker.seen[1:] == [("scalars", {"a": 1.0}, 3)]


def test_undefined_numbers_are_left_out_of_the_summary() -> None:
    nan = float("nan")
    evaluation = Evaluation({"AP": Interval(0.5, 0.4, 0.6), "px_mean": Interval(nan), "F1_50": Interval(0.2)}, {})
    assert summary_values("test", evaluation) == {"test/AP": 0.5, "test/AP_low": 0.4, "test/AP_high": 0.6, "test/F1_50": 0.2}


@pytest.mark.parametrize(("count", "ids"), [(1, [1]), (3, [1, 6, 12]), (99, list(range(1, 13)))])
def test_pictures_are_spread_over_the_ids_and_show_truth_in_green_and_predictions_in_red(count: int, ids: list[int]) -> None:
    run: RunSummary = make_run()
    assert run.evaluation is not None
    assert run.truth is not None
    assert run.load_image is not None
    images: Any = SimpleNamespace(load=run.load_image)
    found = draw(run.evaluation, run.truth, run.predictions, images, count)
    assert [image_id for image_id, _, _ in found] == ids
    for image_id, image, caption in found:
        assert caption.startswith(f"image {image_id} · F1 ")
        assert _has(image, GREEN)
        assert _has(image, RED) == bool(next(p for p in run.predictions if p.sample_id == image_id).kept)


@pytest.mark.parametrize(("any_unmarked", "error"), [(0, "20.0"), (1, "0.0")])
def test_a_counted_picture_is_measured_as_the_evaluation_was(any_unmarked: int, error: str) -> None:
    points = np.array([[100.0, 100.0], [120.0, 100.0]])
    truth = PointTruth.of(ids=[1], categories=["red dot"], source_image=[1], image_wh=np.array([[384.0, 384.0]]), points=[points])
    asked = Asked(0, 2, (100.0, 100.0), points, (120.0, 100.0), 0.1)
    evaluation = Evaluation({}, {"measured_to_any_unmarked": any_unmarked})
    images: Any = SimpleNamespace(load=lambda _: Image.new("RGB", (384, 384)))
    (_, _, caption), = draw(evaluation, truth, [Prediction(1, (384, 384), (), asked=(asked,))], images, 1)
    assert f"error {error} px of 384" in caption


def test_no_prediction_is_no_picture() -> None:
    run = make_run()
    assert run.evaluation is not None
    assert run.truth is not None
    assert draw(run.evaluation, run.truth, [], SimpleNamespace(load=None), 4) == []  # type: ignore[arg-type]


def _has(image: Image.Image, colour: tuple[int, int, int]) -> bool:
    return bool((np.asarray(image.convert("RGB")) == np.array(colour)).all(-1).any())
