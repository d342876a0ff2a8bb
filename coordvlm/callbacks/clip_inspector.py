"""The first batch of clips: asserted, and kept as a page. What is shown is what the model sees."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import PreTrainedTokenizerBase

from coordvlm.contracts import COORD, END, TEXT, Clip, ClipBatch, Contract, Sample
from coordvlm.coords.grid import Grid
from coordvlm.reports.inspect_page import KINDS, BatchPage, Check, Token, write_batch_page
from coordvlm.utils.errors import ContractError

#: Half a side of the square that stands for a point, as a share of a frame's side.
_REACH = 0.04
_AXES = 2


def inspect_clips(
    path: Path, batch: ClipBatch, samples: Mapping[int | str, Sample], tokenizer: PreTrainedTokenizerBase, contract: Contract, *,
    limit: int = 8,
) -> tuple[list[BatchPage], list[Check]]:
    """Check a batch of clips and write its page.

    Args:
        samples: by id, as the source gave them.
    Raises:
        ContractError: an assertion failed; the page shows which.
    """
    checks = check_clips(batch, samples, tokenizer, contract)
    pages = [_page(batch, b, samples, tokenizer, contract) for b in range(min(limit, len(batch)))]
    write_batch_page(path, pages, checks=checks, contract=contract)
    if failed := [c for c in checks if not c.ok]:
        raise ContractError(
            f"the first batch is wrong, nothing was trained (see {path}):\n  " + "\n  ".join(f"{c.name} {c.detail}" for c in failed)
        )
    return pages, checks


def check_clips(
    batch: ClipBatch, samples: Mapping[int | str, Sample], tokenizer: PreTrainedTokenizerBase, contract: Contract
) -> list[Check]:
    """Each against something that did not make the batch."""
    wrong: dict[str, list[int | str]] = {name: [] for name in ("question", "words", "point", "tokens", "frame", "padding")}
    width = batch.input_ids.shape[1]
    points = dict(zip(batch.ask_sample.tolist(), batch.ask_xy.double().cpu().numpy(), strict=True))
    for b, clip_id in enumerate(batch.ids):
        clip = samples[clip_id]
        assert isinstance(clip, Clip)
        asked = batch.input_ids[b, : batch.mode_col][batch.attention_mask[b, : batch.mode_col]]
        if (clip.phrase or "") not in tokenizer.decode(asked.tolist(), skip_special_tokens=False):
            wrong["question"].append(clip_id)
        mine = (batch.text_row // width == b) & ~batch.text_is_end
        if clip.point_px is None and tokenizer.decode(batch.text_target[mine].tolist(), skip_special_tokens=False) != clip.answer:
            wrong["words"].append(clip_id)
        size = np.asarray(batch.sizes[b], dtype=np.float64)
        if (clip.point_px is not None) != (b in points):
            wrong["point"].append(clip_id)
        elif clip.point_px is not None:
            if float(np.abs((points[b] + 1) / 2 * size - clip.point_px).max()) > 0.01:
                wrong["point"].append(clip_id)
            read = decoded_point(batch, b, contract)
            if read is None or not _means(np.asarray(read) / size, np.asarray(clip.point_px) / size, contract):
                wrong["tokens"].append(clip_id)
        if len(clip.frames) != batch.num_frames or not _same_frames(batch, b, clip):
            wrong["frame"].append(clip_id)
        if not bool(batch.attention_mask[b, batch.mode_col : batch.answer_col].all()):
            wrong["padding"].append(clip_id)
    ends = int(batch.text_is_end.sum())
    columns = batch.image_pos.view(len(batch), -1) - width * torch.arange(len(batch))[:, None]
    placed = bool((columns == batch.mode_col + 1 + torch.arange(batch.num_frames)).all())
    return [
        Check("every question is the annotated one", not wrong["question"], _list(wrong["question"])),
        Check("every answer in words is the annotated one", not wrong["words"], _list(wrong["words"])),
        Check("every answer that is a point is the annotated one", not wrong["point"], _list(wrong["point"])),
        Check("coordinate tokens mean this point", not wrong["tokens"], _list(wrong["tokens"])),
        Check("every answer ends", ends == len(batch), f"{ends} of {len(batch)}"),
        Check("frames are the clip's, in the order of time", not wrong["frame"], _list(wrong["frame"])),
        Check("mode and frames stand in the same columns, seen in every clip", placed and not wrong["padding"], _list(wrong["padding"])),
    ]


def decoded_point(batch: ClipBatch, b: int, contract: Contract) -> tuple[float, float] | None:
    """(x, y) in source px that the coordinate tokens of a clip say through the contract; None where its answer is words."""
    mine = batch.slot_row // batch.input_ids.shape[1] == b
    bins = batch.slot_bin[mine].cpu().numpy()
    if len(bins) != _AXES or contract.coords == "unit":
        return None
    x, y = Grid(contract.coords, contract.num_bins, contract.scale).decode(bins).tolist()
    return x * batch.sizes[b][0], y * batch.sizes[b][1]


def _means(read: NDArray[np.float64], true: NDArray[np.float64], contract: Contract) -> bool:
    """Whether a decoded value in [0, 1] is the nearest there is: half a bin off, or beyond the last bin, which k1000 cannot say."""
    last = (contract.num_bins - 1) / contract.scale
    return bool((np.abs(read - np.minimum(true, last)) <= 0.5 / contract.scale + 1e-6).all())


def _same_frames(batch: ClipBatch, b: int, clip: Clip) -> bool:
    """Whether each frame resembles the clip's frame of that time most; frames may have been resized."""
    side = 8
    given, made = (
        np.stack([np.asarray(Image.fromarray(f).resize((side, side), Image.Resampling.BOX), dtype=np.float64) for f in frames])
        for frames in (clip.frames, batch.frames[b].permute(0, 2, 3, 1).cpu().numpy())
    )
    far = np.abs(made[:, None] - given[None]).mean((2, 3, 4))  # [T of the batch, T of the clip]
    return bool((far.diagonal() <= far.min(1) + 1e-9).all())


def _page(
    batch: ClipBatch, b: int, samples: Mapping[int | str, Sample], tokenizer: PreTrainedTokenizerBase, contract: Contract
) -> BatchPage:
    clip = samples[batch.ids[b]]
    assert isinstance(clip, Clip)
    ids, seen = batch.input_ids[b, : batch.answer_col], batch.attention_mask[b, : batch.answer_col]
    prompt = ids[seen].tolist()[: -batch.num_frames]
    frames = batch.frames[b].permute(0, 2, 3, 1).cpu().numpy()
    strip = Image.fromarray(np.concatenate(list(frames), 1))
    side, last = strip.height, strip.width - strip.height  # the point is in the last frame

    def square(point: tuple[float, float]) -> tuple[float, float, float, float]:
        x, y = last + point[0] / batch.sizes[b][0] * side, point[1] / batch.sizes[b][1] * side
        reach = max(2.0, _REACH * side)
        return x - reach, y - reach, x + reach, y + reach

    read = decoded_point(batch, b, contract)
    mode = "" if not prompt else f"{tokenizer.decode(prompt[:-1], skip_special_tokens=False)}[mode]"
    return BatchPage(
        sample_id=clip.id,
        image=strip,
        size=strip.size,
        prompt_text=f"{mode} z_1 .. z_{batch.num_frames}",
        tokens=answer_tokens(batch, b, tokenizer),
        slots=[],
        true_boxes=[] if clip.point_px is None else [("answer", square(clip.point_px))],
        read_boxes=None if read is None else [("answer", square(read))],
        notes=[
            f"{clip.kind}, answer: {clip.answer or tuple(round(v, 1) for v in clip.point_px or ())}",
            f"{batch.num_frames} frames in a row, as the model sees them",
        ],
    )


def answer_tokens(batch: ClipBatch, b: int, tokenizer: PreTrainedTokenizerBase) -> list[Token]:
    """The answer, token by token, each with what it is supervised as."""
    width = batch.input_ids.shape[1]
    kinds = {row: (END if end else TEXT) for row, end in zip(batch.text_row.tolist(), batch.text_is_end.tolist(), strict=True)}
    kinds |= dict.fromkeys(batch.slot_row.tolist(), COORD)
    tokens = []
    for at in range(batch.answer_col, width):
        if not bool(batch.attention_mask[b, at]):
            break
        kind = kinds.get(b * width + at - 1)  # rows predict the next token
        text = tokenizer.decode([int(batch.input_ids[b, at])], skip_special_tokens=False)
        tokens.append(Token(text, KINDS[TEXT if kind is None else kind], kind is not None))
    return tokens


def _list(bad: list[int | str]) -> str:
    return f"wrong: {', '.join(map(str, bad[:5]))}" if bad else ""
