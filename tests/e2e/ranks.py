"""What one rank of two computes for ``test_ddp``; started by it as ``python -m tests.e2e.ranks <file>``, once per rank.

Everything is computed in one process group, case after case, and rank 0 saves it. The same functions run in the test's own process
as the single process to compare with.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch.plugins.environments import LightningEnvironment

from coordvlm.callbacks.evaluation_writer import write_evaluation
from coordvlm.contracts import Batch, Window
from coordvlm.losses.weighted_sum import WeightedSum
from coordvlm.models.adapters import Lora, add_adapter
from coordvlm.models.heads import build_heads
from coordvlm.modules.strategies import make_strategy
from coordvlm.utils import collectives
from coordvlm.utils.devices import Devices
from tests.compose import compose
from tests.modules.test_coord_lm import Gradients, Loader, module, samples, trainer, truth_of
from tests.recipes import ANSWERING
from tests.tiny import Tiny, tiny

RECIPES = ANSWERING  # those of counting need other batches: tests/losses/test_counting_recipes.py cuts their steps
#: Accumulate -> name -> per rank the samples of each micro-batch of a window. -1 is a prompt with nothing supervised; sample 1 has no
#: object. A window with fewer micro-batches than are accumulated stands last: the epoch ends in it.
Layouts = dict[int, dict[str, list[list[list[int]]]]]
WHOLE: Layouts = {1: {"1x1": [[[0, 1, 2, 3, 4, 5, 6, 7]]]}}
ONE: Layouts = {
    2: {"1x2": [[[0, 1, 2], [3, 4, 5, 6, 7]]]},
    4: {"1x4": [[[0], [1, 2], [3, 4, 5], [6, 7]]], "cut short": [[[0, 1, 2, 3], [4, 5, 6, 7]]]},
}
TWO: Layouts = {
    2: {
        "2x2": [[[0, 1], [2]], [[3], [4, 5, 6, 7]]],
        "a rank without a slot": [[[0, 2, 3], [4, 5, 6, 7]], [[1], [-1]]],
        "a rank with nothing supervised": [[[0, 1, 2, 3], [4, 5, 6, 7]], [[-1], [-1]]],
        "cut short": [[[0, 1, 2]], [[3, 4, 5, 6, 7]]],
    }
}
PLAIN: Layouts = {1: {"2x1": [[[0, 1, 2]], [[3, 4, 5, 6, 7]]]}}


def strategy(kind: str) -> dict[str, Any]:
    """Trainer options of one of two ranks."""
    devices = Devices("cpu", (0, 1), kind, "32-true")
    return {"devices": 2, "strategy": make_strategy(devices), "plugins": [LightningEnvironment()]}


def loss(name: str) -> WeightedSum:
    built: WeightedSum = instantiate(compose(Path("run"), f"loss={name}").loss)
    return built


def loader(t: Tiny, accumulate: int, windows: Sequence[list[list[list[int]]]], losses: WeightedSum, rank: int) -> Loader:
    """The rank's micro-batches, window after window."""
    known = samples()
    out: list[Batch] = []
    for ranks in windows:
        encoded = [[t.encoder.encode(known[max(i, 0)], epoch=0, with_answer=i >= 0) for i in part] for part in ranks[rank]]
        window = [t.encoder.collate(part) for part in encoded]
        counts: Counter[str] = Counter()
        for batch in window:
            counts.update(losses.counts(batch))
        out += [replace(b, window=Window(i, len(window), dict(counts), accumulate)) for i, b in enumerate(window)]
    return Loader(out)


def gradients(layouts: Layouts, recipes: Sequence[str], dtype: torch.dtype, kind: str | None = None) -> dict[str, dict[str, torch.Tensor]]:
    """``recipe/layout`` -> gradient of the window, by parameter. A learning rate of next to nothing leaves the weights as they are."""
    rank = int(os.environ.get("RANK", "0"))
    t = tiny()
    t.backbone.to(dtype)
    before = t.backbone.rows.rows_in.detach().clone()
    found = {}
    for recipe in recipes:
        for accumulate, windows in layouts.items():
            losses = loss(recipe)
            t.backbone.heads = build_heads(losses.needs, 32, seed=0).to(dtype)
            m, seen = module(t, lr=1e-30), Gradients()
            m.losses = losses
            items = loader(t, accumulate, list(windows.values()), m.losses, rank)
            trainer(seen, accumulate_grad_batches=accumulate, **(strategy(kind) if kind else {})).fit(m, items)
            found |= {f"{recipe}/{name}": step for name, step in zip(windows, seen.steps, strict=True)}
    assert torch.equal(before, t.backbone.rows.rows_in)
    return found


def scores(kind: str | None = None) -> dict[str, Any]:
    """Validation's logged values, and what a test leaves, on all eight samples (of which a rank sees every second)."""
    rank, world = (int(os.environ["RANK"]), 2) if kind else (0, 1)
    t = tiny()
    seven = samples()[:7]
    mine = [t.encoder.encode(s, epoch=0) for s in seven[rank::world]]
    batches = [t.encoder.collate(mine[at : at + 2]) for at in range(0, len(mine), 2)]
    m = module(t, num=7)
    for metric in m.test_metrics.values():
        metric.num_replicates = 20
    found: dict[str, Any] = {}
    run = trainer(**(strategy(kind) if kind else {}))
    run.validate(m, Loader(batches), verbose=False)
    found["validation"] = {k: float(v) for k, v in run.callback_metrics.items()}
    run = trainer(**(strategy(kind) if kind else {}))
    run.test(m, Loader(batches), verbose=False)
    assert m.evaluation is not None
    with tempfile.TemporaryDirectory() as folder:
        write_evaluation(
            Path(folder), m.evaluation, m.predictions, truth_of(seven), split="test", protocol={"hash": "x"}, selected_on="val", timing={},
            readouts={}, seed=0, prompt=str, sha1=lambda i: None,
        )  # fmt: skip
        found["lines"] = (Path(folder) / "predictions.jsonl").read_text()
    found["metrics"] = {k: (v.value, v.low, v.high) for k, v in m.evaluation.metrics.items() if "seconds" not in k}
    found["counts"] = dict(m.evaluation.counts)
    found["replicates"] = {k: v.tolist() for k, v in m.evaluation.replicates.items() if "seconds" not in k}
    if kind == "fsdp":
        return found
    # a rank that saw no batch of a validation at all
    m = module(t, num=7)
    run = trainer(**(strategy(kind) if kind else {}))
    share = [t.encoder.collate([t.encoder.encode(s, epoch=0) for s in seven])] if rank == 0 else []
    m.trainer = run
    m.on_validation_epoch_start()
    for batch in share:
        m.validation_step(batch, 0)
    logged: dict[str, Any] = {}
    m.log_dict = logged.update  # type: ignore[method-assign, assignment]
    m._log_validation()
    found["one rank alone"] = {k: float(v) for k, v in logged.items()}
    return found


def course(kind: str | None, recipe: str | None = None, *, adapter: bool = False) -> dict[str, torch.Tensor]:
    """Weights after two epochs of one clipped, ragged step each, in double precision and untied; ``kind`` None: one process.

    ``adapter``: DoRA everywhere and the merger, on a frozen base.
    """
    rank = int(os.environ.get("RANK", "0"))
    t = tiny(tied=False)
    if recipe is not None:
        t.backbone.heads = build_heads(loss(recipe).needs, 32, seed=0)
    t.backbone.to(torch.float64)
    if adapter:
        settings = {"r": 2, "alpha": 2.0, "dropout": 0.0, "rslora": False, "dora": True, "targets": "language_and_vision", "merger": True}
        add_adapter(t.backbone, Lora(**settings), source="tiny", seed=0)  # type: ignore[arg-type]
    m = module(t, clip_norm=0.5)
    if recipe is not None:
        m.losses = loss(recipe)
    windows = list((TWO if kind else ONE)[2].values())[:1]
    run = trainer(accumulate_grad_batches=2, max_epochs=2, **(strategy(kind) if kind else {}))
    run.fit(m, loader(t, 2, windows, m.losses, rank))
    return {k: v.clone() for k, v in m.trained_state().items()}


def planted() -> dict[str, dict[str, torch.Tensor]]:
    """Gradients where each rank normalises by its own counts, as tools that average micro-batch means do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collectives, "sum_counts", dict)
        return gradients(PLAIN, ["hybrid"], torch.float64, "ddp")


def main(out: Path) -> None:
    torch.set_num_threads(1)
    results: dict[str, Any] = {
        "double": gradients(TWO, RECIPES, torch.float64, "ddp") | gradients(PLAIN, ["ce", "hybrid"], torch.float64, "ddp"),
        "single": gradients(PLAIN | TWO, ["hybrid"], torch.float32, "ddp"),
        "planted": planted(),
        "scores": scores("ddp"),
        "sharded": scores("fsdp"),
        "course": {kind: course(kind) for kind in ("ddp", "fsdp")},
        "head": {"fsdp": course("fsdp", "ce_box_head")},
        "adapter": {kind: course(kind, adapter=True) for kind in ("ddp", "fsdp")},
    }
    collectives.any_rank(False)
    if os.environ["RANK"] == "0":
        torch.save(results, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
