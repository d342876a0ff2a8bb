"""``python -m coordvlm.predict`` on runs of a few steps: what it says is what the evaluation says, and what it cannot do it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from coordvlm import build
from coordvlm.models.decode import Decoder
from tests.compose import compose
from tests.e2e.commands import Ran, predict, refusal
from tests.e2e.speech import BOX_60_120, OBJECT_ANSWER, PHRASE_ANSWER, speak

TRICKY = "the \"cup\", 'left' = [2] of {3} <|im_end|> ${x} 0.5"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three images and a broken one; the second is stored lying on its side."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, size in (("a.png", (96, 96)), ("b.jpg", (120, 60)), ("d.png", (50, 200))):
        exif = Image.Exif()
        if name == "b.jpg":
            exif[0x0112] = 6
        Image.new("RGB", size, (200, 30, 40)).save(folder / name, exif=exif)
    (folder / "c.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    return folder


def lines(ran: Ran, name: str = "predictions.jsonl") -> list[dict[str, Any]]:
    return [json.loads(x) for x in (ran.run / name).read_text().splitlines()]


def done(ran: Ran) -> Ran:
    assert ran.status == 0, ran.err
    return ran


def test_detection_says_what_the_evaluation_said(fast_outputs: Path, fast_run: Ran, tmp_path: Path) -> None:
    """The test images of the run, saved as files, under names whose order is theirs; the run's data are not needed."""
    split = build.instantiate(compose(tmp_path, "debug=fast").data.source).split("test")
    truth = [json.loads(x) for x in (fast_run.run / "predictions.jsonl").read_text().splitlines()]
    for n, line in enumerate(truth):
        split.sample(split.ids.tolist().index(line["id"]), 0).image.save(tmp_path / f"{n}.png")
    without_data = tmp_path / "train" / "mine"
    shutil.copytree(fast_run.run, without_data)
    config = OmegaConf.load(without_data / "config.yaml")
    config.data.source = {"_target_": "coordvlm.data.nowhere.Source"}
    OmegaConf.save(config, without_data / "config.yaml")
    ran = done(predict(fast_outputs, f"run={without_data}", f"images={tmp_path}", "overlays=false"))
    assert [x["raw_text"] for x in lines(ran)] == [x["raw_text"] for x in truth]
    assert [x["new_tokens"] for x in lines(ran)] == [len(x["token_ids"]) for x in truth]
    record = ran.record
    assert (record["status"], record["command"]) == ("finished", "predict")
    assert record["decode"] == fast_run.record["decode"]
    assert record["contract"] == fast_run.record["contract"]
    assert record["predicted_with"] == {"run": str(without_data), "checkpoint": str(without_data / "checkpoints" / "best")}


@pytest.mark.parametrize("task", ["detect", "ground"])
def test_boxes_are_source_pixels_and_drawn(
    fast_outputs: Path, fast_run: Ran, ground_run: Ran, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    speak(monkeypatch, *(PHRASE_ANSWER if task == "ground" else OBJECT_ANSWER))
    out = tmp_path / "my, out [1]"
    run, asked = (ground_run, "phrase=a cup") if task == "ground" else (fast_run, "task=detect")
    argv = (f"run={run.run}", f"images={photos}", asked, f"out={out}")
    ran = predict(fast_outputs, *argv)
    assert ran.status == 0, ran.err
    found = [json.loads(x) for x in (out / "predictions.jsonl").read_text().splitlines()]
    assert [(Path(x["image"]).name, x["size"], x["answer"]) for x in found] == [
        ("a.png", [96, 96], "boxes"), ("b.jpg", [60, 120], "boxes"), ("d.png", [50, 200], "boxes"),
    ]  # fmt: skip
    assert found[1]["boxes"][0]["box"] == pytest.approx(BOX_60_120, abs=1e-4)
    for line in found:
        (box,) = line["boxes"]
        assert box["status"] == "ok"
        assert (box["desc"] == "target") == (task == "ground")
        assert (out / line["overlay"]).is_file()
    (broken,) = [json.loads(x) for x in (out / "errors.jsonl").read_text().splitlines()]
    assert broken["image"].endswith("c.jpg")
    assert "must be readable and complete" in broken["error"]
    assert "3 of 4 requests on 4 images answered: 3 boxes; 1 failed on 1 image, listed in" in ran.out
    assert "is not an empty folder; nothing is written over" in refusal(predict(fast_outputs, *argv))
    few = done(predict(fast_outputs, *argv[:-1], "min_score=1.1", "overlays=false"))
    assert few.record["counts"]["rejected"] == {"low_score": 3}


def test_a_phrase_survives_the_command_line(fast_outputs: Path, ground_run: Ran, photos: Path) -> None:
    ran = done(predict(fast_outputs, f"run={ground_run.run}", f"images={photos / '*.png'}", f"phrase={TRICKY}"))
    assert [(Path(x["image"]).name, x["phrase"]) for x in lines(ran)] == [("a.png", TRICKY), ("d.png", TRICKY)]
    assert ran.record["counts"]["answered"] == 2
    assert not (ran.run / "errors.jsonl").exists()
    null = done(predict(fast_outputs, f"run={ground_run.run}", f"images={photos / 'a.png'}", "phrase=null", "overlays=false"))
    assert lines(null)[0]["phrase"] == "null"
    assert not (null.run / "overlays").exists()


def test_answers_do_not_depend_on_how_they_are_batched(fast_outputs: Path, ground_run: Ran, photos: Path, tmp_path: Path) -> None:
    """Drawn ones included; files of phrases, with their images or without, ask the same."""
    (tmp_path / "phrases.txt").write_text("the red circle\n\nthe small blue square\n")
    names, words = ("a.png", "b.jpg", "c.jpg", "d.png"), ("the red circle", "the small blue square")
    pairs = [{"image": name, "phrase": phrase} for name in names for phrase in words]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    drawn = ("decode.retries=2", "decode.temperature=2", "decode.max_new_tokens=6")
    common = (f"run={ground_run.run}", f"images={photos}", "overlays=false", *drawn)
    together = done(predict(fast_outputs, *common, f"phrases={tmp_path / 'phrases.txt'}"))
    apart = done(predict(fast_outputs, *common, f"phrases={tmp_path / 'asked.jsonl'}", "batch_size=1", "num_workers=1"))
    keys = ("phrase", "raw_text", "attempts", "flags")
    assert [[x[k] for k in keys] for x in lines(together)] == [[x[k] for k in keys] for x in lines(apart)]
    assert any("retried" in x["flags"] and x["attempts"] > 1 for x in lines(together))
    assert together.record["counts"]["retried"] > 0
    assert (len(lines(together)), len(lines(together, "errors.jsonl"))) == (6, 2)


def test_a_batch_that_does_not_fit_is_halved(
    fast_outputs: Path, ground_run: Ran, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, seen = Decoder.decode, []

    def small_only(self: Decoder, batch: Any, **how: Any) -> Any:
        seen.append(len(batch))
        if len(batch) > 2 or "huge" in batch.phrases:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(self, batch, **how)

    monkeypatch.setattr(Decoder, "decode", small_only)
    (tmp_path / "phrases.txt").write_text("\n".join(["one", "two", "huge", "four", "five", "six", "seven"]))
    argv = (f"run={ground_run.run}", f"images={photos / 'a.png'}", f"phrases={tmp_path / 'phrases.txt'}", "overlays=false")
    ran = done(predict(fast_outputs, *argv, "batch_size=7"))
    assert [x["phrase"] for x in lines(ran)] == ["one", "two", "four", "five", "six", "seven"]
    (failed,) = lines(ran, "errors.jsonl")
    assert failed["phrase"] == "huge"
    assert "must fit into memory by itself" in failed["error"]
    assert seen[0] == 7


def test_nothing_that_can_be_answered_is_a_failure(fast_outputs: Path, fast_run: Ran, photos: Path) -> None:
    ran = predict(fast_outputs, f"run={fast_run.run}", f"images={photos / 'c.jpg'}")
    assert ran.status == 1
    assert "none of 1 requests could be answered" in refusal(ran)
    assert ran.record["status"] == "failed"


def test_a_base_model_is_asked_as_it_is(fast_outputs: Path, photos: Path) -> None:
    argv = ("run=null", "model=tiny", "sequence=json_digits", "coords=qwen1000", f"images={photos / 'a.png'}", "decode.max_new_tokens=5")
    ran = done(predict(fast_outputs, *argv, "phrase=a cup"))
    assert [x["phrase"] for x in lines(ran)] == ["a cup"]
    assert ran.record["predicted_with"] == {"what": "tiny (base model, untouched)"}
    ran = done(predict(fast_outputs, *argv[:-1], "decode.max_new_tokens=null", "sequence.max_objects=2"))
    assert [x["phrase"] for x in lines(ran)] == [None]
    assert ran.record["decode"]["max_new_tokens"] > 50


def test_a_run_is_asked_what_it_was_trained_for(fast_outputs: Path, fast_run: Ran, ground_run: Ran, photos: Path, tmp_path: Path) -> None:
    images = f"images={photos}"
    message = refusal(predict(fast_outputs, f"run={fast_run.run}", images, "phrase=a cup"))
    assert f"run={fast_run.run} is for task=detect" in message
    assert "cannot be asked for task=ground" in message
    for argv in ((), ("task=detect",)):
        message = refusal(predict(fast_outputs, f"run={ground_run.run}", images, *argv))
        assert f"run={ground_run.run} is for task=ground: it looks for what phrase= or phrases= names" in message
    shutil.copytree(fast_run.run, tmp_path / "old")  # from before there was a choice
    config = OmegaConf.load(tmp_path / "old" / "config.yaml")
    del config["task"]
    OmegaConf.save(config, tmp_path / "old" / "config.yaml")
    assert "is for task=detect" in refusal(predict(fast_outputs, f"run={tmp_path / 'old'}", images, "phrase=a cup"))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((), "no images to look at"), (("images=nowhere",), "images=nowhere: no such file or folder"),
        (("phrase= ", "images=."), "at least one word"),
        (("images=.", "phrase=a", "phrases=b"), "exclude each other"), (("images=.", "task=detect", "phrase=a"), "takes no phrase"),
        (("images=.", "task=ground"), 'add phrase="..." or phrases=<file>'),
        (("images=.", "task=point"), "task must be one of detect, ground"),
        (("images=.", "batch_size=0"), "batch_size must be auto or an integer of at least 1"),
        (("images=.", "batch_size=all"), "batch_size must be"),
        (("images=.", "num_workers=-1"), "num_workers must be"), (("images=.", "min_score=high"), "min_score must be a number"),
        (("images=.", "overlays=some"), "overlays must be true or false"), (("imagse=.",), "no such key imagse; nearest: images"),
        (("images=.", "model=tiny"), "model=tiny is for run=null, which asks a base model as it is"),
        (("run=null", "images=."), "run=null asks a base model as it is: say which, with model=..."),
        (("run=null", "model=tiny", "data=coco", "images=."), "data=coco has no effect with run=null"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(
    fast_outputs: Path, photos: Path, argv: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    ran = predict(fast_outputs, *([] if "run=null" in argv else ["run=latest"]), *argv)
    assert words in refusal(ran)
    assert (ran.status, ran.folder) == (2, None)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("run=nowhere",), "run=nowhere: no such folder"), (("decode.samples=3",), "only task=ground asks several times"),
        (("classes=[cat]",), "this one was not"), (("device=tpu",), "trainer.accelerator='tpu' is not known"),
        (("decode.readout=mean",), "decode.readout must be one of"),
    ],
)  # fmt: skip
def test_a_run_that_cannot_do_it_is_refused(fast_outputs: Path, fast_run: Ran, photos: Path, argv: tuple[str, ...], words: str) -> None:
    given = argv if argv[0].startswith("run=") else (f"run={fast_run.run}", *argv)
    assert words in refusal(predict(fast_outputs, f"images={photos}", *given))


def test_a_run_with_an_unreadable_configuration_is_refused(fast_outputs: Path, fast_run: Ran, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(fast_run.run, tmp_path / "mine")
    for content in ("[1, 2", "a: 1"):
        (tmp_path / "mine" / "config.yaml").write_text(content)
        message = refusal(predict(fast_outputs, f"run={tmp_path / 'mine'}", f"images={photos}"))
        assert "cannot be read, so the model cannot be built again" in message
