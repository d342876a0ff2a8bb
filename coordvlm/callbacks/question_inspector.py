"""The first batch of a counting run: asserted, and kept as a page. What is shown is what the model sees, marks included."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import PreTrainedTokenizerBase

from coordvlm.contracts import Batch, Contract, Sample
from coordvlm.reports.inspect_page import BatchPage, Check, write_batch_page
from coordvlm.utils.errors import ContractError

#: Half a side of the square that stands for a point, as a share of the image's longer side.
_REACH = 0.015
_ORIGIN = "the target"


def inspect_questions(
    path: Path, batch: Batch, samples: Mapping[int | str, Sample], tokenizer: PreTrainedTokenizerBase, contract: Contract, *, limit: int = 8
) -> tuple[list[BatchPage], list[Check]]:
    """Check a batch of questions and write its page.

    Args:
        samples: by id, as the source gave them.
    Raises:
        ContractError: an assertion failed; the page shows which.
    """
    checks = check_questions(batch, samples, tokenizer, contract)
    pages = [_page(batch, a, samples, tokenizer, contract) for a in range(min(limit, len(batch)))]
    write_batch_page(path, pages, checks=checks, contract=contract)
    if failed := [c for c in checks if not c.ok]:
        raise ContractError(
            f"the first batch is wrong, nothing was trained (see {path}):\n  " + "\n  ".join(f"{c.name} {c.detail}" for c in failed)
        )
    return pages, checks


def check_questions(
    batch: Batch, samples: Mapping[int | str, Sample], tokenizer: PreTrainedTokenizerBase, contract: Contract
) -> list[Check]:
    """Each against something that did not make the batch."""
    flat = batch.input_ids.flatten()
    asked = [tokenizer.convert_ids_to_tokens(row) for row in flat[batch.ask_row].tolist()]
    wrong_tokens = [i for i, tokens in zip(batch.ids, asked, strict=True) if tuple(tokens) != tuple(contract.markers)]
    wrong_target, wrong_done, wrong_cell = [], [], []
    place = batch.token_centre + batch.token_offset * batch.token_half
    for a, (sample_id, question) in enumerate(zip(batch.ids, batch.questions, strict=True)):
        sample, wh = samples[sample_id], np.asarray(batch.sizes[a], dtype=np.float64)
        points = np.asarray([o.point_px for o in sample.objects], dtype=np.float64).reshape(-1, 2)
        target = (batch.ask_xy[a].double().numpy() + 1) / 2 * wh
        if batch.ask_has_xy[a] and (not len(points) or float(np.abs(points - target).max(1).min()) > 0.01):
            wrong_target.append(sample_id)
        done = question.marked >= len(points)  # in mode=regression nobody says so
        if question.num != len(points) or bool(batch.ask_done[a]) != (done and bool(batch.ask_has_done[a])):
            wrong_done.append(sample_id)
        mine = batch.token_ask == a
        holding = (mine & batch.token_next).nonzero().flatten()
        leads = bool(((place[holding] - batch.ask_xy[a]).abs().amax(1) <= 1e-4).any())
        if leads != bool(batch.ask_has_xy[a]):
            wrong_cell.append(sample_id)
    inside = bool((batch.token_offset.abs() <= 1 + 1e-4).all())
    return [
        Check("every question ends with its three tokens", not wrong_tokens, _list(wrong_tokens) or " ".join(contract.markers)),
        Check("no token of the prompt is taught", not len(batch.text_row), f"{len(batch.text_row)} taught" if len(batch.text_row) else ""),
        Check("every target is an annotated point", not wrong_target, _list(wrong_target) or f"{int(batch.ask_has_xy.sum())} targets"),
        Check("done where, and only where, all are marked", not wrong_done, _list(wrong_done) or f"{int(batch.ask_done.sum())} done"),
        Check("the target's image token leads back to it", not wrong_cell and inside, _list(wrong_cell)),
    ]


def seen_image(batch: Batch, sample: int, contract: Contract) -> Image.Image:
    """What the model sees of a sample, put together from its patches."""
    grids = batch.image_grid_thw.tolist()
    start = sum(t * h * w for t, h, w in grids[:sample])
    _, rows, columns = grids[sample]
    merge, patch = contract.resize.merge, contract.resize.patch
    patches: NDArray[np.uint8] = batch.pixels[start : start + rows * columns].numpy()
    blocks = patches.reshape(rows // merge, columns // merge, merge, merge, 3, patch, patch).transpose(0, 2, 5, 1, 3, 6, 4)
    return Image.fromarray(np.ascontiguousarray(blocks.reshape(rows * patch, columns * patch, 3)))


def _page(batch: Batch, a: int, samples: Mapping[int | str, Sample], tokenizer: PreTrainedTokenizerBase, contract: Contract) -> BatchPage:
    width, height = size = batch.sizes[a]
    question, reach = batch.questions[a], _REACH * max(size)

    def square(point: torch.Tensor | NDArray[np.float32]) -> tuple[float, float, float, float]:
        x, y = float(point[0]) * width, float(point[1]) * height
        return x - reach, y - reach, x + reach, y + reach

    ids = batch.input_ids[a, : int(batch.lengths[a])].tolist()
    unmarked = [(question.category, square(point)) for point in question.unmarked]
    target = [] if question.target is None else [("next", square(question.target))]
    return BatchPage(
        sample_id=batch.ids[a],
        image=seen_image(batch, a, contract),
        size=size,
        prompt_text=tokenizer.decode(ids, skip_special_tokens=False),
        tokens=[],
        slots=[],
        true_boxes=unmarked,
        read_boxes=target,
        notes=[f"{question.marked} of {question.num} {question.category} marked", "done" if question.done else "not done"],
        origin=_ORIGIN,
    )


def _list(bad: list[int | str]) -> str:
    return f"wrong: {', '.join(map(str, bad[:5]))}" if bad else ""
