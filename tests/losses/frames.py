"""Batches of clips for the terms on frames, without a model."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from coordvlm.contracts import Batch, ModelOutput, TermOutput
from coordvlm.losses.slots import Slots
from coordvlm.losses.term import LossTerm
from tests.batches import make_batch

LENGTH = 12


def clips_batch(clips: int, frames: int) -> Batch:
    """Of a clip a batch that terms on frames read: number of clips, positions of frames and their counts."""
    at = torch.arange(clips)[:, None] * LENGTH + 3 + torch.arange(frames)
    num = clips * frames
    return replace(
        make_batch([()]), input_ids=torch.zeros(clips, LENGTH, dtype=torch.long), image_pos=at.flatten(),
        counts={"frame": num, "latent": num},
    )


def run(term: LossTerm, batch: Batch, **given: Tensor) -> TermOutput:
    """given: fields of ``ModelOutput``."""
    out: TermOutput = term(Slots(ModelOutput(**given), batch))
    return out


def assert_is_a_term_on_frames(term: LossTerm, *, clips: int, frames: int, **given: Tensor) -> None:
    """Sum and items agree, items know their clip, logs carry no graph, low precision is widened, gradients by finite differences.

    Args:
        given: float64 fields, exactly those of ``needs``; gradients are looked at of the first.
    """
    assert set(given) == term.needs
    batch = clips_batch(clips, frames)
    out = run(term, batch, **given)
    assert out.sum.ndim == 0
    assert out.sum.dtype == torch.float64
    assert out.per_item is not None
    assert out.item_sample is not None
    assert len(out.per_item) == term.count(batch) == clips * frames
    assert out.item_sample.tolist() == [b for b in range(clips) for _ in range(frames)]
    assert torch.allclose(out.per_item.sum(), out.sum)
    assert all(not value.requires_grad and number == clips * frames for value, number in out.logs.values())
    low = {name: value.to(torch.bfloat16) for name, value in given.items()}
    widened = run(term, batch, **low)
    assert widened.sum.dtype == torch.float32
    exact = run(term, batch, **{name: value.double() for name, value in low.items()})
    assert torch.allclose(widened.sum.double(), exact.sum, rtol=1e-4)
    first = next(iter(given))
    wanted = given[first].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: run(term, batch, **{**given, first: x}).sum, (wanted,), fast_mode=True)
