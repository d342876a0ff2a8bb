"""``python -m coordvlm.predict`` and ``coordvlm.load`` on a run that counts: what they say is what the evaluation says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import coordvlm
from coordvlm import build
from coordvlm.contracts import Prediction, Sample
from coordvlm.modules.counter import Counter
from coordvlm.sequence.count_encoder import CountEncoder
from coordvlm.utils.errors import ConfigError, DataError
from tests.e2e.commands import Ran, evaluate, predict, refusal


@pytest.fixture(scope="session")
def count_test(count_run: Ran, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[dict[str, Any]]]:
    """The counted test images of the run as files, the questions of each, and what the evaluation has counted."""
    folder = tmp_path_factory.mktemp("dots")
    split = build.instantiate(OmegaConf.load(count_run.run / "config.yaml").data.source).split("test")
    truth = [json.loads(x) for x in (count_run.run / "predictions.jsonl").read_text().splitlines()]
    asked = []
    for n, line in enumerate(truth):
        sample = split.sample(split.ids.tolist().index(line["id"]), 0)
        sample.image.save(folder / f"{n}.png")
        asked.append({"image": f"{n}.png", "phrase": sample.category})
    (folder / "asked.jsonl").write_text("\n".join(map(json.dumps, asked)))
    return folder, folder / "asked.jsonl", truth


def lines(ran: Ran, name: str = "predictions.jsonl") -> list[dict[str, Any]]:
    assert ran.status == 0, ran.err
    return [json.loads(x) for x in (ran.run / name).read_text().splitlines()]


def points(line: dict[str, Any]) -> list[list[float]]:
    """All steps of a predicted line, repeated ones too, in their order."""
    return [p["point"] for p in sorted(line["points"] + line["repeated"], key=lambda p: p["step"])]


def test_it_counts_what_the_evaluation_counted(
    fast_outputs: Path, count_run: Ran, count_test: tuple[Path, Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    """The data of the run are not needed; a broken image does not stop the others."""
    folder, asked, truth = count_test
    without_data = tmp_path / "train" / "mine"
    shutil.copytree(count_run.run, without_data)
    config = OmegaConf.load(without_data / "config.yaml")
    config.data.source = {"_target_": "coordvlm.data.nowhere.Source"}
    OmegaConf.save(config, without_data / "config.yaml")
    broken = tmp_path / "broken.jsonl"
    (folder / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    broken.write_text('{"image": "cut.png", "phrase": "red dot"}\n' + asked.read_text())
    ran = predict(fast_outputs, f"run={without_data}", f"phrases={broken}", f"images={folder}", "task=count", "gif=true", "batch_size=3")
    found = lines(ran)
    assert [x["ended"] for x in found] == [next(iter(x["flags"])) for x in truth]
    assert sum(x["count"] for x in found) > 0
    for line, wanted in zip(found, truth, strict=True):
        assert np.allclose(points(line), [r["point"] for r in wanted["records"]], atol=1e-3)
        assert line["count"] == sum(r["status"] == "ok" for r in wanted["records"])
        p_done = [1 - r["score"] for r in wanted["records"] if r["status"] == "ok"]
        assert [p["p_done"] for p in line["points"]] == pytest.approx(p_done, abs=1e-5)
        with Image.open(ran.run / line["gif"]) as film:
            assert film.n_frames == line["count"] + 1
        assert (ran.run / line["overlay"]).is_file()
    (failed,) = lines(ran, "errors.jsonl")
    assert failed["image"].endswith("cut.png")
    assert ran.record["decode"] == count_run.record["decode"]
    assert ran.record["counts"]["points"] == sum(x["count"] for x in found)
    assert f"{len(truth)} of {len(truth) + 1} requests on {len(truth) + 1} images counted" in ran.out


def test_python_counts_as_the_command_does_and_settings_of_the_loop_can_be_replaced(
    fast_outputs: Path, count_run: Ran, count_test: tuple[Path, Path, list[dict[str, Any]]]
) -> None:
    folder = count_test[0]
    settings = {"max_steps": 2, "stop_done": 0.95, "repeat_radius": 0.01, "max_batch": 1, "readout": "window"}
    argv = [f"decode.{key}={value}" for key, value in settings.items()]
    (line,) = lines(predict(fast_outputs, f"run={count_run.run}", f"images={folder / '0.png'}", "phrase=red dot", "overlays=false", *argv))
    model = coordvlm.load(count_run.run, decode=settings)
    answer = model.count(folder / "0.png", " red dot ")
    assert (answer.count, answer.ended, answer.finished) == (2, "step_limit", False)
    assert {k: v for k, v in answer.to_json().items() if k != "seconds"} == {k: line[k] for k in answer.to_json() if k != "seconds"}
    with Image.open(folder / "0.png") as image:
        several = model.count(image, ["red dot", "blue dot"])
    assert [a.phrase for a in several] == ["red dot", "blue dot"]
    assert np.allclose([p[:3] for p in several[0].points], [p[:3] for p in answer.points], atol=1e-3)
    with pytest.raises(ConfigError, match="at least one word"):
        model.count(folder / "0.png", " ")
    with pytest.raises(ConfigError, match=r"is for task=count: it counts what phrase= or phrases= names"):
        model.ground(folder / "0.png", "red dot")
    quick = coordvlm.load(count_run.run, decode={"stop_done": 1e-6}).count(folder / "0.png", "red dot")
    assert (quick.count, quick.finished) == (0, True)
    assert quick.p_done is not None
    assert 0 < quick.p_done < 1


def test_what_does_not_fit_is_halved_and_what_cannot_be_asked_is_listed(
    fast_outputs: Path, count_run: Ran, count_test: tuple[Path, Path, list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, ask, seen = Counter.count, CountEncoder.ask, []

    def small_only(self: Counter, samples: Sequence[Sample], *given: Any, **how: Any) -> list[Prediction]:
        seen.append(len(samples))
        if len(samples) > 2 or "huge" in [s.category for s in samples]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return count(self, samples, *given, **how)

    def too_long(self: CountEncoder, frame: Any, category: str, marks: Any, **how: Any) -> Any:
        if category == "long" and len(marks):
            raise DataError("the prompt must fit", where="long")
        return ask(self, frame, category, marks, **how)

    monkeypatch.setattr(Counter, "count", small_only)
    monkeypatch.setattr(CountEncoder, "ask", too_long)
    (tmp_path / "phrases.txt").write_text("one\nlong\nthree\nfour\nhuge\n")
    argv = (f"run={count_run.run}", f"images={count_test[0] / '0.png'}", f"phrases={tmp_path / 'phrases.txt'}", "overlays=false")
    ran = predict(fast_outputs, *argv, "batch_size=5", "decode.max_steps=2")
    assert [x["phrase"] for x in lines(ran)] == ["one", "three", "four"]
    assert [(x["phrase"], "must fit" in x["error"]) for x in lines(ran, "errors.jsonl")] == [("long", True), ("huge", True)]
    assert seen[0] == 5


def test_a_run_is_asked_what_it_was_trained_for(fast_outputs: Path, fast_run: Ran, ground_run: Ran, count_run: Ran, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    images, phrase = f"images={tmp_path / 'a.png'}", "phrase=red dot"

    def refused(run: Ran, *argv: str) -> str:
        return refusal(predict(fast_outputs, f"run={run.run}", images, *argv))

    for argv in ((), ("task=detect",), ("task=ground", phrase)):
        message = refused(count_run, *argv)
        assert f"run={count_run.run} is for task=count: it counts what phrase= or phrases= names" in message
    assert "is for task=detect" in refused(fast_run, "task=count", phrase)
    assert "is for task=ground" in refused(ground_run, "task=count", phrase)
    assert "gif=true films a count" in refused(ground_run, phrase, "gif=true")
    assert "min_score=0.5 is for boxes" in refused(count_run, phrase, "min_score=0.5")
    assert "decode.max_steps means nothing to this run, whose task is ground" in refused(ground_run, phrase, "decode.max_steps=5")
    assert "decode.samples means nothing to this run, whose task is count" in refused(count_run, phrase, "decode.samples=5")
    assert "decode.readout=heads is not trained by this loss" in refused(count_run, phrase, "decode.readout=heads")
    assert "decode.stop_done must lie between 0 and 1" in refused(count_run, phrase, "decode.stop_done=1")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("run=latest", "task=count"), "task=count counts what a phrase names"),
        (("run=null", "model=tiny", "task=count", "phrase=dot"), "an untouched base model cannot count"),
        (("run=latest", "phrase=dot", "gif=maybe"), "gif must be true or false"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(fast_outputs: Path, tmp_path: Path, argv: tuple[str, ...], words: str) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    ran = predict(fast_outputs, f"images={tmp_path}", *argv)
    assert words in refusal(ran)
    assert (ran.status, ran.folder) == (2, None)


def test_eval_of_an_untouched_model_that_should_count_is_refused(fast_outputs: Path) -> None:
    assert "an untouched base model cannot count" in refusal(evaluate(fast_outputs, "run=null", "model=tiny", "data=dots"))
