"""Questions -> points: single steps with true marks, and the loop that marks what it found until it says that all is marked.

What validation, test, ``eval`` and ``predict`` of counting share; stands where the token model has its ``Answerer``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from coordvlm.contracts import Asked, Batch, Encoded, Prediction, Question, Record, Sample
from coordvlm.models.backbone import Backbone
from coordvlm.models.point_readout import POINT_NEEDS, read_points
from coordvlm.utils.errors import ConfigError

#: Status of a point that lies on a mark already: not counted as an object.
REPEATED = "repeated"


class Asker(Protocol):
    """The part of the encoder that the loop needs."""

    def open(self, sample: Sample) -> Image.Image:
        """The displayed image, RGB, without marks."""

    def ask(
        self, frame: Image.Image, category: str, marks_px: NDArray[np.float64], *, id: int | str, size: tuple[int, int],
        truth: NDArray[np.float64] | None = None,
    ) -> Encoded:
        """The question after some marks. ``truth``: float64[N, 2] in order, of which the marks are the first."""

    def in_order(self, points_px: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.int64]:
        """int64[N]: the order in which objects are to be pointed at."""

    def collate(self, encoded: Sequence[Encoded]) -> Batch: ...


@dataclass(frozen=True, kw_only=True)
class CountSettings:
    """How a count is taken.

    Args:
        questions: single steps with true marks per sample in the test: k = N, N - 1 and further ones, drawn by the sample's id.
        loop: whether the loop is run in the test. max_steps: of the loop; a count that is cut there is unfinished.
        stop_done: the loop ends where the probability that all is marked is above this.
        repeats: it also ends after so many points in a row on marks. repeat_radius: of a mark, px on a side of 384.
        window: tokens each side of the best one that ``window`` reads. max_batch: questions asked at once.
    """

    questions: int
    loop: bool
    max_steps: int
    stop_done: float
    repeats: int
    repeat_radius: float
    window: int
    max_batch: int

    def __post_init__(self) -> None:
        for name in ("questions", "max_steps", "repeats", "window", "max_batch"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"decode.{name} must be an integer of at least 1, got {value!r}")
        if not 0 < self.stop_done < 1:
            raise ConfigError(f"decode.stop_done must lie between 0 and 1, got {self.stop_done!r}")
        if not self.repeat_radius > 0:
            raise ConfigError(f"decode.repeat_radius must be above 0 px, got {self.repeat_radius!r}")


@dataclass
class _Count:
    """A count that is going on. ``marks``: where marks were drawn; ``records``: a point of each step but the last."""

    sample: Sample
    frame: Image.Image
    marks: list[tuple[float, float]] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    repeats: int = 0
    flag: str = ""
    seconds: float = 0.0

    @property
    def marks_px(self) -> NDArray[np.float64]:
        return np.asarray(self.marks, dtype=np.float64).reshape(-1, 2)


class Counter:
    """Asks for the next point.

    Args:
        encoder: makes questions. find: sample id -> its sample, for the test; None where only ``count`` is used.
        settings: of the loop and the single steps.
    """

    asks_once = True

    def __init__(
        self, backbone: Backbone, encoder: Asker, settings: CountSettings, *, bin_values: torch.Tensor,
        find: Callable[[int | str], Sample] | None = None,
    ) -> None:
        self.backbone, self.encoder, self.settings, self.find = backbone, encoder, settings, find
        self.bin_values = bin_values

    # ------------------------------------------------------------------ as an answerer
    def ask(self, batch: Batch, readouts: Sequence[str], *, once: bool = False) -> dict[str, list[Prediction]]:
        """Read-out -> predictions in batch order.

        Args:
            readouts: of a point: ``heads``, ``spatial``, ``window``, ``tokens``. The loop is run by the first one.
            once: only the questions of the batch, as they are; else single steps at several k and the loop, from the samples.
        """
        if once:
            return {name: [replace(p, asked=(a,)) for p, a in zip(_empty(batch), found, strict=True)]
                    for name, found in self._steps(batch, batch.questions, readouts).items()}
        if self.find is None:
            raise ValueError("a count of a batch needs `find`, which gives the samples of its ids")
        samples = [self.find(i) for i in batch.ids]
        frames = [self.encoder.open(sample) for sample in samples]
        asked = self._single_steps(samples, frames, readouts)
        counted = self.count(samples, readouts[0], frames=frames) if self.settings.loop else _empty(batch)
        answers = {name: [replace(p, asked=tuple(a)) for p, a in zip(_empty(batch), found, strict=True)] for name, found in asked.items()}
        answers[readouts[0]] = [replace(p, asked=tuple(a)) for p, a in zip(counted, asked[readouts[0]], strict=True)]
        return answers

    # ------------------------------------------------------------------ the loop
    @torch.no_grad()
    def count(
        self, samples: Sequence[Sample], readout: str, *, frames: Sequence[Image.Image] | None = None,
        watch: Callable[[Sample, Image.Image, Sequence[tuple[float, float]], float], Any] | None = None,
    ) -> list[Prediction]:
        """Mark, ask, mark what was answered, until all is marked: one prediction per sample, its records in the order they were found.

        Args:
            frames: the samples' images, where they are open already.
            watch: is told sample, image, marks so far and the probability that all is marked, at every step.
        """
        frames = [self.encoder.open(sample) for sample in samples] if frames is None else frames
        counts = [_Count(sample, frame) for sample, frame in zip(samples, frames, strict=True)]
        for _ in range(self.settings.max_steps):
            going = [c for c in counts if not c.flag]
            if not going:
                break
            for start in range(0, len(going), self.settings.max_batch):
                self._step(going[start : start + self.settings.max_batch], readout, watch)
        return [
            Prediction(
                c.sample.id, (c.sample.width, c.sample.height), tuple(c.records), flags=frozenset({c.flag or "step_limit"}),
                timing={"seconds": c.seconds, "new_tokens": float(len(c.records) + 1)},
            )
            for c in counts
        ]

    def _step(self, counts: Sequence[_Count], readout: str, watch: Callable[..., Any] | None) -> None:
        begun = time.perf_counter()
        encoded = [
            self.encoder.ask(c.frame, _category(c.sample), c.marks_px, id=c.sample.id, size=(c.sample.width, c.sample.height))
            for c in counts
        ]
        points, done = self._answer(encoded, [readout])
        seconds = (time.perf_counter() - begun) / len(counts)
        for c, point, p_done in zip(counts, points[readout].tolist(), done.tolist(), strict=True):
            c.seconds += seconds
            if watch is not None:
                watch(c.sample, c.frame, tuple(c.marks), p_done)
            if p_done > self.settings.stop_done:
                c.flag = "finished"
                continue
            self._mark(c, (float(point[0]), float(point[1])), p_done)

    def _mark(self, c: _Count, point: tuple[float, float], p_done: float) -> None:
        scale = 384.0 / np.array([c.sample.width, c.sample.height])
        near = len(c.marks) > 0 and bool(
            (np.linalg.norm((c.marks_px - point) * scale, axis=1) <= self.settings.repeat_radius).any()
        )
        c.records.append(Record(_category(c.sample), None, 1 - p_done, REPEATED if near else "ok", point_px=point))
        c.marks.append(point)
        c.repeats = c.repeats + 1 if near else 0
        if c.repeats >= self.settings.repeats:
            c.flag = "repeated"

    # ------------------------------------------------------------------ single steps
    def _single_steps(
        self, samples: Sequence[Sample], frames: Sequence[Image.Image], readouts: Sequence[str]
    ) -> dict[str, list[list[Asked]]]:
        """Read-out -> per sample the answers at several k with true marks."""
        encoded, owner = [], []
        for at, (sample, frame) in enumerate(zip(samples, frames, strict=True)):
            size = (sample.width, sample.height)
            points = np.asarray([o.point_px for o in sample.objects], dtype=np.float64).reshape(-1, 2)
            points = points[self.encoder.in_order(points, size)]
            for k in steps_to_ask(len(points), self.settings.questions, sample.id):
                encoded.append(self.encoder.ask(frame, _category(sample), points[:k], id=sample.id, size=size, truth=points))
                owner.append(at)
        found: dict[str, list[list[Asked]]] = {name: [[] for _ in samples] for name in readouts}
        for start in range(0, len(encoded), self.settings.max_batch):
            part = encoded[start : start + self.settings.max_batch]
            batch = self.encoder.collate(part)
            for name, answers in self._steps(batch, batch.questions, readouts).items():
                for at, answer in zip(owner[start:], answers, strict=False):
                    found[name][at].append(answer)
        return found

    def _steps(self, batch: Batch, questions: Sequence[Question], readouts: Sequence[str]) -> dict[str, list[Asked]]:
        points, done = self._read(batch, readouts)
        return {
            name: [_asked(q, p, d, size) for q, p, d, size in zip(questions, xy.tolist(), done.tolist(), batch.sizes, strict=True)]
            for name, xy in points.items()
        }

    # ------------------------------------------------------------------ the model
    def _answer(self, encoded: Sequence[Encoded], readouts: Sequence[str]) -> tuple[Mapping[str, NDArray[np.float64]], NDArray[np.float64]]:
        return self._read(self.encoder.collate(encoded), readouts)

    @torch.no_grad()
    def _read(self, batch: Batch, readouts: Sequence[str]) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.float64]]:
        """Read-out -> float64[A, 2] in source px; float64[A], the probability that all is marked. Dropout is off."""
        device = self.backbone.rows.new_ids.device
        batch = replace(batch.to(device), slot_row=batch.ask_row[:, :2].reshape(-1).to(device))
        needs = frozenset().union(*(POINT_NEEDS[name] for name in readouts)) | {"done_logit"}
        output = self.backbone(batch, needs)
        size = torch.tensor(batch.sizes, dtype=torch.float64)
        points = {
            name: (read_points(name, output, batch, bin_values=self.bin_values.to(device), window=self.settings.window).cpu().double()
                   * size).numpy()
            for name in readouts
        }
        assert output.done_logit is not None
        return points, output.done_logit.sigmoid().cpu().double().numpy()


def steps_to_ask(num: int, most: int, sample_id: int | str) -> list[int]:
    """The k of a sample's single steps: N, N - 1 and up to ``most - 2`` others, ascending; the same in every run.

    Args:
        num: N.
    """
    rng = np.random.default_rng(np.frombuffer(f"count {sample_id}".encode(), dtype=np.uint8).astype(np.uint64))
    early = np.arange(max(num - 1, 0))
    chosen = rng.permutation(early)[: max(most - 2, 0)]
    return sorted({*chosen.tolist(), *([num - 1] if num and most > 1 else []), num})


def _category(sample: Sample) -> str:
    if sample.category is None:
        raise ValueError(f"sample {sample.id!r} says not what to count")
    return sample.category


def _empty(batch: Batch) -> list[Prediction]:
    return [Prediction(i, size, ()) for i, size in zip(batch.ids, batch.sizes, strict=True)]


def _asked(question: Question, point: Sequence[float], done: float, size: tuple[int, int]) -> Asked:
    wh = np.asarray(size, dtype=np.float64)
    target = None
    if question.target is not None:
        x, y = (question.target.astype(np.float64) * wh).tolist()
        target = (x, y)
    unmarked = question.unmarked.astype(np.float64).reshape(-1, 2) * wh
    return Asked(question.marked, question.num, target, unmarked, (float(point[0]), float(point[1])), done)
