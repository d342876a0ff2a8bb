from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.commands import Ran, evaluate, refusal


def comparable(metrics: dict[str, Any]) -> dict[str, Any]:
    """metrics.json without what the clock says."""
    rest = {k: v for k, v in metrics.items() if k != "timing"}
    return {**rest, "metrics": {k: v for k, v in rest["metrics"].items() if "seconds" not in k}}


@pytest.fixture(scope="module")
def again(fast_outputs: Path, fast_run: Ran) -> Ran:
    return evaluate(fast_outputs, f"run={fast_run.run}")


def test_the_same_split_gives_the_same_numbers(fast_run: Ran, again: Ran) -> None:
    assert again.status == 0, again.err
    assert comparable(again.json("metrics.json")) == comparable(fast_run.json("metrics.json"))
    mine, theirs = ([json.loads(x) for x in (r.run / "predictions.jsonl").read_text().splitlines()] for r in (again, fast_run))
    assert [x["token_ids"] for x in mine] == [x["token_ids"] for x in theirs]
    assert (again.run / "bootstrap.npz").is_file()


def test_the_record_says_what_was_evaluated(fast_run: Ran, again: Ran) -> None:
    record = again.record
    assert (record["status"], record["command"]) == ("finished", "eval")
    assert record["evaluated"]["run"] == str(fast_run.run)
    assert Path(record["evaluated"]["checkpoint"]).name == "best"
    assert (record["protocol"], record["contract"]) == (fast_run.record["protocol"], fast_run.record["contract"])
    assert record["choices"]["loss"] == "ce_group"
    assert "finished" in (again.run / "report.html").read_text()
    assert again.out.strip().splitlines()[-1] == f"report: {again.run / 'report.html'}"


def test_latest_another_split_and_the_grammar(fast_outputs: Path, fast_run: Ran, tmp_path: Path) -> None:
    shutil.copytree(fast_run.run, tmp_path / "train" / fast_run.run.name)
    ran = evaluate(tmp_path, "run=latest", "split=val", "decode.grammar=true", "decode.max_new_tokens=30")
    assert ran.status == 0, ran.err
    assert Path(ran.record["evaluated"]["run"]) == tmp_path / "train" / fast_run.run.name
    found = ran.json("metrics.json")
    assert found["split"] == "val"
    assert found["protocol"] != fast_run.record["protocol"]
    assert found["metrics"]["parse_rate"]["value"] + found["metrics"]["truncation_rate"]["value"] >= 1.0  # well formed, or cut


def test_another_readout_is_another_protocol(fast_outputs: Path, fast_run: Ran) -> None:
    ran = evaluate(fast_outputs, f"run={fast_run.run / 'checkpoints' / 'last'}", "decode.readout=argmax")
    assert ran.status == 0, ran.err
    assert Path(ran.record["evaluated"]["checkpoint"]).name == "last"
    assert ran.record["protocol"] != fast_run.record["protocol"]
    assert ran.record["decode"]["readout"] == "argmax"


def test_a_typo_lists_the_runs(fast_run: Ran, tmp_path: Path) -> None:
    shutil.copytree(fast_run.run, tmp_path / "train" / "mine")
    message = refusal(evaluate(tmp_path, "run=main"))
    assert "run=main: no such folder" in message
    assert str(tmp_path / "train" / "mine") in message


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "no value for run"),
        (("split=train",), "split must be test or val, got 'train'"),
        (("decode.readout=mean",), "decode.readout must be one of argmax, expectation, local, got 'mean'"),
        (("sead=1",), "no such key sead"),
    ],
)
def test_what_cannot_be_meant_is_refused(fast_outputs: Path, fast_run: Ran, argv: tuple[str, ...], message: str) -> None:
    run = [f"run={fast_run.run}"] if argv else []
    assert message in refusal(evaluate(fast_outputs, *run, *argv))


@pytest.mark.parametrize(("key", "value"), [("scale", 1000), ("order", "size"), ("prompt", "Find it.")])
def test_an_edited_contract_is_refused(fast_run: Ran, tmp_path: Path, key: str, value: object) -> None:
    shutil.copytree(fast_run.run, tmp_path / "train" / "mine")
    file = tmp_path / "train" / "mine" / "checkpoints" / "best" / "contract.json"
    contract = json.loads(file.read_text())
    file.write_text(json.dumps({**contract, key: value}))
    message = refusal(evaluate(tmp_path, "run=latest"))
    assert f"{key}: the checkpoint has {value!r}, this run's config has {contract[key]!r}" in message


def test_a_run_without_its_config_is_refused(fast_run: Ran, tmp_path: Path) -> None:
    shutil.copytree(fast_run.run, tmp_path / "train" / "mine")
    (tmp_path / "train" / "mine" / "config.yaml").unlink()
    assert "has no config.yaml" in refusal(evaluate(tmp_path, "run=latest"))
