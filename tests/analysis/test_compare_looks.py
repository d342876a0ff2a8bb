"""Runs of clips are compared by acc, and the page says whether looking pays."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coordvlm.analysis.answers import condense, read_lines, truth_of
from coordvlm.analysis.compare import Question, compare
from coordvlm.analysis.groups import require_one_protocol
from coordvlm.analysis.rescore import rescore
from coordvlm.analysis.runs import Run, read_runs
from coordvlm.callbacks.evaluation_writer import readout_table, write_evaluation
from coordvlm.contracts.clip import ClipTruth
from coordvlm.metrics.protocol import protocol_hash
from coordvlm.reports.compare_files import write_comparison_files
from coordvlm.reports.compare_page import write_comparison
from coordvlm.utils.errors import ConfigError, DataError
from tests.analysis.factory import edit, write_run
from tests.analysis.looks import NEAR, SEEING, answers, evaluate
from tests.metrics.clip_cases import clips
from tests.reports.html_check import read

QUESTION = Question(
    metric=None, metrics=["AP", "acc_50", "acc", "acc_fine", "parse_rate", "px_median"], verdict_metrics=["px_median", "parse_rate"],
    baseline=None, ignore=(), coverage=0.95, power=0.8, level_shares=[0.5], num_snapshots=2, num_pictures=2,
)
TRUTH = clips(*["word"] * 60, kinds=["qa"] * 60, source=[i // 2 for i in range(60)], size=(70, 70))
WEIGHTS = {"both": (1.0, 1.0), "fine": (0.0, 1.0), "coarse": (1.0, 0.0)}


def write(folder: Path, name: str, seed: int) -> Path:
    """The folder of a finished run whose evaluation is of clips."""
    coarse, fine = WEIGHTS[name]
    write_run(
        folder, "data=grid_symbols", f"module.coarse_weight={coarse}", f"module.fine_weight={fine}", seed=seed, images=4, replicates=2,
        choices={"data": "grid_symbols"},
    )
    predictions = answers(TRUTH, SEEING, seed=seed)
    found = evaluate(TRUTH, predictions, coarse=coarse, fine=fine)
    values = {"data": TRUTH.digest(), "split": "test", "image_limits": {}, "backend": "none", "grammar": False, "readout": "local",
              "max_new_tokens": 1, "score": "one"}
    write_evaluation(
        folder, found, predictions, TRUTH, split="test", protocol={**values, "hash": protocol_hash(values)}, selected_on="val", timing={},
        readouts=readout_table({"local": found}), seed=0, prompt=lambda _: "Which?", sha1=lambda _: None,
    )
    edit(folder, "run.json", protocol=protocol_hash(values))
    (folder / "log.csv").write_text((folder / "log.csv").read_text().replace("val/AP", "val/acc"))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    root = tmp_path_factory.mktemp("looks")
    found, rest = read_runs([write(root / f"{name}_{seed}", name, seed) for name in WEIGHTS for seed in range(2)])
    assert not rest
    return found


def lines(run: Run) -> list[dict[str, object]]:
    return read_lines(run.predictions_file)


def test_the_page_tells_arms_ratios_and_verdicts(runs: Sequence[Run], tmp_path: Path) -> None:
    require_one_protocol(runs)  # they differ in settings of the module
    found = compare(runs, [], QUESTION, lines)
    assert (found.metric, found.curve, found.num_images, found.counting) == ("acc", "val/acc", 30, False)
    assert found.metrics == ["acc", "acc_fine"]  # words have no pixels, clips no parser
    assert not any("Not measured in all runs" in note for note in found.notes)
    assert found.foveation is not None
    assert [v.outcome for v in found.foveation.verdicts] == ["used", "used"], [v.words for v in found.foveation.verdicts]
    assert all(v.coarse for v in found.foveation.verdicts)
    page = write_comparison(tmp_path / "compare.html", found)
    html = page.read_text()
    text = " ".join(" ".join(read(page).text).split())
    for part in ("Does looking pay?", "the plan is used", "coarse by itself", "ratio_matched", "unmatched, not evidence", "test clips"):
        assert part in text, part
    for part in ("corner error", "IoU", "Parser"):
        assert part not in text, part
    assert "<s>ratio_unmatched</s>" in html
    assert "<s>ratio_matched</s>" not in html
    names = [path.name for path in write_comparison_files(tmp_path, found)]
    assert "foveation.json" in names
    data = json.loads((tmp_path / "foveation.json").read_text())
    assert [v["outcome"] for v in data["verdicts"]] == ["used", "used"]
    markdown = (tmp_path / "compare.md").read_text()
    assert "Does looking pay?" in markdown
    assert "unmatched" not in markdown


def test_one_recipe_is_enough_for_its_arms(runs: Sequence[Run], tmp_path: Path) -> None:
    both = [run for run in runs if run.config["module.coarse_weight"] == run.config["module.fine_weight"]]
    found = compare(both, [], QUESTION, lines)
    assert found.pairs == []
    assert found.foveation is not None
    (verdict,) = found.foveation.verdicts
    assert verdict.words.startswith("qa: fine 0.")
    text = " ".join(read(write_comparison(tmp_path / "compare.html", found)).text)
    assert "One recipe: there is no other to compare it with." in text
    write_comparison_files(tmp_path, found)
    assert "Differences in" not in (tmp_path / "compare.md").read_text()


@pytest.mark.parametrize("field", ["metric", "metrics", "verdict_metrics"])
def test_nothing_is_decided_by_what_is_no_evidence(field: str) -> None:
    value = "ratio_unmatched" if field == "metric" else ["acc", "ratio_unmatched.qa"]
    with pytest.raises(ConfigError, match=r"ratio_unmatched.* is no evidence"):
        replace(QUESTION, **{field: value})


def test_truth_and_scores_come_back_from_the_lines(runs: Sequence[Run]) -> None:
    stored = lines(runs[0])
    again = truth_of(stored)
    assert isinstance(again, ClipTruth)
    assert again.digest() == TRUTH.digest()
    assert condense(stored, where="here").score.mean() == pytest.approx(runs[0].values["acc_fine"])
    assert condense(stored, where="here", arm="coarse").score.mean() == pytest.approx(runs[0].values["acc_coarse"])


def test_points_have_errors_on_the_common_side() -> None:
    from coordvlm.metrics.records import TruthIndex, clip_fields, prediction_to_line

    truth = clips(*[(96.0, 48.0)] * 20, size=(192, 96))
    said = answers(truth, NEAR, seed=1)
    stored = [prediction_to_line(p, TruthIndex(truth)) | clip_fields(truth)[int(p.sample_id)] for p in said]
    found = condense(stored, where="here")
    off = [2 * (next(a for a in p.arms if a.arm == "fine").point_px[0] - 96) for p in said]  # type: ignore[index]
    assert found.px_error == pytest.approx(off)
    assert found.score == pytest.approx(np.mean([np.asarray(off) <= 5, np.asarray(off) <= 20], axis=0))
    back = truth_of(stored)
    assert isinstance(back, ClipTruth)
    assert back.point_of(7) == (96.0, 48.0)


def test_damaged_lines_and_other_read_outs_are_refused(runs: Sequence[Run]) -> None:
    stored = [{**line, "arms": [{"arm": "fine"}]} for line in lines(runs[0])]
    with pytest.raises(DataError, match=r"here\.jsonl.*must hold arms"):
        condense(stored, where="here.jsonl")
    with pytest.raises(ConfigError, match="clips are stored by one read-out only"):
        rescore(runs[0], lines(runs[0]), TRUTH, "local", num_replicates=10, seed=0)
    other = replace(runs[0], protocol={**runs[0].protocol, "max_new_tokens": 3})
    with pytest.raises(ConfigError, match="max_new_tokens=3"):
        require_one_protocol([other, *runs[1:]])
