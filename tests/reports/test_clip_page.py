"""The page of a run on clips: its own sections and none of a detection's, the ratio under its right name, pictures inside."""

from __future__ import annotations

import base64
import html
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coordvlm.contracts import ArmAnswer, ClipTruth, Prediction
from coordvlm.metrics.foveation import FoveationMetric
from coordvlm.metrics.looking import FoveationFindings, SeenClip, summarise
from coordvlm.reports.foveation_names import are_of_clips
from coordvlm.reports.run_report import write_run_report
from coordvlm.reports.sections_foveation import MATCHED_WHY, UNMATCHED_WHY
from coordvlm.reports.sections_looks import choose_answers, point_errors
from coordvlm.reports.summary import RunSummary
from tests.reports.conftest import make_contract
from tests.reports.html_check import read

SECTIONS = {"metrics", "arms", "looks", "sheet", "frames", "samples", "training", "contract", "data", "timing", "record"}
CONTRACT = replace(make_contract(), format="clip", prompt="{question}", order="none", markers=("<coarse>", "<fine>"))
GRID = (3, 3)
CLIPS, FRAMES = 6, 2


def clip_truth(points: bool = False) -> ClipTruth:
    return ClipTruth.of(
        ids=range(CLIPS), questions=[f"Which symbol is in cell A{i}?" for i in range(CLIPS)], kinds=["ball" if points else "qa"] * CLIPS,
        answers=["" if points else "circle"] * CLIPS, source_clip=range(CLIPS), sizes=[(42, 42)] * CLIPS,
        points=[(21.0, 10.0 + i) if points else None for i in range(CLIPS)],
    )


def answers(points: bool = False, *, arms: tuple[str, ...] = ("coarse", "fine", "swap", "random")) -> list[Prediction]:
    """fine is right (or 1 px off), all others are right for clip 0 alone (or 10 px off; random gives no point)."""
    out = []
    for i in range(CLIPS):
        mine = []
        for arm in arms:
            good = arm == "fine" or i == 0
            point = None if not points or arm == "random" else (21.0 + (1 if arm == "fine" else 10), 10.0 + i)
            text = "" if points else "circle" if good else "bar <b>"
            mine.append(ArmAnswer(arm, text, point, 0.1 if good else 2.0, 2, 2 if good else 1))
        out.append(Prediction(i, (42, 42), (), arms=tuple(mine)))
    return out


def findings() -> FoveationFindings:
    rng = np.random.default_rng(0)
    maps = rng.dirichlet(np.full(9, 0.3), (2, CLIPS * FRAMES, 4))
    place = np.full((CLIPS * FRAMES, 2), 0.5)
    queries = dict.fromkeys(("std", "rms", "cos_frames", "cos_clips", "cos_static", "opposite", "orthogonal"), 0.25)
    arms = {
        name: summarise(name, maps, place, GRID, queries=queries, frame_loss=np.asarray([1.5, 0.5]), frame_latent=np.asarray([0.4, 0.3]))
        for name in ("coarse", "fine")
    }
    frames = rng.integers(0, 255, (FRAMES, 42, 42, 3), dtype=np.uint8)
    drawn = {name: maps[0, :FRAMES, 0].reshape(FRAMES, *GRID).astype(np.float32) for name in ("coarse", "fine")}
    seen = SeenClip(0, frames, drawn, np.full((FRAMES, 2), 0.5, dtype=np.float32))
    return FoveationFindings(CLIPS, GRID, arms, 0.9, (seen,))


def summary(*, points: bool = False, coarse_weight: float = 1.0, fine_weight: float = 1.0) -> RunSummary:
    truth, predictions = clip_truth(points), answers(points)
    metric = FoveationMetric(num_replicates=20, seed=0, coarse_weight=coarse_weight, fine_weight=fine_weight, truth=truth)
    metric.update(predictions)
    return RunSummary(
        run_info={"status": "finished"}, evaluation=metric.compute(), truth=truth, predictions=predictions, split="test", readout="local",
        contract=CONTRACT,
        readouts={"local": {"px384_median": 9.1}, "argmax": {"px384_median": 9.2}}, foveation=findings(),
    )


def words(markup: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", markup))


def test_the_page_has_the_sections_of_clips_and_none_of_a_detection(tmp_path: Path) -> None:
    page = read(write_run_report(tmp_path / "r.html", summary()))
    ids = {a["id"] for name, a in page.tags if name == "section"}
    assert ids == SECTIONS
    said = " ".join(page.text)
    for other in ("Parser", "Overlap", "corners", "Classes", "boxes", "Boxes", "images"):
        assert other not in said, other


def test_a_matched_ratio_is_a_finding_and_an_unmatched_one_is_struck_out_with_the_reason(tmp_path: Path) -> None:
    matched = write_run_report(tmp_path / "m.html", summary()).read_text()
    assert MATCHED_WHY in words(matched)
    assert "ratio_unmatched" not in matched
    assert "<s>" not in matched
    unmatched = write_run_report(tmp_path / "u.html", summary(coarse_weight=0.0)).read_text()
    assert UNMATCHED_WHY in words(unmatched)
    assert "ratio_matched" not in unmatched
    struck = re.findall(r"<s>(.*?)</s>", unmatched)
    assert any("ratio_unmatched" in s for s in struck)
    assert "ratio_unmatched" not in re.sub(r"<s>.*?</s>", "", unmatched), "it stands somewhere without being struck out"


def test_arms_stand_side_by_side_with_their_controls(tmp_path: Path) -> None:
    text = write_run_report(tmp_path / "r.html", summary()).read_text()
    table = text[text.index('id="arms"') : text.index('id="looks"')]
    raw = re.findall(r"<tr>.*?</tr>", table)[1:]
    rows = [words(row) for row in raw]
    assert [re.match("coarse|fine|swap|random", r)[0] for r in rows] == ["coarse", "fine", "swap", "random"]  # type: ignore[index]
    assert [">control<" in r for r in raw] == [False, False, True, True]
    assert "1.0000" in rows[1]
    assert "0.1667" in rows[0]


def test_clips_answered_by_points_have_read_outs_and_a_curve(tmp_path: Path) -> None:
    run = summary(points=True)
    text = write_run_report(tmp_path / "r.html", run).read_text()
    assert "How near points come" in text
    assert 'id="readouts"' in text
    assert "no point" in text  # random gives none
    assert isinstance(run.truth, ClipTruth)
    assert point_errors(run.truth, run.predictions, "fine") == pytest.approx([384 / 42] * CLIPS)
    assert np.isnan(point_errors(run.truth, run.predictions, "random")).all()
    assert not len(point_errors(run.truth, run.predictions, "auto"))


def test_points_of_which_no_token_is_trained_keep_their_arms_and_have_no_ratio(tmp_path: Path) -> None:
    run = summary(points=True)
    untold = [replace(p, arms=tuple(replace(a, nll=0.0, num_tokens=0, num_correct=0) for a in p.arms)) for p in run.predictions]
    metric = FoveationMetric(num_replicates=20, seed=0, coarse_weight=1.0, fine_weight=1.0, truth=run.truth)
    metric.update(untold)
    evaluation = metric.compute()
    assert are_of_clips(evaluation.metrics)
    text = write_run_report(tmp_path / "r.html", replace(run, evaluation=evaluation, predictions=untold)).read_text()
    table = words(text[text.index('id="arms"') : text.index('id="looks"')])
    assert "No way of looking was evaluated" not in table
    assert "median error, px of 384" in table
    assert "nats per token" not in table
    assert "points are read by heads alone" in table
    assert "ratio_matched" not in words(text)


def test_pictures_are_inside_the_page_with_the_answers_below(tmp_path: Path) -> None:
    text = write_run_report(tmp_path / "r.html", summary()).read_text()
    moving = re.search(r"data:image/gif;base64,([^\"]+)", text)
    assert moving is not None
    with Image.open(io.BytesIO(base64.b64decode(moving[1]))) as gif:
        assert gif.n_frames == FRAMES
    caption = words(text[text.index("<figcaption>") : text.index("</figcaption>")])
    assert "Which symbol is in cell A0?" in caption
    assert "true: circle" in caption
    assert "bar <b>" in words(text)  # escaped, not markup


def test_what_was_not_looked_into_is_named(tmp_path: Path) -> None:
    text = words(write_run_report(tmp_path / "r.html", replace(summary(), foveation=None, predictions=())).read_text())
    assert text.count("decode.diagnosed") == 3
    assert "No answers were handed over." in text
    nothing = write_run_report(tmp_path / "n.html", replace(summary(), evaluation=None)).read_text()
    assert "No way of looking was evaluated." in nothing


def test_answers_where_the_passes_differ_come_first_but_not_alone() -> None:
    predictions = answers()
    shown = choose_answers(predictions[::-1], most=4)
    assert [p.sample_id for p in shown] == [0, 1, 2, 3]  # 1 and 2 differ, 0 and 3 fill up
    assert len(choose_answers(predictions, most=100)) == CLIPS
