"""Files and counts of predict, with a model that says what the test wants."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from coordvlm.callbacks.answering import Summary, answer_all
from coordvlm.contracts import TARGET, Encoded, Prediction, Record
from coordvlm.utils.asked import Request
from coordvlm.utils.errors import DataError
from tests.tiny import random_sample, tiny

BOX, OUT = (2.0, 3.0, 20.0, 30.0), (-5.0, 3.0, 20.0, 30.0)
SAYS = {
    "there": ((Record(TARGET, BOX, 0.9, "ok"), Record(TARGET, BOX, 0.8, "ok")), frozenset({"retried"})),
    "edge": ((Record(TARGET, OUT, 0.7, "out_of_range"), Record(TARGET, None, 0.0, "bad_arity")), frozenset()),
    "faint": ((Record(TARGET, BOX, 0.1, "ok"),), frozenset()),
    "nowhere": ((), frozenset({"says_none"})),
    "what": ((), frozenset({"no_output"})),
}


class Scripted:
    """Opens images as the real one does; answers by the phrase."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.requests = self
        self.encoder = tiny().encoder
        self.batches: list[int] = []
        self.opened: list[str] = []

    def frame(self, image: Path, *, where: object) -> Image.Image:
        self.opened.append(image.name)
        if image.name == "broken.png":
            raise DataError("the image must be readable and complete", where=where)
        return Image.new("RGB", (40, 40), "white")

    def encode(self, frame: Image.Image, phrase: str | None, *, name: str, where: object) -> Encoded:
        if phrase == "too long":
            raise DataError("prompt and answer must fit", where=where)
        sample = random_sample(0, 0, (32, 32))
        one = self.encoder.encode(sample, epoch=0, with_answer=False)
        return Encoded(**{**vars(one), "id": phrase})

    def batch_size(self, sample: Encoded) -> int:
        return 3

    def answer(self, encoded: Sequence[Encoded]) -> list[Prediction | DataError]:
        self.batches.append(len(encoded))
        found: list[Prediction | DataError] = []
        for phrase in (str(e.id) for e in encoded):
            records, flags = SAYS.get(phrase, ((), frozenset()))
            if phrase == "huge":
                found.append(DataError("must fit into memory by itself", where=phrase))
            else:
                found.append(Prediction(phrase, (40, 40), records, flags=flags))
        return found


def run(folder: Path, asked: Sequence[tuple[str, str | None]], **settings: object) -> tuple[Scripted, Summary, list[dict], list[dict]]:
    model = Scripted()
    requests = [Request(Path(image), phrase, f"{image}, {phrase}") for image, phrase in asked]
    values = {"batch_size": None, "num_workers": 0, "overlays": True, "min_score": 0.5, **settings}
    summary = answer_all(model, requests, folder, **values)  # type: ignore[arg-type]
    lines, errors = (
        [json.loads(x) for x in (folder / name).read_text().splitlines()] if (folder / name).is_file() else []
        for name in ("predictions.jsonl", "errors.jsonl")
    )
    return model, summary, lines, errors


def test_answers_pictures_and_failures(tmp_path: Path) -> None:
    asked = [("a.png", p) for p in ("there", "edge", "too long")] + [("broken.png", "there"), ("broken.png", "edge")]
    asked += [("c d'/.png", "nowhere")] + [("z.png", p) for p in ("what", "faint", "huge")]
    model, summary, lines, errors = run(tmp_path, asked)
    assert model.batches == [3, 3]
    assert [(x["image"], x["phrase"], x["answer"]) for x in lines] == [
        ("a.png", "there", "boxes"), ("a.png", "edge", "boxes"), ("c d'/.png", "nowhere", "none"), ("z.png", "what", "nothing"),
        ("z.png", "faint", "nothing"),
    ]  # fmt: skip
    assert lines[1]["boxes"] == [{"box": [0.0, 3.0, 20.0, 30.0], "score": 0.7, "desc": TARGET, "status": "clipped"}]
    assert [(x["image"], x["phrase"]) for x in errors] == [
        ("a.png", "too long"), ("broken.png", "there"), ("broken.png", "edge"), ("z.png", "huge"),
    ]  # fmt: skip
    assert all(x["error"] for x in errors)
    assert summary.counts() == {
        "requests": 9, "images": 4, "answered": 5, "boxes": 3, "answers": {"boxes": 2, "none": 1, "nothing": 2},
        "rejected": {"bad_arity": 1, "low_score": 1}, "retried": 1, "failed": 4, "failed_images": 3,
    }  # fmt: skip
    said = summary.sentence()
    assert said.startswith("5 of 9 requests on 4 images answered: 3 boxes, 1 times none, 2 without")
    assert "2 records left out (bad_arity 1, low_score 1); 4 failed on 3 images" in said
    assert sorted(p.name for p in (tmp_path / "overlays").iterdir()) == [Path(x["overlay"]).name for x in lines]
    drawn = np.asarray(Image.open(tmp_path / lines[0]["overlay"])).astype(int)
    red = (abs(drawn - (235, 30, 40)) < 60).all(-1)
    assert red.any()


def test_an_image_is_opened_once_for_all_its_phrases_and_no_pictures_means_none(tmp_path: Path) -> None:
    asked = [("a.png", p) for p in ("there", "what", "nowhere", "edge")]
    model, summary, lines, errors = run(tmp_path, asked, overlays=False, batch_size=2)
    assert (model.opened, model.batches) == (["a.png"], [2, 2])
    assert not (tmp_path / "overlays").exists()
    assert all("overlay" not in x for x in lines)
    assert (len(lines), errors, (tmp_path / "errors.jsonl").exists()) == (4, [], False)
    assert "failed" not in summary.sentence()


def test_nothing_that_worked_is_told(tmp_path: Path) -> None:
    _, summary, lines, errors = run(tmp_path, [("broken.png", None)])
    assert (summary.num_answered, lines, len(errors)) == (0, [], 1)
    assert summary.first_error.startswith("broken.png: the image must be readable")


def test_what_was_answered_before_an_interruption_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Scripted.answer

    def stops(self: Scripted, encoded: Sequence[Encoded]) -> list[Prediction | DataError]:
        if self.batches:
            raise KeyboardInterrupt
        return answer(self, encoded)

    monkeypatch.setattr(Scripted, "answer", stops)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, [("a.png", "there")] * 5)
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == 3
