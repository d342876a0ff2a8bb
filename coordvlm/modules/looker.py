"""Clips -> answers by every way of looking; stands where the token model has its ``Answerer``.

Arms: ``coarse`` and ``fine`` as trained, ``auto`` (looking frame by frame, without a plan), and controls, which are the fine pass with
something taken away: ``swap`` (the queries of another clip), ``random`` (random queries), ``no_image`` (frames of one grey), ``no_text``
(no question). A claim that the model looks where it should needs ``fine`` to be right where ``swap`` and ``random`` are not.

Shapes: B clips, T frames, L tokens, W width.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from coordvlm.contracts import ArmAnswer, ClipBatch, ModelOutput, Prediction, Record
from coordvlm.models.foveated.decoding import Written, look_one_by_one, write_answers
from coordvlm.models.foveated.model import Foveated, Pass
from coordvlm.models.foveated.queries import others
from coordvlm.models.foveated.vision import PatchCache
from coordvlm.utils.errors import ConfigError

#: The fine pass with something taken away.
CONTROLS = ("swap", "random", "no_image", "no_text")
LOOKS = ("coarse", "fine", "auto", *CONTROLS)
#: Read-outs of a point, in the order of ``Written.values``, and that of the heads.
TOKEN_READOUTS = ("argmax", "expectation", "local")
POINT_HEADS = "heads"
_GREY = 128


class Looker:
    """Asks the model about clips.

    Args:
        main: the arm whose answer is reported: ``fine``, or ``coarse`` where only that was trained.
        arms: of ``LOOKS``, those that are evaluated.
        max_new_tokens: of an answer. window: of the read-out ``local``. bin_values: float[K].
        point_tokens: whether the tokens of points are trained. Where only heads are, how likely those tokens are says nothing: clips that
            ask for a point then count no token.
    """

    asks_once = True

    def __init__(
        self, model: Foveated, tokenizer: PreTrainedTokenizerBase, *, main: str, arms: Sequence[str], max_new_tokens: int, window: int,
        bin_values: Tensor, point_tokens: bool,
    ) -> None:
        if unknown := [a for a in arms if a not in LOOKS]:
            raise ConfigError(f"decode.arms knows {', '.join(LOOKS)}, got {unknown[0]!r}")
        if main not in arms:
            raise ConfigError(f"decode.arms={list(arms)} must contain the arm that is reported, {main!r}")
        if max_new_tokens < 1:
            raise ConfigError(f"decode.max_new_tokens must be at least 1, got {max_new_tokens}")
        self.model, self.tokenizer, self.main, self.arms = model, tokenizer, main, tuple(arms)
        self.max_new_tokens, self.window, self.bin_values = max_new_tokens, window, bin_values
        self.point_tokens = point_tokens

    @torch.no_grad()
    def ask(self, batch: ClipBatch, readouts: Sequence[str], *, once: bool = False) -> dict[str, list[Prediction]]:
        """Read-out (of points) -> predictions in batch order, each with the answers of all arms.

        Args:
            once: in validation: words are not written out (whether they are right is known without), points are read.
        """
        started = time.perf_counter()
        training = self.model.training
        self.model.eval()
        try:
            found = {arm: self._answers(batch, arm, seen, readouts, once) for arm, seen in self.passes(batch).items()}
        finally:
            self.model.train(training)
        seconds = (time.perf_counter() - started) / len(batch)
        return {name: [self._prediction(batch, b, found, name, seconds) for b in range(len(batch))] for name in readouts}

    def passes(self, batch: ClipBatch, *, attention: bool = False) -> dict[str, tuple[ClipBatch, Pass]]:
        """Arm -> the batch as it was shown and the pass over it. Frames are encoded once, and once more for ``no_image``.

        ``swap`` takes the queries of ``others``; a batch of one clip, or of one video, has none, and ``swap`` is left out.
        """
        model, cache = self.model, self.model.encode(batch.frames)
        out: dict[str, tuple[ClipBatch, Pass]] = {}
        coarse = model.coarse(batch, cache, attention=attention)
        last, swapped_with = self._before_last(batch, cache, coarse), others(batch)
        for arm in self.arms:
            if arm == "coarse":
                out[arm] = batch, coarse
            elif arm == "fine":
                out[arm] = batch, model.fine(batch, cache, last, attention=attention)
            elif arm == "auto":
                out[arm] = batch, look_one_by_one(model, batch, cache, attention=attention)
            elif arm == "random" or (arm == "swap" and swapped_with is not None):
                planned = model.queries.plan(last.hidden, batch, "random" if arm == "random" else None)
                queries = planned if arm == "random" else planned[swapped_with]
                out[arm] = batch, model.fine_at(batch, cache, queries, attention=attention)
            elif arm in ("no_image", "no_text"):
                shown = without_frames(batch) if arm == "no_image" else without_text(batch)
                seen = model.encode(shown.frames) if arm == "no_image" else cache
                planned_on = self._before_last(shown, seen, model.coarse(shown, seen))
                out[arm] = shown, model.fine(shown, seen, planned_on, attention=attention)
        return out

    def _before_last(self, batch: ClipBatch, cache: PatchCache, coarse: Pass) -> Pass:
        """The pass that plans the last one."""
        last = coarse
        for _ in range(self.model.iterations - 1):
            last = self.model.fine(batch, cache, last)
        return last

    # ------------------------------------------------------------------ answers
    def _answers(
        self, batch: ClipBatch, arm: str, seen: tuple[ClipBatch, Pass], readouts: Sequence[str], once: bool
    ) -> dict[str, list[ArmAnswer]]:
        """Read-out -> answers in batch order."""
        shown, found = seen
        heads = {"point_xy"} if POINT_HEADS in readouts else set()
        needs = {"text_nll", "text_correct", "slot_logits", "slot_lse", "slot_correct"} | heads
        output = self.model.read(found, shown, needs)
        nll, number, correct = _sums(output, shown)
        if not self.point_tokens:
            nll, number, correct = (x.index_fill(0, shown.ask_sample, 0) for x in (nll, number, correct))
        written: Written | None = None
        if not once or len(batch.ask_sample):
            mode = "coarse" if arm == "coarse" else "fine"
            written = write_answers(
                self.model, shown, found.z, mode, max_new_tokens=self.max_new_tokens, values_K=self.bin_values.to(nll.device),
                window=self.window,
            )
        texts = [""] * len(batch) if written is None else [self._text(ids) for ids in written.token_ids]
        ended = np.ones(len(batch), dtype=np.bool_) if written is None else written.ended
        rows = list(zip(texts, nll.tolist(), number.tolist(), correct.tolist(), ended.tolist(), strict=True))
        answers = {}
        for name in readouts:
            points = _points(batch, output, written, name)
            answers[name] = [
                ArmAnswer(arm, text, points.get(b), loss, n, right, done) for b, (text, loss, n, right, done) in enumerate(rows)
            ]
        return answers

    def _text(self, ids: np.ndarray) -> str:
        kept = [i for i in ids.tolist() if i != self.model.vocab.end_id]
        return str(self.tokenizer.decode(kept, skip_special_tokens=False))

    def _prediction(
        self, batch: ClipBatch, b: int, found: Mapping[str, Mapping[str, list[ArmAnswer]]], readout: str, seconds: float
    ) -> Prediction:
        arms = tuple(answers[readout][b] for answers in found.values())
        mine = next(a for a in arms if a.arm == self.main)
        records = () if mine.point_px is None else (Record("answer", None, 1.0, "ok", point_px=mine.point_px),)
        return Prediction(
            batch.ids[b], batch.sizes[b], records, raw_text=mine.text, flags=frozenset() if mine.finished else frozenset({"truncated"}),
            timing={"seconds": seconds, "new_tokens": 0.0}, arms=arms,
        )


def without_frames(batch: ClipBatch) -> ClipBatch:
    """The same with every frame one grey."""
    return replace(batch, frames=torch.full_like(batch.frames, _GREY))


def without_text(batch: ClipBatch) -> ClipBatch:
    """The same without questions: they are masked out; positions stay."""
    mask = batch.attention_mask.clone()
    mask[:, : batch.mode_col] = False
    return replace(batch, attention_mask=mask)


def _sums(output: ModelOutput, batch: ClipBatch) -> tuple[Tensor, Tensor, Tensor]:
    """float32[B] -log p of the true answer, long[B] its tokens, long[B] those that were the likeliest."""
    assert output.text_nll is not None
    assert output.text_correct is not None
    num, width = batch.input_ids.shape
    device = batch.input_ids.device
    nll, number, correct = (torch.zeros(num, device=device) for _ in range(3))
    parts = [(batch.text_row, output.text_nll, output.text_correct)]
    if len(batch.slot_row):
        assert output.slot_logits is not None
        assert output.slot_lse is not None
        assert output.slot_correct is not None
        own = output.slot_logits.gather(1, batch.slot_bin[:, None]).squeeze(1)
        parts.append((batch.slot_row, output.slot_lse - own, output.slot_correct))
    for row, loss, right in parts:
        clip = torch.div(row, width, rounding_mode="floor")
        nll.index_add_(0, clip, loss.float())
        number.index_add_(0, clip, torch.ones_like(loss, dtype=torch.float32))
        correct.index_add_(0, clip, right.float())
    return nll, number.long(), correct.long()


def _points(batch: ClipBatch, output: ModelOutput, written: Written | None, readout: str) -> dict[int, tuple[float, float]]:
    """Clip in the batch -> (x, y) in source px; clips whose answer is no point, or was none, are left out."""
    asked = batch.ask_sample.tolist()
    if readout == POINT_HEADS:
        assert output.point_xy is not None
        norm = ((output.point_xy.clamp(-1, 1) + 1) / 2).cpu().numpy()
    elif written is None:
        return {}
    else:
        norm = written.values[asked, TOKEN_READOUTS.index(readout)]
    sizes = [batch.sizes[b] for b in asked]
    return {b: (float(x) * w, float(y) * h) for b, (x, y), (w, h) in zip(asked, norm, sizes, strict=True) if np.isfinite((x, y)).all()}
