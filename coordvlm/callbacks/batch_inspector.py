"""The first batch of every run: asserted, and kept as a page. A wrong mask or a shifted box shows here, before an hour is spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from coordvlm.contracts import COORD, END, MARKER, TEXT, Batch, Contract, Decoded, Parser, Record, Sample
from coordvlm.coords.vocab import CoordVocab
from coordvlm.reports.inspect_page import KINDS, BatchPage, Check, Token, slot_rows, write_batch_page
from coordvlm.sequence.target import Target
from coordvlm.utils.errors import ContractError


def check_batch(
    batch: Batch, samples: Mapping[int | str, Sample], target: Target, vocab: CoordVocab, contract: Contract, *, epoch: int
) -> list[Check]:
    """The assertions of SPEC 3 on a collated batch, each against something that did not make the batch.

    Args:
        samples: by id, as the source gave them. epoch: of the batch (random orders depend on it).
    """
    ids = batch.input_ids
    flat, width = ids.flatten(), ids.shape[1]
    rows = torch.cat((batch.text_row, batch.slot_row))
    supervised = (rows + 1).sort().values
    targets_match = bool((flat[batch.text_row + 1] == batch.text_target).all())
    slot_ids = torch.from_numpy(vocab.coord_ids)[batch.slot_bin]
    slots_match = bool((flat[batch.slot_row + 1] == slot_ids).all())
    wrong_text, wrong_index = [], []
    for b, sample_id in enumerate(batch.ids):
        mine = supervised[(supervised >= b * width) & (supervised < (b + 1) * width)]
        answer = target.build(samples[sample_id], epoch=epoch, model_size=model_size(batch, b, contract))
        if target.tokenizer.decode(flat[mine].tolist(), skip_special_tokens=False) != target.text(answer):
            wrong_text.append(sample_id)
        found = target.index_target(ids[b].numpy())
        of_b = (batch.slot_row >= b * width) & (batch.slot_row < (b + 1) * width)
        same = np.array_equal(found["slot_pos"] + b * width - 1, batch.slot_row[of_b].numpy())
        if not (same and np.array_equal(found["slot_bin"], batch.slot_bin[of_b].numpy())):
            wrong_index.append(sample_id)
    padding = (torch.arange(width) >= batch.lengths[:, None]).flatten()
    in_prompt = (torch.arange(width) < batch.prompt_lengths[:, None]).flatten()
    return [
        Check("at least one supervised token", len(rows) > 0, f"{len(rows)} of {int(batch.lengths.sum())}"),
        Check("every answer ends its turn", int(batch.text_is_end.sum()) == len(batch), f"{int(batch.text_is_end.sum())} of {len(batch)}"),
        Check(
            "no image token, prompt token or padding is supervised",
            not bool(((flat == vocab.image_id) | padding | in_prompt)[supervised].any()),
        ),
        Check("every supervised position predicts its own target", targets_match and slots_match),
        Check("decoded supervised ids equal answer + end of turn", not wrong_text, _list(wrong_text)),
        Check("slots found from ids alone equal the batch's", not wrong_index, _list(wrong_index)),
        Check("every coordinate is inside the image", bool(((batch.slot_value >= 0) & (batch.slot_value <= 1)).all())),
    ]


def check_read_back(
    batch: Batch, samples: Mapping[int | str, Sample], target: Target, parser: Parser, contract: Contract, *, epoch: int
) -> Check:
    """The answers, as if the model had emitted them, parsed: the same descriptions, every corner within one step of its truth."""
    wrong, worst = [], 0.0
    for b, sample_id in enumerate(batch.ids):
        seen = model_size(batch, b, contract)
        objects = target.build(samples[sample_id], epoch=epoch, model_size=seen).objects
        found = _read_back(batch, b, target, parser, contract)
        if [r.desc for r in found] != [o.desc.strip() for o in objects]:
            wrong.append(sample_id)
            continue
        step = np.tile([1 / contract.scale] * 2 if contract.scale else [1 / seen[0], 1 / seen[1]], 2)
        true = np.asarray([o.box_xyxy_px for o in objects], dtype=np.float64).reshape(-1, 4)
        read = np.asarray([r.box_xyxy_px for r in found], dtype=np.float64).reshape(-1, 4)
        error = np.abs(read - true) / np.tile(batch.sizes[b], 2) / step
        worst = max(worst, float(error.max(initial=0)))
        if (error > 1 + 1e-6).any():
            wrong.append(sample_id)
    return Check("answers read back give the true boxes", not wrong, _list(wrong) or f"largest error {worst:.2f} of a step")


def _read_back(batch: Batch, b: int, target: Target, parser: Parser, contract: Contract) -> list[Record]:
    """The objects of one answer, parsed as if the model had emitted it."""
    ids = batch.input_ids[b, int(batch.prompt_lengths[b]) : int(batch.lengths[b])].numpy()
    bins = target.vocab.bins(ids)
    values = (np.maximum(bins, 0) / max(contract.scale, 1)).astype(np.float32)
    ones = np.ones(len(bins), dtype=np.float32)
    seen = model_size(batch, b, contract)
    emitted = Decoded(batch.ids[b], ids, ones * 0, bins, values, values, ones, truncated=False, seconds=0.0, model_size=seen)
    return list(parser.parse(emitted, size=batch.sizes[b], readout="argmax", phrase=batch.phrases[b]).kept)


def model_size(batch: Batch, b: int, contract: Contract) -> tuple[int, int]:
    """(width, height) in px of an image as the model sees it."""
    _, rows, columns = batch.image_grid_thw[b].tolist()
    return columns * contract.resize.patch, rows * contract.resize.patch


def _list(bad: Sequence[object]) -> str:
    return f"wrong: {', '.join(map(str, bad[:5]))}" if bad else ""


def batch_pages(
    batch: Batch, samples: Mapping[int | str, Sample], target: Target, parser: Parser, contract: Contract, load_image: Any,
    *, limit: int, epoch: int,
) -> list[BatchPage]:
    """What the page shows of the first ``limit`` samples; boxes written in digits are read back by ``parser``."""
    tokenizer = target.tokenizer
    width = batch.input_ids.shape[1]
    kind_at = dict.fromkeys((batch.slot_row + 1).tolist(), COORD)
    markers = target.marker_token_ids
    for row, token, is_end in zip(batch.text_row.tolist(), batch.text_target.tolist(), batch.text_is_end.tolist(), strict=True):
        kind_at[row + 1] = END if is_end else MARKER if token in markers else TEXT
    pages = []
    for b, sample_id in enumerate(batch.ids[:limit]):
        sample = samples[sample_id]
        ids = batch.input_ids[b, : int(batch.lengths[b])].tolist()
        prompt = int(batch.prompt_lengths[b])
        tokens = []
        for at, i in enumerate(ids[prompt:], start=b * width + prompt):
            tokens.append(Token(tokenizer.decode([i], skip_special_tokens=False), KINDS[kind_at.get(at, TEXT)], at in kind_at))
        seen = model_size(batch, b, contract)
        answer = target.build(sample, epoch=epoch, model_size=seen)
        image: Image.Image = load_image(sample)
        read = None if contract.num_bins else _read_back(batch, b, target, parser, contract)
        pages.append(
            BatchPage(
                sample_id=sample_id,
                image=image,
                size=batch.sizes[b],
                prompt_text=tokenizer.decode(ids[:prompt], skip_special_tokens=False),
                tokens=tokens,
                slots=slot_rows(batch, b, contract, [o.desc for o in answer.objects]),
                true_boxes=[(o.desc, o.box_xyxy_px) for o in sample.objects if o.box_xyxy_px is not None],
                read_boxes=None if read is None else [(r.desc, r.box_xyxy_px) for r in read if r.box_xyxy_px is not None],
                notes=[f"model input {seen[0]} × {seen[1]} px"]
                + ([f"{answer.num_dropped} objects left out"] if answer.num_dropped else []),
            )
        )
    return pages


def inspect_batch(
    path: Path,
    batch: Batch,
    samples: Mapping[int | str, Sample],
    target: Target,
    vocab: CoordVocab,
    contract: Contract,
    load_image: Any,
    *,
    parser: Parser,
    epoch: int = 0,
    limit: int = 8,
) -> tuple[list[BatchPage], list[Check]]:
    """Check a batch and write its page.

    Raises:
        ContractError: an assertion failed; the page shows which.
    """
    checks = check_batch(batch, samples, target, vocab, contract, epoch=epoch)
    checks.append(check_read_back(batch, samples, target, parser, contract, epoch=epoch))
    pages = batch_pages(batch, samples, target, parser, contract, load_image, limit=limit, epoch=epoch)
    write_batch_page(path, pages, checks=checks, contract=contract)
    if failed := [c for c in checks if not c.ok]:
        raise ContractError(
            f"the first batch is wrong, nothing was trained (see {path}):\n  " + "\n  ".join(f"{c.name} {c.detail}" for c in failed)
        )
    return pages, checks
