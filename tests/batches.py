"""Hand-made batches for tests of everything right of the collator: no tokenizer, no image, no model.

Vocabulary: ids 0..19 are text and markers, id 20 + k is coordinate bin k. Every sample is one image token, two prompt
tokens, then per box ``<obj_start> desc.. x1 y1 x2 y2 <obj_end>``, then end of turn.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from coordvlm.contracts import Batch, ModelOutput, Window
from coordvlm.coords.grid import Grid

Box = tuple[float, float, float, float]

K999 = Grid("k999", 1000, 999)
#: Ten bins: fast, and small enough to check by hand.
K9 = Grid("k9", 10, 9)

PAD, END, IMAGE, START, STOP, FIRST_WORD, NUM_TEXT = 0, 1, 2, 3, 4, 5, 20

#: Samples with 2, 0, 1 and 3 boxes: ragged in tokens, slots and boxes.
RAGGED: tuple[tuple[Box, ...], ...] = (
    ((0.1, 0.2, 0.5, 0.61), (0.3, 0.0, 0.93, 0.4)),
    (),
    ((0.0, 0.0, 1.0, 1.0),),
    ((0.21, 0.33, 0.44, 0.8), (0.5, 0.52, 0.7, 0.9), (0.05, 0.7, 0.37, 0.98)),
)


def make_batch(
    boxes: Sequence[Sequence[Box]], *, grid: Grid = K9, words: int = 2, ids: Sequence[int | str] | None = None, window: Window | None = None
) -> Batch:
    """A batch with one sample per entry of ``boxes`` (normalised xyxy), every description ``words`` tokens long.

    Consecutive boxes of a sample share their description, so ``box_prev`` is set from the second one on.
    """
    rows, slots, samples, prev = [], [], [], []
    for b, sample in enumerate(boxes):
        tokens, kinds = [IMAGE, FIRST_WORD, FIRST_WORD + 1], [-1, -1, -1]  # kind: -1 unsupervised, 0 text, 1 coordinate
        for i, box in enumerate(sample):
            bins = grid.encode_box(box).tolist()
            tokens += [START, *(FIRST_WORD + (len(sample) + w) % 7 for w in range(words)), *(NUM_TEXT + k for k in bins), STOP]
            kinds += [0] * (1 + words) + [1] * 4 + [0]
            prev.append(len(samples) - 1 if i else -1)
            samples.append(b)
            slots += [(k, value, axis) for axis, (k, value) in enumerate(zip(bins, box, strict=True))]
        rows.append(([*tokens, END], [*kinds, 0]))
    width = max(len(tokens) for tokens, _ in rows)
    input_ids = torch.tensor([tokens + [PAD] * (width - len(tokens)) for tokens, _ in rows])
    kinds_BT = torch.tensor([kinds + [-1] * (width - len(kinds)) for _, kinds in rows])
    lengths = torch.tensor([len(tokens) for tokens, _ in rows])
    text_pos = (kinds_BT.flatten() == 0).nonzero().squeeze(1)
    slot_pos = (kinds_BT.flatten() == 1).nonzero().squeeze(1)
    text_target = input_ids.flatten()[text_pos]
    num = len(boxes)
    single = [b for b, sample in enumerate(boxes) if len(sample) == 1]
    return Batch(
        input_ids=input_ids,
        lengths=lengths,
        prompt_lengths=torch.full((num,), 3),
        position_ids=torch.arange(width).expand(3, num, width).contiguous(),
        image_pos=torch.arange(num) * width,
        pixels=torch.zeros(4 * num, 3, 2, 2, dtype=torch.uint8),
        image_grid_thw=torch.tensor([[1, 2, 2]] * num),
        text_row=text_pos - 1,
        text_target=text_target,
        text_is_end=text_target == END,
        slot_row=slot_pos - 1,
        slot_bin=torch.tensor([k for k, _, _ in slots], dtype=torch.long),
        slot_value=torch.tensor([value for _, value, _ in slots], dtype=torch.float32),
        slot_axis=torch.tensor([axis for _, _, axis in slots], dtype=torch.uint8),
        box_slot=torch.arange(4 * len(samples)).view(-1, 4),
        box_sample=torch.tensor(samples, dtype=torch.long),
        box_prev=torch.tensor(prev, dtype=torch.long),
        counts={"text": len(text_pos), "slot": len(slot_pos), "box": len(samples)},
        ids=tuple(ids) if ids is not None else tuple(f"image_{b}" for b in range(num)),
        sizes=((640, 480),) * num,
        window=window,
        query_row=torch.tensor([b * width + int(lengths[b]) - 2 for b in single], dtype=torch.long),
        query_box=torch.tensor([boxes[b][0] for b in single]).view(-1, 4),
        query_sample=torch.tensor(single, dtype=torch.long),
    )


def hf_labels(batch: Batch) -> Tensor:
    """long[B, T] labels as Hugging Face wants them: the token itself where it is supervised, -100 elsewhere."""
    labels = torch.full_like(batch.input_ids, -100).flatten()
    for rows in (batch.text_row, batch.slot_row):
        labels[rows + 1] = batch.input_ids.flatten()[rows + 1]
    return labels.view_as(batch.input_ids)


def output_of(logits_BTV: Tensor, batch: Batch) -> ModelOutput:
    """What a backbone would hand over for these full logits, by the plainest route."""
    rows = logits_BTV.flatten(0, 1)
    text, slot = rows[batch.text_row], rows[batch.slot_row]
    return ModelOutput(
        text_nll=text.logsumexp(-1) - text.gather(1, batch.text_target[:, None]).squeeze(1),
        text_lse=text.logsumexp(-1),
        text_coord_lse=text[:, NUM_TEXT:].logsumexp(-1),
        text_correct=text.argmax(-1) == batch.text_target,
        slot_logits=slot[:, NUM_TEXT:],
        slot_lse=slot.logsumexp(-1),
        slot_correct=slot.argmax(-1) == batch.slot_bin + NUM_TEXT,
        box_head_end=rows[batch.query_row, :4].sigmoid(),
        box_head_start=rows[batch.query_sample * batch.input_ids.shape[1] + 2, :4].sigmoid(),
    )


def random_logits(batch: Batch, *, grid: Grid = K9, seed: int = 0, dtype: torch.dtype = torch.float64, scale: float = 2.0) -> Tensor:
    """``dtype``[B, T, 20 + K] standard normal times ``scale``, a leaf that requires grad."""
    shape = (*batch.input_ids.shape, NUM_TEXT + grid.num_bins)
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    return logits.to(dtype).requires_grad_()
