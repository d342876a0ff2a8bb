from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from coordvlm.analysis.answers import condense, read_lines
from coordvlm.analysis.rescore import reread, rescore
from coordvlm.analysis.runs import Run, read_run
from coordvlm.contracts import Prediction, Record, SlotReadout
from coordvlm.utils.errors import ConfigError, DataError
from tests.analysis.factory import truth

SETTINGS = {"backend": "faster", "num_replicates": 100, "seed": 0}


def slots(*expectation: float) -> tuple[SlotReadout, ...]:
    return tuple(SlotReadout(0, a, e, 0.5) for a, e in zip((0.1, 0.2, 0.3, 0.4), expectation, strict=True))


def test_boxes_are_read_again_and_records_keep_or_lose_their_area() -> None:
    kept = Record("cat", (10.0, 10.0, 30.0, 20.0), 0.5, "repaired", slots=slots(0.1, 0.1, 0.2, 0.2))
    thin = Record("cat", (0.0, 0.0, 0.0, 0.0), 0.5, "degenerate", slots=slots(0.3, 0.1, 0.2, 0.2))
    broken = Record("cat", None, 0.5, "bad_arity")
    prediction = Prediction(1, (100, 50), (kept, thin, broken))
    by_mean = reread(prediction, "expectation").records
    assert by_mean[0].box_xyxy_px == pytest.approx((10, 5, 20, 10))
    assert [r.status for r in by_mean] == ["repaired", "degenerate", "bad_arity"]
    assert [r.status for r in reread(prediction, "argmax").records] == ["repaired", "ok", "bad_arity"]
    assert [r.status for r in reread(prediction, "local").records] == ["degenerate", "degenerate", "bad_arity"]


def test_a_box_in_digits_has_one_reading() -> None:
    with pytest.raises(DataError, match="readout=argmax needs the read-outs of four coordinate tokens"):
        reread(Prediction(1, (9, 9), (Record("cat", (1.0, 1.0, 2.0, 2.0), 0.5, "ok"),)), "argmax")


@pytest.fixture(scope="module")
def run(sweep: Path) -> Run:
    found = read_run(sweep / "hybrid_0")
    assert found is not None
    return found


def test_the_same_readout_gives_the_same_numbers(run: Run) -> None:
    lines = read_lines(run.predictions_file)
    again, written = rescore(run, lines, truth(40), "local", **SETTINGS)  # type: ignore[arg-type]
    for name in ("AP", "px_median", "F1_50", "duplicate_rate"):
        assert again.values[name] == pytest.approx(run.values[name])
    assert again.replicates["AP"] == pytest.approx(run.replicates["AP"])
    assert condense(written, where="").px_error == pytest.approx(condense(lines, where="").px_error)


def test_another_readout_is_measured_on_its_own_boxes(run: Run) -> None:
    again, lines = rescore(run, read_lines(run.predictions_file), truth(40), "argmax", **SETTINGS)  # type: ignore[arg-type]
    assert again.protocol["readout"] == "argmax"
    assert again.values["px_mean"] != run.values["px_mean"]
    assert abs(again.values["px_mean"] - run.values["px_mean"]) < 0.1  # half a bin of 96 px
    record = next(r for line in lines for r in line["records"] if r["status"] == "ok")
    assert record["box"][0] == pytest.approx(record["slots"][0]["argmax"] * 96)


def test_changed_data_and_unknown_readouts_are_refused(run: Run) -> None:
    with pytest.raises(ConfigError, match="has changed"):
        rescore(run, [], truth(30), "argmax", **SETTINGS)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="readout must be one of"):
        rescore(replace(run), [], truth(40), "mean", **SETTINGS)  # type: ignore[arg-type]
