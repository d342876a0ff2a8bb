"""Prompts -> predictions: asked once, again where nothing came of it, or several times for the consensus.

What ``eval``, ``predict`` and the test of a training run share. Validation during training asks once and greedily.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coordvlm.contracts import Batch, Parser, Prediction
from coordvlm.models.decode import Decoder
from coordvlm.models.sampling import Sampling
from coordvlm.sequence.consensus import alternative, consensus, is_answered
from coordvlm.utils.errors import ConfigError

#: Read-out of the regression head, beside those of tokens.
HEAD = "head"


class Answerer:
    """Asks for the prompts of a batch.

    The first attempt is always greedy; the others are drawn. Each sample and attempt has its own stream, so results do not depend on
    the batch. Retries are for answers that give neither a box nor ``none``, and stop as soon as one does.

    Args:
        decoder, parser: prompts -> tokens -> records.
        samples: attempts that the consensus is taken of; 1: none. retries: further attempts where all those said nothing.
        sampling: how attempts after the first are drawn; None where there are none.
    """

    def __init__(
        self, decoder: Decoder, parser: Parser, *, samples: int = 1, retries: int = 0, sampling: Sampling | None = None
    ) -> None:
        for name, value, least in (("samples", samples, 1), ("retries", retries, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"decode.{name} must be an integer of at least {least}, got {value!r}")
        self.asks_once = samples == 1 and retries == 0
        if sampling is None and not self.asks_once:
            raise ConfigError("decode.samples and decode.retries need decode.temperature, decode.top_p and decode.seed")
        self.decoder, self.parser, self.samples, self.retries, self.sampling = decoder, parser, samples, retries, sampling

    def ask(self, batch: Batch, readouts: Sequence[str], *, once: bool = False) -> dict[str, list[Prediction]]:
        """Read-out -> predictions in batch order; one set of decodes serves all read-outs.

        Args:
            readouts: the first one, read off tokens, decides which answers are asked for again. ``head``: see ``with_head_box``.
            once: greedily and once, whatever the settings.
        Raises:
            ConfigError: several attempts at a batch without phrases: two lists of objects have no consensus.
        """
        first = self._attempt(batch, readouts, 0)
        if once or self.asks_once:
            return first
        if any(phrase is None for phrase in batch.phrases):
            raise ConfigError("decode.samples and decode.retries are for phrases (task=ground): lists of objects have no consensus")
        answers = {name: [[p] for p in found] for name, found in first.items()}
        everyone = list(range(len(batch)))
        for attempt in range(1, self.samples):
            self._add(answers, everyone, self._attempt(batch, readouts, attempt))
        for attempt in range(self.samples, self.samples + self.retries):
            silent = [b for b in everyone if not any(is_answered(p) for p in answers[readouts[0]][b])]
            if not silent:
                break
            self._add(answers, silent, self._attempt(prompts_of(batch, silent), readouts, attempt))
        return {name: [self._settle(several) for several in found] for name, found in answers.items()}

    def _attempt(self, batch: Batch, readouts: Sequence[str], attempt: int) -> dict[str, list[Prediction]]:
        decoded = self.decoder.decode(batch, sampling=self.sampling if attempt else None, attempt=attempt)
        asked = list(zip(decoded, batch.sizes, batch.phrases, strict=True))
        found = {}
        for name in readouts:
            read = readouts[0] if name == HEAD else name
            found[name] = [self.parser.parse(d, size=size, readout=read, phrase=phrase) for d, size, phrase in asked]
        if HEAD in found:
            found[HEAD] = [with_head_box(p, d.head_box) for p, d in zip(found[HEAD], decoded, strict=True)]
        return found

    @staticmethod
    def _add(answers: dict[str, list[list[Prediction]]], rows: Sequence[int], found: dict[str, list[Prediction]]) -> None:
        for name, predictions in found.items():
            for b, prediction in zip(rows, predictions, strict=True):
                answers[name][b].append(prediction)

    def _settle(self, answers: Sequence[Prediction]) -> Prediction:
        """The answer that is kept, with what was spent on all of them."""
        chosen = answers[consensus(answers)]
        spent = {name: sum(float(a.timing[name]) for a in answers) for name in chosen.timing}
        return replace(
            chosen,
            flags=chosen.flags | ({"retried"} if len(answers) > self.samples else set()),
            timing={**spent, "attempts": float(len(answers)), "samples": float(self.samples)},
            alternatives=tuple(alternative(a) for a in answers) if len(answers) > 1 else (),
        )


def with_head_box(prediction: Prediction, box: NDArray[np.float32] | None) -> Prediction:
    """The answer to a phrase with the box of the regression head, clipped to the image, in place of the one that is written.

    Whether there is a box at all is for the words to say: an answer without one, ``none`` included, stays as it is. So does one that the
    head has no box for, or none with an area inside the image.

    Args:
        box: ``Decoded.head_box``.
    """
    if box is None or not prediction.kept:
        return prediction
    width, height = prediction.size
    x1, y1, x2, y2 = (np.clip(box.astype(np.float64), 0, 1) * (width, height, width, height)).tolist()
    if x2 <= x1 or y2 <= y1:
        return prediction
    first = next(i for i, record in enumerate(prediction.records) if record.kept)
    changed = replace(prediction.records[first], box_xyxy_px=(x1, y1, x2, y2))
    return replace(prediction, records=(*prediction.records[:first], changed, *prediction.records[first + 1 :]))


def prompts_of(batch: Batch, rows: Sequence[int]) -> Batch:
    """The prompts of some samples of a batch, in the order of ``rows`` (ascending), without answers.

    A batch holds one image per sample, and its patches and image tokens in the order of the samples.
    """
    device = batch.input_ids.device
    index = torch.tensor(list(rows), dtype=torch.long, device=device)
    width = batch.input_ids.shape[1]
    patches = batch.image_grid_thw.prod(-1)
    mine = torch.isin(torch.arange(len(batch), device=device), index)
    token_row = batch.image_pos // width
    new_row = mine.cumsum(0) - 1
    of_token = mine[token_row]
    empty = torch.zeros(0, dtype=torch.long, device=device)
    nothing: dict[str, Any] = {name: empty.to(getattr(batch, name).dtype) for name in _SUPERVISED}
    return replace(
        batch,
        **nothing,
        box_slot=batch.box_slot[:0],
        query_box=batch.query_box[:0],
        input_ids=batch.input_ids[index],
        lengths=batch.prompt_lengths[index],
        prompt_lengths=batch.prompt_lengths[index],
        position_ids=batch.position_ids[:, index],
        image_pos=new_row[token_row[of_token]] * width + batch.image_pos[of_token] % width,
        pixels=batch.pixels[mine.repeat_interleave(patches)],
        image_grid_thw=batch.image_grid_thw[index],
        counts=dict.fromkeys(batch.counts, 0),
        ids=tuple(batch.ids[b] for b in rows),
        sizes=tuple(batch.sizes[b] for b in rows),
        phrases=tuple(batch.phrases[b] for b in rows),
        window=None,
        num_dropped=0,
    )


#: Fields of a batch that speak of answers, one-dimensional.
_SUPERVISED = (
    "text_row", "text_target", "text_is_end", "slot_row", "slot_bin", "slot_value", "slot_axis", "box_sample", "box_prev", "query_row",
    "query_sample",
)
