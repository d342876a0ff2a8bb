"""Runs over phrases are compared by Acc@0.5, over source images; their base is told in the same words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coordvlm.analysis.answers import read_lines, scenes_of, truth_of
from coordvlm.analysis.base import open_base
from coordvlm.analysis.compare import Question, compare
from coordvlm.analysis.rescore import rescore
from coordvlm.analysis.runs import Run, read_run, read_runs
from coordvlm.callbacks.evaluation_writer import readout_table, write_evaluation
from coordvlm.contracts import Prediction, Record, SlotReadout
from coordvlm.contracts.sample import TARGET, PhraseTruth
from coordvlm.metrics.grounding import GroundingMetric
from coordvlm.metrics.protocol import protocol_hash
from coordvlm.reports.compare_page import write_comparison
from coordvlm.reports.compare_words import verdict
from coordvlm.utils.errors import ConfigError
from tests.analysis.factory import edit, write_run

SIDE = 96.0
QUESTION = Question(
    metric=None, metrics=["AP", "acc_75", "iou_mean_all", "px_median", "duplicate_rate", "no_such"], verdict_metrics=["detection_rate"],
    baseline=None, ignore=(), coverage=0.95, power=0.8, level_shares=[0.5], num_snapshots=2, num_pictures=3,
)
ACCURATE, POOR = {"loss=hybrid": 0.9, "loss=ce": 0.4}.items()


def truth(num: int = 80) -> PhraseTruth:
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 40, (num, 2))
    boxes = np.concatenate((corner, corner + rng.uniform(20, 50, (num, 2))), 1)
    return PhraseTruth.of(
        ids=range(num), phrases=[f"thing {i}" for i in range(num)], source_image=[i // 2 for i in range(num)],
        image_wh=np.full((num, 2), SIDE), boxes=[None if i % 10 == 9 else b for i, b in enumerate(boxes.tolist())],
    )


def answers(known: PhraseTruth, right: float, seed: int) -> list[Prediction]:
    """Boxes that are exact for a share ``right`` of the phrases and in a corner for the rest; every negative is rejected."""
    rng = np.random.default_rng(seed)
    true = dict(zip(known.ann_image_id.tolist(), known.ann_xyxy_px.tolist(), strict=True))
    out = []
    for i in known.image_ids.tolist():
        if i not in true:
            out.append(Prediction(i, (96, 96), (), "none", flags=frozenset({"says_none"})))
            continue
        box = true[i] if rng.random() < right else [0.0, 0.0, 8.0, 8.0]
        slots = tuple(SlotReadout(0, 0.01 * n, v / SIDE, v / SIDE) for n, v in enumerate(box))
        out.append(Prediction(i, (96, 96), (Record(TARGET, tuple(box), 0.5, "ok", slots=slots),), "text"))
    return out


def write(folder: Path, recipe: str, right: float, seed: int) -> Path:
    """The folder of a finished run whose evaluation is over phrases."""
    write_run(folder, recipe, seed=seed, images=4, replicates=2)
    known = truth()
    predictions = answers(known, right, seed=seed)
    metric = GroundingMetric(num_replicates=100, seed=0, truth=known)
    metric.update(predictions)
    found = metric.compute()
    values = {"data": known.digest(), "split": "test", "image_limits": {}, "backend": "none", "grammar": False, "readout": "local",
              "max_new_tokens": 9, "score": "geom"}
    write_evaluation(
        folder, found, predictions, known, split="test", protocol={**values, "hash": protocol_hash(values)}, selected_on="val", timing={},
        readouts=readout_table({"local": found}), seed=0, prompt=lambda _: "Locate: thing", sha1=lambda _: None,
    )
    edit(folder, "run.json", protocol=protocol_hash(values))
    log = (folder / "log.csv").read_text().replace("val/AP", "val/acc_50")
    (folder / "log.csv").write_text(log)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    root = tmp_path_factory.mktemp("phrases")
    folders = [write(root / f"{recipe[5:]}_{seed}", recipe, right, seed) for recipe, right in (ACCURATE, POOR) for seed in range(3)]
    found, rest = read_runs(folders)
    assert not rest
    return found


def lines(run: Run) -> list[dict[str, object]]:
    return read_lines(run.predictions_file)


def test_acc_50_decides(runs: Sequence[Run], tmp_path: Path) -> None:
    found = compare(runs, [], QUESTION, lines)
    assert (found.metric, found.curve) == ("acc_50", "val/acc_50")
    assert found.metrics == ["acc_50", "acc_75", "iou_mean_all", "px_median", "detection_rate"]  # AP and duplicates are another task's
    assert not any("AP" in note or "duplicate" in note for note in found.notes)
    assert any("no_such" in note for note in found.notes)
    assert found.num_images == 40  # source images, which the replicates draw, not 80 phrases
    pair = found.of("acc_50")[0]
    assert (pair.first, pair.second) == ("hybrid", "ce")
    assert pair.value == pytest.approx(0.5, abs=0.1)
    words = verdict(found, pair)
    assert words.startswith("hybrid beats ce by ")
    assert "acc_50" in words
    assert found.groups[0].statuses["images"] == 3 * 80
    found = replace(found, load_image=lambda _: Image.new("RGB", (96, 96)))
    page = write_comparison(tmp_path / "compare.html", found).read_text()
    assert "“thing" in page  # pictures say what was asked


def test_a_metric_of_the_other_task_is_refused(runs: Sequence[Run]) -> None:
    with pytest.raises(ConfigError, match=r"metric=AP: .* has no such metric"):
        compare(runs, [], replace(QUESTION, metric="AP"), lines)


def test_the_truth_comes_back_from_the_predictions(runs: Sequence[Run]) -> None:
    stored = lines(runs[0])
    again = truth_of(stored)
    assert isinstance(again, PhraseTruth)
    assert again.digest() == truth().digest()
    assert scenes_of(stored[:3])[0].phrase == "thing 0"


def test_another_readout_is_scored_by_the_same_rules(runs: Sequence[Run]) -> None:
    stored = lines(runs[0])
    same, written = rescore(runs[0], stored, truth(), "local", num_replicates=100, seed=0)
    assert same.values["acc_50"] == runs[0].values["acc_50"]
    assert [line["iou"] for line in written] == pytest.approx([line["iou"] for line in stored], nan_ok=True)
    other, _ = rescore(runs[0], stored, truth(), "argmax", num_replicates=100, seed=0)
    assert other.values["acc_50"] == 0.0


def test_the_base_is_told_in_points_of_accuracy(runs: Sequence[Run]) -> None:
    good, bad = runs[0], runs[-1]
    base = open_base(str(bad.folder))
    assert base is not None
    metric = GroundingMetric(num_replicates=100, seed=0, truth=truth())
    metric.update(answers(truth(), ACCURATE[1], seed=good.seed))
    found = base.compare(metric.compute(), good.folder)
    assert found.sentence.startswith("Tuned beats base by ")
    assert "points of Acc@0.5 [" in found.sentence
    assert found.verdict == "good"
    assert found.num_images == 40
    assert read_run(good.folder) is not None
