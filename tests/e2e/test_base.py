"""``eval run=null`` and ``base=``: an untouched model scored, and set beside a tuned one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from coordvlm import build
from tests.compose import compose
from tests.e2e.commands import FAST, Ran, evaluate, finished, refusal, train

BASE = ("run=null", "model=tiny")


@pytest.fixture(scope="module")
def base(fast_outputs: Path) -> Ran:
    """The untouched model in another format than the tuned run's."""
    ran = evaluate(fast_outputs, *BASE, *FAST, "sequence=json_digits", "coords=qwen1000")
    assert ran.status == 0, ran.err
    return ran


def test_the_record_says_that_nothing_was_trained(base: Ran) -> None:
    record = base.record
    assert (record["status"], record["command"], record["seed"]) == ("finished", "eval", 0)
    assert record["evaluated"] == {"what": "base model, untouched"}
    chosen = {"model": "tiny", "data": "shapes", "task": "detect", "sequence": "json_digits", "coords": "qwen1000", "debug": "fast"}
    assert record["choices"] == chosen
    assert base.json("metrics.json")["selected_on"] is None
    page = (base.run / "report.html").read_text()
    assert "base model, untouched" in page
    assert "checkpoint chosen on" not in page
    assert not (base.run / "checkpoints").exists()
    assert "4 test images, tiny (base model, untouched)" in base.out


@pytest.mark.parametrize("pair", ["objects k999", "qwen2_box pixel", "json_unit unit", "json_coord k1000"])
def test_every_format_is_scored_under_one_protocol(fast_outputs: Path, fast_run: Ran, base: Ran, pair: str) -> None:
    sequence, coords = pair.split()
    ran = evaluate(fast_outputs, *BASE, *FAST, f"sequence={sequence}", f"coords={coords}", "data.num_workers=0")
    assert ran.status == 0, ran.err
    assert ran.record["protocol"] == base.record["protocol"] == fast_run.record["protocol"]
    warned = "has never seen coordinate tokens" in (ran.run / "run.log").read_text()
    assert warned == (sequence in ("objects", "json_coord"))


def test_the_weights_are_those_of_the_model_itself(fast_outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored = []
    original = build.build_experiment

    def spy(*args: object, **kwargs: object) -> build.Experiment:
        scored.append(original(*args, **kwargs))  # type: ignore[arg-type]
        return scored[-1]

    monkeypatch.setattr(build, "build_experiment", spy)
    ran = evaluate(fast_outputs, *BASE, *FAST, "seed=3", "sequence=json_digits", "coords=qwen1000")
    assert ran.status == 0, ran.err
    monkeypatch.undo()
    cfg = compose(ran.run, *FAST, "seed=3", "sequence=json_digits", "coords=qwen1000", "loss=ce")
    fresh = build.build_model(cfg).backbone.state_dict()
    (found,) = (x.module.backbone.state_dict() for x in scored)
    assert set(found) == set(fresh)
    assert all(torch.equal(value, fresh[name]) for name, value in found.items())


def test_base_stands_beside_tuned(fast_outputs: Path, base: Ran) -> None:
    ran = finished(fast_outputs, f"base={base.run}", page=True)
    found = ran.json("base.json")
    mine, theirs = (x.json("metrics.json")["metrics"] for x in (ran, base))
    assert set(found["metrics"]) == set(mine) & set(theirs)
    for name in ("AP", "parse_rate", "tokens_per_image"):
        both = found["metrics"][name]
        assert (both["base"], both["tuned"]) == (theirs[name]["value"], mine[name]["value"])
        assert both["difference"] == pytest.approx(both["tuned"] - both["base"])
        assert both["low"] <= both["difference"] <= both["high"]
    assert ran.record["base"] == {"folder": str(base.run), "sentence": found["sentence"]}
    assert found["sentence"] in (ran.run / "report.html").read_text()
    lines = [line.strip() for line in ran.out.splitlines() if line.strip()]
    assert lines[-2] == found["sentence"]


def test_an_evaluation_may_be_set_beside_another(fast_outputs: Path, fast_run: Ran, base: Ran) -> None:
    ran = evaluate(fast_outputs, f"run={fast_run.run}", f"base={base.run.name}")
    assert ran.status == 0, ran.err
    assert ran.json("base.json")["name"] == "tiny (base model, untouched)"


def test_another_protocol_is_refused_before_the_training(fast_outputs: Path, base: Ran) -> None:
    ran = train(fast_outputs, *FAST, f"base={base.run}", "decode.score=one", "decode.max_new_tokens=9", "metrics.num_replicates=20")
    message = refusal(ran)
    for part in ("max_new_tokens: 8 in base, 9 here", "score: 'geom_desc' in base, 'one' here", "metrics.num_replicates: 10 in base, 20"):
        assert part in message
    assert not (ran.run / "log.csv").exists()
    assert ran.record["status"] == "failed"


def test_no_evaluation_is_refused_before_anything(fast_outputs: Path, fast_run: Ran, tmp_path: Path) -> None:
    for command in (train, evaluate):
        ran = command(fast_outputs, *(FAST if command is train else (f"run={fast_run.run}",)), f"base={tmp_path}")
        assert "is no evaluation, it has no metrics.json" in refusal(ran)
        assert (ran.status, ran.folder) == (2, None)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("run=null",), "run=null scores a base model as it is: say which, with model=..."),
        ((*BASE, "loss=ce"), "loss=ce has no effect with run=null"),
        ((*BASE, "optim.lr=1", "resume=latest"), "optim.lr=1, resume=latest has no effect"),
        ((*BASE, "seqence=objects"), "no such key seqence; nearest: sequence ("),
        ((*BASE, "sequence=json_digits"), "sequence=json_digits cannot write coords=k999: use coords=qwen1000 or coords=pixel"),
        (("run=latest", "model=tiny"), "model=tiny is for run=null, which scores a base model as it is; run=latest brings its own"),
        (("run=latest", "sequence.order=size", "coords=k1000"), "sequence.order=size, coords=k1000 is for run=null"),
        (("model=tiny",), "a trained run brings its own model, sequence and coords"),
        ((*BASE, "split=train"), "split must be test or val, got 'train'"),
        (("-cn", "eval", "run=null"), "run=null needs a configuration with a model"),
    ],
)
def test_what_cannot_be_meant_is_refused(fast_outputs: Path, fast_run: Ran, argv: tuple[str, ...], words: str) -> None:
    assert words in refusal(evaluate(fast_outputs, *argv))


def test_a_sweep_scores_several_base_models(tmp_path: Path) -> None:
    ran = evaluate(tmp_path, "--multirun", "hydra/launcher=basic", *BASE, *FAST, "seed=0,1")
    assert ran.status == 0, ran.err
    folders = sorted((tmp_path / "eval" / "multirun").glob("*/[0-9]*_*"))
    assert [json.loads((f / "run.json").read_text())["seed"] for f in folders] == [0, 1]
