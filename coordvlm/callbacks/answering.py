"""Requests -> files: answers as they come, pictures, and a list of what could not be answered."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, Dataset

from coordvlm.contracts import Encoded, Prediction
from coordvlm.reports.answer_overlay import draw_answer
from coordvlm.reports.overlay import Box
from coordvlm.sequence.postprocess import Answer, finish
from coordvlm.utils.asked import Request
from coordvlm.utils.devices import usable_cpus
from coordvlm.utils.errors import DataError

ANSWERS, ERRORS, OVERLAYS = "predictions.jsonl", "errors.jsonl", "overlays"
#: Worker processes pay off from this many requests on.
_WORTH_WORKERS = 32
#: Seconds between lines where the output is not a terminal.
_EVERY_SECONDS = 10.0


class Requests(Protocol):
    """Opens and encodes; see ``build.predictor.RequestEncoder``."""

    def frame(self, image: Path | Image.Image, *, where: object) -> Image.Image: ...

    def encode(self, frame: Image.Image, phrase: str | None, *, name: str, where: object) -> Encoded: ...


class Predictor(Protocol):
    """What is asked; see ``build.predictor.Predictor``."""

    requests: Any
    device: torch.device

    def batch_size(self, sample: Encoded) -> int: ...

    def answer(self, encoded: Sequence[Encoded]) -> list[Prediction | DataError]: ...


@dataclass
class Summary:
    """What came of the requests. ``answers``: by kind. ``rejected``: records that were left out, by reason."""

    folder: Path
    num_requests: int
    num_images: int
    answers: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    num_boxes: int = 0
    num_retried: int = 0
    num_failed: int = 0
    failed_images: set[Path] = field(default_factory=set)
    first_error: str = ""

    @property
    def num_answered(self) -> int:
        return sum(self.answers.values())

    def counts(self) -> dict[str, Any]:
        """For the run's record."""
        return {
            "requests": self.num_requests, "images": self.num_images, "answered": self.num_answered, "boxes": self.num_boxes,
            "answers": dict(self.answers), "rejected": dict(self.rejected), "retried": self.num_retried, "failed": self.num_failed,
            "failed_images": len(self.failed_images),
        }  # fmt: skip

    def sentence(self) -> str:
        """For the terminal."""
        none, nothing, dropped = self.answers["none"], self.answers["nothing"], sum(self.rejected.values())
        left_out = ", ".join(f"{reason} {n}" for reason, n in sorted(self.rejected.items()))
        asked = f"{_count(self.num_requests, 'request')} on {_count(self.num_images, 'image')}"
        failed = f"{self.num_failed} failed on {_count(len(self.failed_images), 'image')}, listed in {self.folder / ERRORS}"
        parts = [
            f"{self.num_answered} of {asked} answered: {_count(self.num_boxes, 'box', 'boxes')}",
            f", {none} times none" if none else "",
            f", {nothing} without an answer that can be read" if nothing else "",
            f"; {_count(dropped, 'record')} left out ({left_out})" if dropped else "",
            f"; {failed}" if self.num_failed else "",
        ]
        return "".join(parts) + f"\nresults: {self.folder / ANSWERS}"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def answer_all(
    predictor: Predictor, requests: Sequence[Request], folder: Path, *, batch_size: int | None, num_workers: int | None, overlays: bool,
    min_score: float,
) -> Summary:
    """Answer every request, in order; write each as soon as it is there. A request that fails is listed and the rest goes on.

    Args:
        batch_size: requests at a time; None: by memory. num_workers: processes that read images; None: by device and number.
        overlays: draw a picture per answer. min_score: boxes that score less are left out.
    """
    summary = Summary(folder, len(requests), len({r.image for r in requests}))
    with ExitStack() as stack:
        files = _Files(folder, stack)
        say = stack.enter_context(_Bar(len(requests)))
        writer = _Writer(files, summary, predictor.requests if overlays else None, min_score)
        pending: list[tuple[Request, Encoded]] = []
        limit = batch_size
        for index, read in enumerate(_read(predictor, requests, num_workers)):
            request = requests[index]
            if isinstance(read, DataError):
                writer.failed(request, read)
                say.advance(1)
                continue
            pending.append((request, read))
            if batch_size is None:
                guess = predictor.batch_size(read)
                limit = guess if limit is None else min(limit, guess)
            if limit is not None and len(pending) >= limit:
                _flush(predictor, pending, writer, say)
                limit = batch_size
        if pending:
            _flush(predictor, pending, writer, say)
    return summary


def _flush(predictor: Predictor, pending: list[tuple[Request, Encoded]], writer: _Writer, say: _Bar) -> None:
    for (request, _), found in zip(pending, predictor.answer([e for _, e in pending]), strict=True):
        if isinstance(found, DataError):
            writer.failed(request, found)
        else:
            writer.answered(request, found)
    say.advance(len(pending))
    pending.clear()


def _read(predictor: Predictor, requests: Sequence[Request], num_workers: int | None) -> Iterator[Encoded | DataError]:
    """Encoded requests in order; read ahead in worker processes where the device leaves cores free."""
    if num_workers is None:
        beside = predictor.device.type != "cpu" and len(requests) >= _WORTH_WORKERS
        num_workers = min(8, max(1, usable_cpus() - 1)) if beside else 0
    data = _Images(requests, predictor.requests)
    return iter(DataLoader(data, batch_size=None, num_workers=num_workers, collate_fn=_as_it_is))


def _as_it_is(item: Any) -> Any:
    return item


class _Images(Dataset[Any]):
    """Requests by position; the image last opened is kept for further phrases."""

    def __init__(self, requests: Sequence[Request], encoder: Requests) -> None:
        self.requests, self.encoder = requests, encoder
        self._last: tuple[Path, Image.Image] | None = None

    def __len__(self) -> int:
        return len(self.requests)

    def __getitem__(self, index: int) -> Encoded | DataError:
        request = self.requests[index]
        try:
            if self._last is None or self._last[0] != request.image:
                self._last = None
                self._last = request.image, self.encoder.frame(request.image, where=request.image)
            return self.encoder.encode(self._last[1], request.phrase, name=request.image.name, where=request.where)
        except DataError as error:
            return error


class _Files:
    """The output files, open; ``errors.jsonl`` only once there is one."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self._stack = folder, stack
        self._errors: TextIO | None = None
        self._answers = stack.enter_context((folder / ANSWERS).open("w", encoding="utf-8"))

    def answer(self, line: dict[str, Any]) -> None:
        _write(self._answers, line)

    def error(self, line: dict[str, Any]) -> None:
        if self._errors is None:
            self._errors = self._stack.enter_context((self.folder / ERRORS).open("w", encoding="utf-8"))
        _write(self._errors, line)


def _write(file: TextIO, line: dict[str, Any]) -> None:
    file.write(json.dumps(line, allow_nan=False) + "\n")
    file.flush()


class _Writer:
    """Writes an answer, or why there is none, and counts."""

    def __init__(self, files: _Files, summary: Summary, frames: Requests | None, min_score: float) -> None:
        self.files, self.summary, self.frames, self.min_score = files, summary, frames, min_score
        self._last: tuple[Path, Image.Image] | None = None

    def failed(self, request: Request, error: DataError) -> None:
        found = self.summary
        found.num_failed += 1
        found.failed_images.add(request.image)
        found.first_error = found.first_error or str(error)
        self.files.error({"image": str(request.image), "phrase": request.phrase, "error": str(error)})

    def answered(self, request: Request, prediction: Prediction) -> None:
        answer = finish(prediction, phrase=request.phrase, min_score=self.min_score)
        found = self.summary
        overlay = None if self.frames is None else self._draw(request, answer, found.num_answered + 1)
        found.answers[answer.kind] += 1
        found.rejected.update(answer.rejected)
        found.num_boxes += len(answer.boxes)
        found.num_retried += "retried" in answer.flags
        drawn = {} if overlay is None else {"overlay": overlay}
        self.files.answer({"image": str(request.image), **answer.to_json(), **drawn})

    def _draw(self, request: Request, answer: Answer, number: int) -> str:
        assert self.frames is not None
        if self._last is None or self._last[0] != request.image:
            self._last = request.image, self.frames.frame(request.image, where=request.image)
        boxes = [Box(f.box, f"{f.score:.2f}" if answer.phrase is not None else f"{f.desc} {f.score:.2f}") for f in answer.boxes]
        words = {"boxes": "", "none": "answer: none", "nothing": "no answer that can be read"}[answer.kind]
        picture = draw_answer(self._last[1], boxes, asked=answer.phrase or "", found=words)
        name = f"{OVERLAYS}/{number:05d}_{re.sub(r'[^A-Za-z0-9._-]+', '_', request.image.stem)[:80]}.jpg"
        (self.files.folder / OVERLAYS).mkdir(exist_ok=True)
        picture.save(self.files.folder / name, quality=90)
        return name


class _Bar:
    """Requests done: a bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self._console = Console()
        self._progress: Progress | None = None
        self._said = time.perf_counter()

    def __enter__(self) -> _Bar:
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("predict"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
                TimeRemainingColumn(), console=self._console, refresh_per_second=4,
            )  # fmt: skip
            self._progress.start()
            self._task = self._progress.add_task("predict", total=self.total)
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def advance(self, number: int) -> None:
        self.done += number
        if self._progress is not None:
            self._progress.update(self._task, completed=self.done)
        elif (now := time.perf_counter()) - self._said >= _EVERY_SECONDS:
            self._console.print(f"{self.done} of {self.total} requests", highlight=False)
            self._said = now
