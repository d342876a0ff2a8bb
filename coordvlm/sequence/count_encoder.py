"""Samples of counting -> Encoded -> Batch: one step of a count per sample and epoch, and the steps that the inference loop asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from transformers import PreTrainedTokenizerBase

from coordvlm.contracts import Batch, Encoded, Question, ResizeRule, Sample
from coordvlm.coords.grid import Digits, Grid, to_norm
from coordvlm.coords.vocab import CoordVocab
from coordvlm.sequence.collate import ImageFn
from coordvlm.sequence.count_collate import collate_questions
from coordvlm.sequence.count_marks import Marks
from coordvlm.sequence.count_order import POLICIES, order_points
from coordvlm.sequence.count_prompt import CountPrompt
from coordvlm.sequence.count_question import Steps, texts_of
from coordvlm.utils.errors import ConfigError, DataError
from coordvlm.utils.seeding import keyed_generator

#: (image, declared width, declared height, where) -> the displayed frame, RGB
OpenFn = Callable[[Path | Image.Image, int, int, object], Image.Image]

_NOTHING = np.zeros(0, dtype=np.int64)


class CountEncoder:
    """The ``contracts.Encoder`` of counting.

    A sample of ``meta["split"] == "train"`` asks for another step in every epoch, by (seed, epoch, id), with marks that are off by
    ``marks.jitter`` and ``marks.drop``. Every other sample asks for one step by its id alone, with true marks: validation asks the same
    whatever the run's seed.

    Args:
        tokenizer: of the model, ``ask_tokens`` included. vocab: its ids. grid: of the coordinate slots.
        prompts: ``none``, ``one``, ``many``; see ``CountTexts``. text_first: see ``CountPrompt``.
        ask_tokens: ``<x> <y> <done>``.
        order: see ``order_points``. steps: which step a sample asks for. marks: how they are drawn.
        resize: the contract's resize rule. image_fn: opens, checks, resizes and patchifies an image. open_fn: its first half alone.
        max_length: longest allowed prompt. seed: of training steps and marks.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        vocab: CoordVocab,
        grid: Grid | Digits,
        *,
        prompts: Mapping[str, str],
        text_first: bool,
        ask_tokens: Sequence[str],
        order: str,
        steps: Steps,
        marks: Marks,
        resize: ResizeRule,
        image_fn: ImageFn,
        open_fn: OpenFn,
        max_length: int,
        seed: int,
    ) -> None:
        if not isinstance(grid, Grid):
            raise ConfigError(f"sequence=count writes no digits: coords={grid.name} has no bins; use coords=k999 or k1000")
        if order not in POLICIES:
            raise ConfigError(f"sequence.order must be one of {', '.join(POLICIES)}, got {order!r}")
        if len(ask_tokens) != 3 or not set(ask_tokens) <= set(vocab.marker_ids):
            raise ConfigError(f"sequence.markers must be the three tokens of x, y and done, got {list(ask_tokens)}")
        self.vocab, self.grid, self.order, self.steps, self.marks = vocab, grid, order, steps, marks
        self.resize, self.image_fn, self.open_fn, self.max_length, self.seed = resize, image_fn, open_fn, max_length, seed
        ask_ids = [vocab.marker_ids[t] for t in ask_tokens]
        self.prompt = CountPrompt(
            tokenizer, vocab.image_id, texts=texts_of(prompts), ask_tokens=tuple(ask_tokens), ask_ids=ask_ids, text_first=text_first
        )

    # ------------------------------------------------------------------ training and validation
    def encode(self, sample: Sample, *, epoch: int, with_answer: bool = True) -> Encoded:
        """One step of the sample's count; without an answer the first one, nothing marked and nothing known.

        Raises:
            DataError: no category, an object without a point or with one outside the image, an image that cannot be read.
        """
        size, where = (sample.width, sample.height), _where(sample)
        category = _category(sample)
        frame = self.open(sample)
        if not with_answer:
            return self.ask(frame, category, np.zeros((0, 2)), id=sample.id, size=size, where=where)
        points = _points(sample)
        points = points[self.in_order(points, size)]
        training = sample.meta.get("split") == "train"
        key = (self.seed, "count", epoch, sample.id) if training else (0, "count", sample.id)
        step = self.steps.draw(len(points), keyed_generator(*key))
        marks, drawn = points[step.marked], None
        if training:
            marks, drawn = self.marks.noisy(marks, size, keyed_generator(self.seed, "marks", epoch, sample.id))
        done = len(step.unmarked) == 0 if self.steps.asks_done else None
        return self._encoded(frame, category, marks, drawn, points[step.unmarked], done, id=sample.id, size=size, where=where)

    def collate(self, encoded: Sequence[Encoded]) -> Batch:
        return collate_questions(encoded, self.vocab, self.grid, merge=self.resize.merge, any_unmarked=self.steps.any_unmarked)

    # ------------------------------------------------------------------ the loop
    def open(self, sample: Sample) -> Image.Image:
        """The displayed frame, RGB, without marks."""
        return self.open_fn(sample.image, sample.width, sample.height, _where(sample))

    def in_order(self, points_px: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.int64]:
        """int64[N]: the order in which objects are to be pointed at. size: of the image; no policy looks at it today."""
        return order_points(points_px, self.order)

    def ask(
        self, frame: Image.Image, category: str, marks_px: NDArray[np.float64], *, id: int | str, size: tuple[int, int],
        truth: NDArray[np.float64] | None = None, where: object = None,
    ) -> Encoded:
        """The question after some marks, drawn where they are said to be.

        Args:
            frame: of ``open``; it stays as it is. marks_px: float64[k, 2] in source px, in the order of counting.
            truth: float64[N, 2] in source px, in order; the marks stand for the first k of them. None: nothing is known.
            where: what errors name.
        Raises:
            ValueError: more marks than objects.
        """
        marks = np.asarray(marks_px, dtype=np.float64).reshape(-1, 2)
        where = f"image {id}" if where is None else where
        if truth is None:
            return self._encoded(frame, category, marks, None, None, None, id=id, size=size, where=where)
        if len(marks) > len(truth):
            raise ValueError(f"{where}: {len(marks)} marks on {len(truth)} objects")
        unmarked = truth[len(marks) :]
        return self._encoded(frame, category, marks, None, unmarked, len(unmarked) == 0, id=id, size=size, where=where)

    # ------------------------------------------------------------------ one question
    def _encoded(
        self, frame: Image.Image, category: str, marks: NDArray[np.float64], drawn: NDArray[np.bool_] | None,
        unmarked: NDArray[np.float64] | None, done: bool | None, *, id: int | str, size: tuple[int, int], where: object,
    ) -> Encoded:
        pixels, grid_thw = self.image_fn(self.marks.draw(frame, marks, drawn), *size, where)
        prompt_ids = self.prompt.ids(grid_thw[1] * grid_thw[2] // self.resize.merge**2, category, len(marks))
        if len(prompt_ids) > self.max_length:
            raise DataError(
                f"the prompt must fit into {self.max_length} tokens (model.max_length); use a smaller resize", where=where,
                value=len(prompt_ids),
            )
        left = np.zeros((0, 2)) if unmarked is None else unmarked
        left_norm = to_norm(left, *size).astype(np.float32)
        question = Question(
            category=category, num=len(marks) + len(left), marked=len(marks), target=left_norm[0] if len(left) else None,
            unmarked=left_norm, done=done, rows=len(prompt_ids) - 3 + np.arange(3), known=unmarked is not None,
        )
        return Encoded(
            id=id, prompt_ids=prompt_ids, answer_ids=_NOTHING, answer_kind=_NOTHING.astype(np.uint8), slot_object=_NOTHING,
            slot_axis=_NOTHING.astype(np.uint8), slot_bin=_NOTHING, slot_value=_NOTHING.astype(np.float32), box_prev=_NOTHING,
            pixels=pixels, grid_thw=grid_thw, size=size, question=question,
        )


def _where(sample: Sample) -> object:
    return sample.meta.get("where", f"image {sample.id}")


def _category(sample: Sample) -> str:
    if sample.category is None or not sample.category.strip():
        raise DataError("a sample of task=count must say what is counted (category)", where=_where(sample), value=sample.category)
    return sample.category


def _points(sample: Sample) -> NDArray[np.float64]:
    """float64[N, 2] in source px, in file order."""
    points = [o.point_px for o in sample.objects]
    if any(p is None for p in points):
        raise DataError("every object that is counted must have a point", where=_where(sample), value=points.index(None))
    found = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    outside = ~((found >= 0) & (found <= (sample.width, sample.height))).all(1)  # NaN fails too
    if outside.any():
        raise DataError(
            f"a point must lie in the image, {sample.width} x {sample.height} px", where=_where(sample), value=found[outside][0].tolist()
        )
    return found
