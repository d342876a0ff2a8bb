"""Files and counts of predict, with a counter that says what the test wants."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from coordvlm.callbacks.counting_answers import CountSummary, count_all
from coordvlm.sequence.count_answer import CountAnswer, Pointed
from coordvlm.utils.asked import Request
from coordvlm.utils.errors import DataError

POINTS = tuple(Pointed(10.0 * i, 20.0, 0.1, i) for i in (1, 2, 3))
SAYS = {
    "three": (POINTS, (), "finished", 0.9),
    "none": ((), (), "finished", 0.99),
    "round": (POINTS[:1], (Pointed(11.0, 20.0, 0.2, 2), Pointed(9.0, 21.0, 0.3, 3)), "repeated", None),
    "long": (POINTS, (), "step_limit", None),
}


class Scripted:
    """Opens images as the real one does; counts by the phrase."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.requests = self
        self.batches: list[int] = []

    def frame(self, image: Path, *, where: object) -> Image.Image:
        if image.name == "broken.png":
            raise DataError("the image must be readable and complete", where=where)
        return Image.new("RGB", (40, 40), "white")

    def encode(self, frame: Image.Image, phrase: str | None, *, name: str, where: object) -> str:
        return str(phrase)

    def batch_size(self, item: str) -> int:
        return 3

    def count(self, items: Sequence[str], *, on_step: Callable[[], Any] | None = None) -> list[CountAnswer | DataError]:
        self.batches.append(len(items))
        assert on_step is not None
        on_step()
        return [
            CountAnswer(phrase, (40, 40), *SAYS[phrase], seconds=0.1) if phrase in SAYS else DataError("must fit", where=phrase)
            for phrase in items
        ]


def run(folder: Path, asked: Sequence[tuple[str, str]], **settings: Any) -> tuple[Scripted, CountSummary, list[dict], list[dict]]:
    model = Scripted()
    requests = [Request(Path(image), phrase, f"{image}, {phrase}") for image, phrase in asked]
    values = {"batch_size": None, "num_workers": 0, "overlays": True, "gif": False, **settings}
    summary = count_all(model, requests, folder, **values)
    lines, errors = (
        [json.loads(x) for x in (folder / name).read_text().splitlines()] if (folder / name).is_file() else []
        for name in ("predictions.jsonl", "errors.jsonl")
    )
    return model, summary, lines, errors


def test_counts_pictures_and_failures(tmp_path: Path) -> None:
    asked = [("a.png", "three"), ("a.png", "huge"), ("broken.png", "three"), ("b.png", "none"), ("c d'/.png", "round"), ("e.png", "long")]
    model, summary, lines, errors = run(tmp_path, asked)
    assert model.batches == [3, 2]
    assert [(x["image"], x["phrase"], x["count"], x["ended"], len(x["repeated"])) for x in lines] == [
        ("a.png", "three", 3, "finished", 0), ("b.png", "none", 0, "finished", 0), ("c d'/.png", "round", 1, "repeated", 2),
        ("e.png", "long", 3, "step_limit", 0),
    ]  # fmt: skip
    assert sorted((x["image"], x["phrase"]) for x in errors) == [("a.png", "huge"), ("broken.png", "three")]
    assert sorted(p.name for p in (tmp_path / "overlays").iterdir()) == [Path(x["overlay"]).name for x in lines]
    assert not (tmp_path / "gifs").exists()
    assert all("gif" not in x for x in lines)
    assert summary.counts() == {
        "requests": 6, "images": 5, "answered": 4, "points": 7, "ended": {"finished": 2, "repeated": 1, "step_limit": 1},
        "repeated_points": 2, "failed": 2, "failed_images": 2,
    }  # fmt: skip
    said = summary.sentence()
    assert said.startswith("4 of 6 requests on 5 images counted: 7 points; 2 more lay on marked objects")
    assert "1 stopped: marked objects again and again, 1 stopped at the step limit; 2 failed on 2 images, listed in" in said


def test_a_film_per_count_if_asked_for(tmp_path: Path) -> None:
    _, summary, lines, _ = run(tmp_path, [("a.png", "three"), ("a.png", "none"), ("a.png", "round")], gif=True, overlays=False)
    frames = []
    for line in lines:
        with Image.open(tmp_path / line["gif"]) as film:
            frames.append(film.n_frames)
    assert frames == [4, 1, 2]  # a frame per counted point, and the whole
    assert not (tmp_path / "overlays").exists()
    assert "failed" not in summary.sentence()


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_batch_size_is_kept(tmp_path: Path, batch_size: int) -> None:
    model, _, lines, _ = run(tmp_path, [("a.png", "three")] * 6, batch_size=batch_size, overlays=False)
    assert model.batches == {1: [1] * 6, 4: [4, 2]}[batch_size]
    assert len(lines) == 6
