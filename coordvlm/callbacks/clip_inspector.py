"""The first batch of clips: asserted, and kept as a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import PreTrainedTokenizerBase

from coordvlm.contracts import Clip, ClipBatch, Contract, Sample
from coordvlm.reports.inspect_page import BatchPage, Check, write_batch_page
from coordvlm.utils.errors import ContractError


def inspect_clips(
    path: Path, batch: ClipBatch, samples: Mapping[int | str, Sample], tokenizer: PreTrainedTokenizerBase, contract: Contract, *, limit: int = 8
) -> tuple[list[BatchPage], list[Check]]:
    """Check a batch of clips and write its page.

    Args:
        samples: by id, as the source gave them.
    Raises:
        ContractError: an assertion failed; the page shows which.
    """
    checks = check_clips(batch, samples, tokenizer)
    pages = [_page(batch, b, samples, tokenizer) for b in range(min(limit, len(batch)))]
    write_batch_page(path, pages, checks=checks, contract=contract)
    if failed := [c for c in checks if not c.ok]:
        raise ContractError(
            f"the first batch is wrong, nothing was trained (see {path}):\n  " + "\n  ".join(f"{c.name} {c.detail}" for c in failed)
        )
    return pages, checks


def check_clips(batch: ClipBatch, samples: Mapping[int | str, Sample], tokenizer: PreTrainedTokenizerBase) -> list[Check]:
    """Each against something that did not make the batch."""
    wrong_answer, wrong_point, wrong_frame = [], [], []
    width = batch.input_ids.shape[1]
    points = dict(zip(batch.ask_sample.tolist(), batch.ask_xy.double().numpy(), strict=True))
    for b, clip_id in enumerate(batch.ids):
        clip = samples[clip_id]
        assert isinstance(clip, Clip)
        mine = (batch.text_row // width == b) & ~batch.text_is_end
        if clip.point_px is None and tokenizer.decode(batch.text_target[mine].tolist(), skip_special_tokens=False) != clip.answer:
            wrong_answer.append(clip_id)
        if (clip.point_px is not None) != (b in points):
            wrong_point.append(clip_id)
        elif clip.point_px is not None:
            found = (points[b] + 1) / 2 * np.asarray(batch.sizes[b])
            if float(np.abs(found - clip.point_px).max()) > 0.01:
                wrong_point.append(clip_id)
        if len(clip.frames) != batch.num_frames:
            wrong_frame.append(clip_id)
    ends = int(batch.text_is_end.sum())
    return [
        Check("every answer in words is the annotated one", not wrong_answer, _list(wrong_answer)),
        Check("every answer that is a point is the annotated one", not wrong_point, _list(wrong_point)),
        Check("every answer ends", ends == len(batch), f"{ends} of {len(batch)}"),
        Check("every frame has its token", not wrong_frame and len(batch.image_pos) == len(batch) * batch.num_frames, _list(wrong_frame)),
    ]


def _page(batch: ClipBatch, b: int, samples: Mapping[int | str, Sample], tokenizer: PreTrainedTokenizerBase) -> BatchPage:
    clip = samples[batch.ids[b]]
    assert isinstance(clip, Clip)
    ids = batch.input_ids[b][batch.attention_mask[b]].tolist()
    frames = batch.frames[b].permute(0, 2, 3, 1).numpy()
    strip = Image.fromarray(np.concatenate(list(frames), 1))
    return BatchPage(
        sample_id=clip.id, image=strip, size=strip.size, prompt_text=tokenizer.decode(ids, skip_special_tokens=False), tokens=[], slots=[],
        true_boxes=[], read_boxes=[],
        notes=[f"{clip.kind}: {clip.phrase}", f"answer: {clip.answer or clip.point_px}", f"{batch.num_frames} frames, as the model sees them"],
        origin="the frames",
    )


def _list(bad: list[int | str]) -> str:
    return f"wrong: {', '.join(map(str, bad[:5]))}" if bad else ""
