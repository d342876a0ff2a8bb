"""What one rank of two computes for ``test_turns``; started by it as ``python -m tests.e2e.turns <file>``, once per rank."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from coordvlm.callbacks.gradient_health import GradientHealth
from coordvlm.modules.dual_lm import AlternateLM, DualLM, TurnsLM
from coordvlm.utils import collectives
from tests.e2e.ranks import Layouts, loader, strategy
from tests.modules.test_coord_lm import trainer
from tests.modules.test_dual_lm import made

#: Two windows of two ragged micro-batches on each rank; of the second window's first micro-batch one rank has nothing supervised.
TWO: Layouts = {2: {"a": [[[0, 1], [3]], [[2], [5]]], "b": [[[4, 6], [3, 7]], [[-1], [5]]]}}
#: The same windows in one process.
ONE: Layouts = {2: {"a": [[[0, 1, 2], [3, 5]]], "b": [[[4, 6, -1], [3, 7, 5]]]}}
KINDS: dict[str, type[TurnsLM]] = {"alternate": AlternateLM, "dual": DualLM}


def course(kind: type[TurnsLM], layouts: Layouts, how: str | None) -> dict[str, torch.Tensor]:
    """Weights after both windows in double precision, and what the gradient watch saw. ``how`` None: one process."""
    t, m = made(kind)
    watch = GradientHealth(every_n_steps=1, healthy=(0.0, 1e9), warn_every_n_steps=1, spike_factor=3.0, spike_window=10)
    run = trainer(watch, accumulate_grad_batches=2, **(strategy(how) if how else {}))
    rank = int(os.environ["RANK"]) if how else 0
    run.fit(m, loader(t, 2, list(layouts[2].values()), m.losses, rank))
    assert run.global_step == 2
    seen = {f"{what} {n}": torch.tensor(x) for what, found in (("norm", watch.norms), ("loss", watch.losses)) for n, x in found.items()}
    return {k: v.clone() for k, v in m.trained_state().items()} | seen


def main(out: Path) -> None:
    torch.set_num_threads(1)
    found = {name: course(kind, TWO, "ddp") for name, kind in KINDS.items()}
    collectives.any_rank(False)
    if os.environ["RANK"] == "0":
        torch.save(found, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
