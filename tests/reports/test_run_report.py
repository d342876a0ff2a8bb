"""The run page: whole, self-contained, escaped, and honest about what is missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coordvlm.contracts import Evaluation, Interval, Prediction, Record
from coordvlm.reports.run_report import RunSummary, write_run_report
from coordvlm.reports.sections_run import course
from coordvlm.utils.files import OutputError
from tests.reports.conftest import make_truth
from tests.reports.html_check import Checker, read

SECTIONS = (
    "metrics", "pictures", "pixels", "overlap", "agreement", "classes", "readouts", "drops", "training", "contract", "data",
    "timing", "record",
)


@pytest.fixture(scope="module")
def page(run: RunSummary, tmp_path_factory: pytest.TempPathFactory) -> Checker:
    return read(write_run_report(tmp_path_factory.mktemp("page") / "report.html", run))


def words(page: Checker) -> str:
    return " ".join(" ".join(page.text).split())


def section_ids(page: Checker) -> list[str]:
    return [a["id"] or "" for tag, a in page.tags if tag == "section"]


def plots(page: Checker) -> list[str]:
    return [a["aria-label"] or "" for tag, a in page.tags if tag == "svg"]


def test_every_section_is_on_the_page(page: Checker) -> None:
    assert sorted(section_ids(page)) == sorted(SECTIONS)


def test_every_figure_is_drawn(page: Checker) -> None:
    expected = {
        "Histogram of the corner error", "Histograms of the signed error in x and y", "Histogram of the best IoU of each true box",
        "Precision over recall", "total_loss over steps", "coord_loss over steps", "l1 over steps", "AP over steps", "lr over steps",
        "coord_probe/entropy over steps", *(f"Predicted against true {axis}" for axis in ("x1", "y1", "x2", "y2")),
    }
    assert expected <= set(plots(page))


def test_all_twelve_images_are_shown_once(page: Checker, run: RunSummary) -> None:
    shown = [a["alt"] for tag, a in page.tags if tag == "img"]
    assert len(run.predictions) == 12
    assert sorted(shown) == sorted(f"image {i} with boxes" for i in range(1, 13))


def test_headline_and_numbers_are_told(page: Checker, run: RunSummary) -> None:
    text = words(page)
    assert run.contract is not None
    assert run.evaluation is not None
    for part in (
        "shapes_hybrid", "finished", "0123456789ab", "with uncommitted changes", run.contract.hash(), "beefcafe0123",
        "val (200 images)",
        f"{run.evaluation.metrics['AP'].value:.4f}", "0.5500 – 0.9500", "7 min 01 s",
        "1.12 GiB", "5.17.0", "python -m coordvlm.train loss=hybrid",
        "bad_arity", "truncated", "unknown_desc", "degenerate",
    ):
        assert part in text, part


def test_undefined_metric_is_a_dash_with_its_name(page: Checker) -> None:
    assert "AP_small ↑ – –" in words(page)


def test_text_from_data_is_escaped(run: RunSummary, tmp_path: Path) -> None:
    nasty = '<img src=x onerror="alert(1)"> \ud800 $\\frac{ </style><script>'
    info = {**run.run_info, "status": "failed", "error": {"type": "E", "message": nasty, "traceback": nasty}, nasty: nasty}
    bad = replace(
        run, run_info=info, curves={f"train_{nasty}": ([1, 2], [1.0, 2.0])}, readouts={nasty: {"AP": 0.1}}, split=nasty, protocol=nasty,
        predictions=[Prediction(1, (96, 96), (Record(nasty, (1, 2, 50, 60), 0.5, "ok"), Record(nasty, None, 0.1, nasty)))],
    )
    page = read(write_run_report(tmp_path / "report.html", bad))
    assert words(page).count('<img src=x onerror="alert(1)"> \\ud800') >= 6
    assert len([1 for tag, _ in page.tags if tag == "img"]) == 1


def test_hidden_and_reordering_characters_are_spelt_out(page: Checker) -> None:
    text = "".join(page.text)
    assert "evil \\u202e\\u0000 &" in text
    assert "\u202e" not in text


@pytest.mark.parametrize(
    ("status", "says"),
    [("interrupted", "This run was interrupted"), ("failed", "This run failed"), ("dead", "This run died"), ("running", "had not finished"),
     ("odd", "not known (status: odd)"), (None, "not known (status: unknown)")],
)
def test_a_run_that_did_not_finish_says_so_before_anything_else(status: str | None, says: str, tmp_path: Path) -> None:
    info = {"status": status, "error": {"type": "KeyboardInterrupt", "message": "at step 312", "traceback": "File x"}}
    page = read(write_run_report(tmp_path / "report.html", RunSummary(run_info=info)))
    text = words(page)
    assert says in text
    assert "KeyboardInterrupt: at step 312" in text
    order = [tag for tag, a in page.tags if tag == "h1" or a.get("role") == "alert"]
    assert order == ["div", "h1"]


def test_a_finished_run_has_no_alert(page: Checker) -> None:
    assert not [a for _, a in page.tags if a.get("role") == "alert"]


def test_choosing_on_the_reported_split_is_called_optimistic(run: RunSummary, tmp_path: Path) -> None:
    page = read(write_run_report(tmp_path / "report.html", replace(run, split="val", selected_on="val", load_image=None, curves={})))
    assert "chosen on this very split" in words(page)


def test_nothing_at_all_gives_a_page_that_names_what_is_missing(tmp_path: Path) -> None:
    page = read(write_run_report(tmp_path / "report.html", RunSummary()))
    assert sorted(section_ids(page)) == sorted(SECTIONS)
    text = words(page)
    for part in ("There is no evaluation", "No predictions", "no log of losses", "No contract", "Hashes of the data were not recorded",
                 "Versions were not recorded", "No per-class numbers", "The command is not recorded"):
        assert part in text, part
    assert not plots(page)


def test_an_evaluation_of_nothing_is_shown(run: RunSummary, tmp_path: Path) -> None:
    nan = float("nan")
    evaluation = Evaluation(
        {"AP": Interval(nan), "px_median": Interval(nan)}, {"images": 0}, per_class={"a": {"AP": nan}}, best_iou=np.empty(0),
        px_error=np.empty(0), px_error_xy=np.empty((0, 2)), pr_curve={"0.5": np.full((101, 2), nan)},
    )
    empty = make_truth(0, np.empty((0, 4)), [], [])
    summary = replace(run, evaluation=evaluation, truth=empty, predictions=(), curves={"train_l1": ([1], [nan])}, readouts={})
    page = read(write_run_report(tmp_path / "report.html", summary))
    text = words(page)
    assert "undefined on this data" in text
    assert "Not measured: AP50, AP_score1, F1_50, parse_rate." in text
    assert "not one finite value" in text
    assert not plots(page)


def test_pixel_ranges_are_counted_with_their_upper_edge(run: RunSummary, tmp_path: Path) -> None:
    xy = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, -2.1], [5.0, 0.0], [0.0, 10.0], [30.0, 40.0]])
    assert run.evaluation is not None
    evaluation = replace(run.evaluation, px_error=np.hypot(*xy.T), px_error_xy=xy)
    page = read(write_run_report(tmp_path / "report.html", replace(run, evaluation=evaluation, load_image=None, curves={})))
    text = words(page)
    assert "0 – 2 2 33.3% 66.7% 50.0%" in text
    assert "2 – 5 2 33.3% 16.7% 16.7%" in text
    assert "5 – 10 1 16.7% 0.0% 16.7%" in text
    assert "> 10 1 16.7% 16.7% 16.7%" in text
    assert "minimum 90% ≤ 8 px, mean < 6 px 66.7%, mean 11.52 px missed" in text


def test_images_that_cannot_be_read_leave_their_captions(run: RunSummary, tmp_path: Path) -> None:
    def broken(image_id: int) -> object:
        raise OSError(f"image {image_id} is <truncated>")

    page = read(write_run_report(tmp_path / "report.html", replace(run, load_image=broken, curves={})))  # type: ignore[arg-type]
    assert "The image could not be read: OSError: image 1 is <truncated>" in words(page)
    assert not [1 for tag, _ in page.tags if tag == "img"]


def test_many_classes_are_sorted_and_folded(run: RunSummary, tmp_path: Path) -> None:
    assert run.evaluation is not None
    per_class = {f"class{i}": {"AP": i / 100, "AP50": 0.5, "num_true": 3.0} for i in range(45)} | {"never": {"AP": float("nan")}}
    summary = replace(run, evaluation=replace(run.evaluation, per_class=per_class), load_image=None, curves={})
    text = words(read(write_run_report(tmp_path / "report.html", summary)))
    places = [text.index(part) for part in ("class44 0.4400", "class15 0.1500", "16 more", "class14 0.1400", "never –")]
    assert places == sorted(places)


def test_a_page_that_cannot_be_written_is_a_clear_error(run: RunSummary, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        write_run_report(tmp_path / "file" / "report.html", RunSummary())


def test_pixel_errors_are_shown_with_the_floor_that_the_contract_imposes(run: RunSummary, tmp_path: Path) -> None:
    text = words(read(write_run_report(tmp_path / "report.html", replace(run, load_image=None, curves={}))))
    assert "Shaded: floor of the coordinates" in text
    assert "half a merged patch, 8.0 px" in text
    text = words(read(write_run_report(tmp_path / "bare.html", replace(run, load_image=None, curves={}, contract=None))))
    assert "Shaded: floor" not in text


def test_a_loss_that_the_recipe_does_not_have_is_named_instead_of_drawn(run: RunSummary) -> None:
    curves = {"train_total_loss": ([1, 2], [1.0, 0.5]), "train_text_loss": ([1, 2], [0.0, 0.0]), "val_text_loss": ([2], [0.0]),
              "train_coord_loss": ([1, 2], [0.0, 0.5])}  # fmt: skip
    text = str(course(replace(run, curves=curves)))
    assert "0 throughout, so not drawn: text_loss." in text
    assert [f"{name} over steps" in text for name in ("total_loss", "coord_loss", "text_loss")] == [
        True, True, False,
    ]  # fmt: skip
