"""``[B, T, V]`` logits never exist: by what is allocated, and by the peak of a process, against a plain ``labels=`` step."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from coordvlm.contracts import Batch
from coordvlm.models.head import lse_and_target
from tests.tiny import Tiny, hf_inputs, tiny

SHAPE = {"counts": (3, 3), "sides": ((192, 192),) * 2}  # about 2 x 200 tokens, some 50 of them supervised
NEEDS = frozenset({"text_nll", "slot_logits", "slot_lse"})


def our_loss(t: Tiny, batch: Batch) -> torch.Tensor:
    out = t.backbone(batch, NEEDS)
    slot_nll = out.slot_lse - out.slot_logits.gather(1, batch.slot_bin[:, None]).squeeze(1)
    return torch.cat((out.text_nll, slot_nll)).mean()


def their_loss(hf: torch.nn.Module, t: Tiny, batch: Batch) -> torch.Tensor:
    labels = torch.full_like(batch.input_ids, -100).flatten()
    at = torch.cat((batch.text_row, batch.slot_row)) + 1
    labels[at] = batch.input_ids.flatten()[at]
    inputs = hf_inputs(batch, image_id=t.vocab.image_id, patch_norm=t.backbone.pixel_norm)
    return hf(**inputs, labels=labels.view_as(batch.input_ids)).loss


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation returns, in the forward and in the backward."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor))])
        return out


def test_no_tensor_of_a_step_is_larger_than_the_supervised_rows_or_the_table() -> None:
    table_rows = 20_000
    t = tiny(table_size=table_rows)
    batch = t.batch(**SHAPE)
    num_rows = len(batch.text_row) + len(batch.slot_row)
    everything = batch.input_ids.numel() * table_rows
    assert 40 <= num_rows < 0.2 * batch.input_ids.numel()
    with Largest() as mine:
        our_loss(t, batch).backward()
    assert t.backbone.rows.rows_in.grad is not None
    assert mine.numel <= max(num_rows, t.backbone.table.embedding_dim) * table_rows < 0.2 * everything
    hf = t.backbone.to_hf()
    with Largest() as theirs:
        their_loss(hf, t, batch).backward()
    assert theirs.numel >= 0.9 * everything


@pytest.mark.parametrize("rows_at_a_time", [1, 3, 16])
def test_a_chunk_bounds_the_logits_that_exist_at_a_time(rows_at_a_time: int) -> None:
    num, width, table_rows, new_rows = 48, 4, 1000, 10
    h, base, rows = (torch.randn(n, width, requires_grad=True) for n in (num, table_rows, new_rows))
    shadow, target = torch.zeros(table_rows, dtype=torch.bool), torch.arange(num)
    with Largest() as seen:
        lse, z_target, *_ = lse_and_target(h, base, rows, shadow, target, 8, 4 * (table_rows + new_rows) * rows_at_a_time)
        (lse - z_target).sum().backward()
    assert seen.numel == max(rows_at_a_time, width) * table_rows


def _status_kib(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise OSError(f"no {name} in /proc/self/status")


def step_peak_kib(arm: str) -> int:
    """Peak of resident memory of one training step above the built model; run in a process of its own."""
    torch.set_num_threads(1)
    t = tiny(table_size=152_960)
    batch = t.batch(**SHAPE)
    if arm == "theirs":
        hf = t.backbone.to_hf().train()
        t.backbone.hf = torch.nn.Module()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of building
    built = _status_kib("VmRSS")
    (our_loss(t, batch) if arm == "ours" else their_loss(hf, t, batch)).backward()
    return _status_kib("VmHWM") - built


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux' /proc to measure a process")
def test_a_step_with_152960_columns_peaks_at_half_of_a_plain_one_at_most() -> None:
    arms = {}
    for arm in ("ours", "theirs"):
        code = f"from tests.models.test_memory import step_peak_kib; print(step_peak_kib({arm!r}))"
        arms[arm] = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True)
    peak = {arm: int(process.communicate(timeout=240)[0].split()[-1]) for arm, process in arms.items()}
    print(f"peak above the built model: {peak['ours'] / 1024:.0f} MiB against {peak['theirs'] / 1024:.0f} MiB")
    assert 0 < peak["ours"] <= 0.5 * peak["theirs"], peak
