"""Requests for boxes -> files: answers as they come, pictures, and a list of what could not be answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from coordvlm.callbacks.asking import Bar, Files, Requests, Tally, Writer, ask_all, number
from coordvlm.contracts import Encoded, Prediction
from coordvlm.reports.answer_overlay import draw_answer
from coordvlm.reports.overlay import Box
from coordvlm.sequence.postprocess import Answer, finish
from coordvlm.utils.asked import Request
from coordvlm.utils.errors import DataError

OVERLAYS = "overlays"


class Predictor(Protocol):
    """What is asked; see ``build.predictor.Predictor``."""

    requests: Any
    device: torch.device

    def batch_size(self, item: Encoded) -> int: ...

    def answer(self, encoded: Sequence[Encoded]) -> list[Prediction | DataError]: ...


@dataclass
class Summary(Tally):
    """What came of the requests. ``answers``: by kind. ``rejected``: records that were left out, by reason."""

    answers: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    num_boxes: int = 0
    num_retried: int = 0

    @property
    def num_answered(self) -> int:
        return sum(self.answers.values())

    def counts(self) -> dict[str, Any]:
        """For the run's record."""
        return {
            "requests": self.num_requests, "images": self.num_images, "answered": self.num_answered, "boxes": self.num_boxes,
            "answers": dict(self.answers), "rejected": dict(self.rejected), "retried": self.num_retried, **self.failures(),
        }  # fmt: skip

    def sentence(self) -> str:
        """For the terminal."""
        none, nothing, dropped = self.answers["none"], self.answers["nothing"], sum(self.rejected.values())
        left_out = ", ".join(f"{reason} {n}" for reason, n in sorted(self.rejected.items()))
        parts = [
            f"{self.num_answered} of {self.asked_words()} answered: {number(self.num_boxes, 'box', 'boxes')}",
            f", {none} times none" if none else "",
            f", {nothing} without an answer that can be read" if nothing else "",
            f"; {number(dropped, 'record')} left out ({left_out})" if dropped else "",
        ]
        return "".join(parts) + self.failed_words() + self.results_words()


def answer_all(
    predictor: Predictor, requests: Sequence[Request], folder: Path, *, batch_size: int | None, num_workers: int | None, overlays: bool,
    min_score: float,
) -> Summary:
    """Answer every request; see ``asking.ask_all``.

    Args:
        overlays: draw a picture per answer. min_score: boxes that score less are left out.
    """
    summary = Summary(folder, len(requests), len({r.image for r in requests}))
    with ExitStack() as stack:
        writer = _Writer(Files(folder, stack), summary, predictor.requests, overlays, min_score)
        ask_all(
            requests, predictor.requests, writer, ask=predictor.answer, at_once=predictor.batch_size, device=predictor.device,
            batch_size=batch_size, num_workers=num_workers, say=stack.enter_context(Bar(len(requests))),
        )
    return summary


class _Writer(Writer[Prediction]):
    """Writes boxes, and counts."""

    def __init__(self, files: Files, summary: Summary, frames: Requests, overlays: bool, min_score: float) -> None:
        super().__init__(files, summary, frames)
        self.summary, self.overlays, self.min_score = summary, overlays, min_score

    def answered(self, request: Request, found: Prediction) -> None:
        answer = finish(found, phrase=request.phrase, min_score=self.min_score)
        summary = self.summary
        drawn = {"overlay": self._draw(request, answer, summary.num_answered + 1)} if self.overlays else {}
        summary.answers[answer.kind] += 1
        summary.rejected.update(answer.rejected)
        summary.num_boxes += len(answer.boxes)
        summary.num_retried += "retried" in answer.flags
        self.files.answer({"image": str(request.image), **answer.to_json(), **drawn})

    def _draw(self, request: Request, answer: Answer, at: int) -> str:
        boxes = [Box(f.box, f"{f.score:.2f}" if answer.phrase is not None else f"{f.desc} {f.score:.2f}") for f in answer.boxes]
        words = {"boxes": "", "none": "answer: none", "nothing": "no answer that can be read"}[answer.kind]
        path, name = self.files.picture(OVERLAYS, at, request.image, ".jpg")
        draw_answer(self.frame(request), boxes, asked=answer.phrase or "", found=words).save(path, quality=90)
        return name
