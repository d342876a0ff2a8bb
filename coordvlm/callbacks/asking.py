"""Requests -> answers as they come, whatever is asked: images read ahead, batches, output files, a progress bar."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TextIO, TypeVar

import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, Dataset

from coordvlm.utils.asked import Request
from coordvlm.utils.devices import usable_cpus
from coordvlm.utils.errors import DataError

ANSWERS, ERRORS = "predictions.jsonl", "errors.jsonl"
#: Worker processes pay off from this many requests on.
_WORTH_WORKERS = 32
#: Seconds between lines where the output is not a terminal.
_EVERY_SECONDS = 10.0

Item = TypeVar("Item")
Found = TypeVar("Found")


class Requests(Protocol):
    """Opens and encodes; see ``build.requests``."""

    def frame(self, image: Path | Image.Image, *, where: object) -> Image.Image: ...

    def encode(self, frame: Image.Image, phrase: str | None, *, name: str, where: object) -> Any: ...


@dataclass
class Tally:
    """What came of the requests, whatever was asked."""

    folder: Path
    num_requests: int
    num_images: int
    num_failed: int = 0
    failed_images: set[Path] = field(default_factory=set)
    first_error: str = ""

    def failed(self, request: Request, error: DataError) -> None:
        self.num_failed += 1
        self.failed_images.add(request.image)
        self.first_error = self.first_error or str(error)

    def failures(self) -> dict[str, int]:
        """For the run's record."""
        return {"failed": self.num_failed, "failed_images": len(self.failed_images)}

    def asked_words(self) -> str:
        return f"{number(self.num_requests, 'request')} on {number(self.num_images, 'image')}"

    def failed_words(self) -> str:
        """Empty where nothing failed."""
        where = f"failed on {number(len(self.failed_images), 'image')}, listed in {self.folder / ERRORS}"
        return f"; {self.num_failed} {where}" if self.num_failed else ""

    def results_words(self) -> str:
        return f"\nresults: {self.folder / ANSWERS}"


def number(count: int, one: str, many: str = "") -> str:
    """``1 image``, ``2 images``."""
    return f"{count} {one if count == 1 else many or one + 's'}"


class Writer(Generic[Found]):
    """Writes what came back.

    Args:
        files: the output files, open. tally: counts. frames: opens images again, for pictures.
    """

    def __init__(self, files: Files, tally: Tally, frames: Requests) -> None:
        self.files, self.tally, self.frames = files, tally, frames
        self._last: tuple[Path, Image.Image] | None = None

    def failed(self, request: Request, error: DataError) -> None:
        self.tally.failed(request, error)
        self.files.error({"image": str(request.image), "phrase": request.phrase, "error": str(error)})

    def answered(self, request: Request, found: Found) -> None:
        raise NotImplementedError

    def frame(self, request: Request) -> Image.Image:
        """The displayed image; the one last opened is kept."""
        if self._last is None or self._last[0] != request.image:
            self._last = request.image, self.frames.frame(request.image, where=request.image)
        return self._last[1]


class Files:
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

    def picture(self, kind: str, at: int, image: Path, suffix: str) -> tuple[Path, str]:
        """Where a picture goes, and its name for the answer's line. kind: a folder of pictures. at: the answer's number."""
        name = f"{kind}/{at:05d}_{re.sub(r'[^A-Za-z0-9._-]+', '_', image.stem)[:80]}{suffix}"
        (self.folder / kind).mkdir(exist_ok=True)
        return self.folder / name, name


def _write(file: TextIO, line: dict[str, Any]) -> None:
    file.write(json.dumps(line, allow_nan=False) + "\n")
    file.flush()


def ask_all(
    requests: Sequence[Request],
    encoder: Requests,
    writer: Writer[Found],
    *,
    ask: Callable[[Sequence[Item]], Sequence[Found | DataError]],
    at_once: Callable[[Item], int],
    device: torch.device,
    batch_size: int | None,
    num_workers: int | None,
    say: Bar,
) -> None:
    """Ask every request, in order; write each answer as soon as it is there. A request that fails is listed and the rest goes on.

    Args:
        ask: a batch -> one answer each, in order. at_once: requests like one that fit into memory.
        batch_size: requests at a time; None: by ``at_once``. num_workers: processes that read images; None: by device and number.
    """

    def flush() -> None:
        for (request, _), found in zip(pending, ask([item for _, item in pending]), strict=True):
            if isinstance(found, DataError):
                writer.failed(request, found)
            else:
                writer.answered(request, found)
        say.advance(len(pending))
        pending.clear()

    pending: list[tuple[Request, Item]] = []
    limit = batch_size
    for index, read in enumerate(_read(requests, encoder, device, num_workers)):
        request = requests[index]
        if isinstance(read, DataError):
            writer.failed(request, read)
            say.advance(1)
            continue
        pending.append((request, read))
        if batch_size is None:
            guess = at_once(read)
            limit = guess if limit is None else min(limit, guess)
        if limit is not None and len(pending) >= limit:
            flush()
            limit = batch_size
    if pending:
        flush()


def _read(requests: Sequence[Request], encoder: Requests, device: torch.device, num_workers: int | None) -> Iterator[Any]:
    """Encoded requests in order, or a DataError; read ahead in worker processes where the device leaves cores free."""
    if num_workers is None:
        beside = device.type != "cpu" and len(requests) >= _WORTH_WORKERS
        num_workers = min(8, max(1, usable_cpus() - 1)) if beside else 0
    return iter(DataLoader(_Images(requests, encoder), batch_size=None, num_workers=num_workers, collate_fn=_as_it_is))


def _as_it_is(item: Any) -> Any:
    return item


class _Images(Dataset[Any]):
    """Requests by position; the image last opened is kept for further phrases."""

    def __init__(self, requests: Sequence[Request], encoder: Requests) -> None:
        self.requests, self.encoder = requests, encoder
        self._last: tuple[Path, Image.Image] | None = None

    def __len__(self) -> int:
        return len(self.requests)

    def __getitem__(self, index: int) -> Any:
        request = self.requests[index]
        try:
            if self._last is None or self._last[0] != request.image:
                self._last = None
                self._last = request.image, self.encoder.frame(request.image, where=request.image)
            return self.encoder.encode(self._last[1], request.phrase, name=request.image.name, where=request.where)
        except DataError as error:
            return error


class Bar:
    """Requests done: a bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self._steps = total, 0, 0
        self._console = Console()
        self._progress: Progress | None = None
        self._said = time.perf_counter()

    def __enter__(self) -> Bar:
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
                TimeRemainingColumn(), console=self._console, refresh_per_second=4,
            )  # fmt: skip
            self._progress.start()
            self._task = self._progress.add_task("predict", total=self.total)
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def advance(self, count: int) -> None:
        self.done += count
        if self._progress is not None:
            self._progress.update(self._task, completed=self.done)
        else:
            self._line()

    def step(self) -> None:
        """A question of a request that takes many."""
        self._steps += 1
        if self._progress is not None:
            self._progress.update(self._task, description=f"predict, {number(self._steps, 'step')}")
        else:
            self._line()

    def _line(self) -> None:
        if (now := time.perf_counter()) - self._said >= _EVERY_SECONDS:
            steps = f", {number(self._steps, 'step')}" if self._steps else ""
            self._console.print(f"{self.done} of {self.total} requests{steps}", highlight=False)
            self._said = now
