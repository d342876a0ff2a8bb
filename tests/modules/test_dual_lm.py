"""Tasks that take turns, against loops written out in plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from coordvlm.contracts import Batch
from coordvlm.losses.box_head import HeadGIoU, HeadL1
from coordvlm.losses.coord_ce import CoordCE
from coordvlm.losses.text_ce import TextCE
from coordvlm.losses.weighted_sum import Weighted, WeightedSum
from coordvlm.models.heads import build_heads
from coordvlm.modules.dual_lm import AlternateLM, DualLM, TurnsLM
from coordvlm.utils.errors import ConfigError, NonFiniteLossError
from tests.modules.test_coord_lm import Loader, batches, module, trainer
from tests.tiny import Tiny, tiny

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

#: Two heads, each a task's own; tokens belong to the first task.
TASKS: dict[str, dict[str, Any]] = {
    "tokens": {"terms": "rest", "heads": "rest"},
    "boxes": {"terms": ["end_l1", "end_giou"], "heads": ["box_end"]},
}
#: Four ragged micro-batches, two windows of two; each window has a sample with one object, which the heads learn from.
SIZES = (2, 2, 1, 1)


def recipe() -> WeightedSum:
    return WeightedSum(
        {
            "text_ce": Weighted(TextCE(), 1.0, "tokens"),
            "coord_ce": Weighted(CoordCE(), 0.5, "tokens"),
            "start_l1": Weighted(HeadL1(at="start"), 2.0),
            "end_l1": Weighted(HeadL1(at="end"), 5.0),
            "end_giou": Weighted(HeadGIoU(at="end"), 2.0),
        },
        average="token",
    )


def made(kind: type[TurnsLM], tasks: Mapping[str, Mapping[str, Any]] = TASKS, *, double: bool = True, **optim: Any) -> tuple[Tiny, TurnsLM]:
    """A module with two heads on a model that is the same every time."""
    t = tiny()
    t.backbone.heads = build_heads(["box_head_start", "box_head_end"], 32, seed=3)
    if double:
        t.backbone.to(torch.float64)
    m = module(t, **{"lr": 1e-3, "clip_norm": 0.5, "weight_decay": 0.1, **optim})
    return t, kind(
        tasks=tasks, backbone=t.backbone, losses=recipe(), answerer=m.answerer, val_metric=m.val_metric, test_metrics=m.test_metrics,
        optim=m.optim, readout=m.readout,
    )  # fmt: skip


def fit(t: Tiny, m: TurnsLM, *callbacks: Callback, sizes: Sequence[int] = SIZES, accumulate: int = 2, **options: Any) -> lightning.Trainer:
    run = trainer(*callbacks, accumulate_grad_batches=accumulate, **options)
    run.fit(m, Loader(batches(t, sizes, accumulate=accumulate, losses=m.losses)))
    return run


def own(task: str) -> str:
    return {"tokens": "box_start", "boxes": "box_end"}[task]


def by_hand(t: Tiny, window: Sequence[Batch], names: Sequence[str]) -> Tensor:
    """The task's loss of a window, as SPEC 4.4 writes it: sum of w S / N, with N counted over the window."""
    losses = recipe()
    outputs = [losses(t.backbone(b, losses.needs), b, dict.fromkeys(losses.groups.values(), 1)).outputs for b in window]
    count = {name: sum(losses.counts(b)[losses.groups[name]] for b in window) for name in names}
    return sum((losses.weights[n] * sum(o[n].sum for o in outputs) / max(count[n], 1) for n in names), torch.zeros(()))  # type: ignore[misc]


TERMS = {"tokens": ["text_ce", "coord_ce", "start_l1"], "boxes": ["end_l1", "end_giou"]}


def windows(t: Tiny, size: int = 2) -> list[list[Batch]]:
    flat = batches(t, SIZES)
    return [flat[at : at + size] for at in range(0, len(flat), size)]


def adam(t: Tiny, task: str | None, lr: float) -> tuple[torch.optim.AdamW, list[torch.nn.Parameter]]:
    """Of shared parameters and the task's own; decay on matrices that are no new-token rows and no position table."""
    other = () if task is None else tuple(f"heads.{own(x)}." for x in TERMS if x != task)
    named = [(n, p) for n, p in t.backbone.named_parameters() if p.requires_grad and not n.startswith(other or "no")]
    decayed = [p for n, p in named if p.ndim >= 2 and not n.startswith("rows.") and "pos_embed" not in n]
    plain = [p for _, p in named if not any(p is d for d in decayed)]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))
    return optimizer, [p for _, p in named]


def same(mine: Tiny, theirs: Tiny, tolerance: float = 1e-9) -> None:
    other = dict(theirs.backbone.named_parameters())
    worst = {n: float((p - other[n]).abs().max()) for n, p in mine.backbone.named_parameters()}
    assert max(worst.values()) < tolerance, sorted(worst.items(), key=lambda x: -x[1])[:3]


def moved(t: Tiny) -> set[str]:
    start, _ = made(DualLM)
    old = dict(start.backbone.named_parameters())
    return {n for n, p in t.backbone.named_parameters() if not torch.equal(p, old[n])}


def test_dual_is_two_optimisers_and_two_passes_per_window() -> None:
    """Other learning rates, clipping limits and schedules for each; weights after two windows of two ragged micro-batches."""
    tasks = {**TASKS, "boxes": {**TASKS["boxes"], "optim": {"lr": 3e-3, "clip_norm": 0.1, "schedule": "linear", "final_lr": 0.0}}}
    t, m = made(DualLM, tasks)
    run = fit(t, m)
    assert run.global_step == 2
    ref, _ = made(DualLM)
    tools = {"tokens": adam(ref, "tokens", 1e-3), "boxes": adam(ref, "boxes", 3e-3)}
    for step, window in enumerate(windows(ref)):
        for task, (optimizer, parameters) in tools.items():
            ref.backbone.zero_grad()
            by_hand(ref, window, TERMS[task]).backward()
            torch.nn.utils.clip_grad_norm_(parameters, {"tokens": 0.5, "boxes": 0.1}[task])
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 if task == "tokens" else 3e-3 * (1 - step / 2)
            optimizer.step()
    same(t, ref)
    assert {n for n in moved(t) if n.startswith("heads.")} == {n for n, _ in t.backbone.named_parameters() if n.startswith("heads.")}


def test_alternate_gives_whole_windows_to_the_tasks_in_turn() -> None:
    t, m = made(AlternateLM)
    run = fit(t, m)
    assert run.global_step == 2
    ref, _ = made(AlternateLM)
    optimizer, parameters = adam(ref, None, 1e-3)
    for step, window in enumerate(windows(ref)):
        task = ("tokens", "boxes")[step]
        optimizer.zero_grad(set_to_none=True)
        by_hand(ref, window, TERMS[task]).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()
    same(t, ref)


def test_a_task_leaves_the_heads_of_the_other_alone() -> None:
    """Untouched, not moved by a gradient of 0: momentum and decay would move them."""
    t, m = made(AlternateLM)
    fit(t, m, max_steps=1)
    assert {n.split(".")[1] for n in moved(t) if n.startswith("heads.")} == {"box_start"}


def test_a_short_last_window_is_a_step_of_its_own() -> None:
    """Three micro-batches in windows of two: the trainer would still divide by two."""
    a, m = made(DualLM)
    assert fit(a, m, sizes=(2, 1, 3)).global_step == 2
    b, m = made(DualLM)
    whole = Loader([*batches(b, (3, 3), losses=m.losses)])
    trainer().fit(m, whole)
    same(a, b)


def test_windows_are_what_steps_validation_and_logs_count() -> None:
    """Four micro-batches in windows of two, a limit of two steps, a validation every second micro-batch, a log line per step."""
    t, m = made(DualLM)
    seen: list[tuple[str, int]] = []

    class Steps(Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: TurnsLM, optimizer: Any) -> None:
            seen.append((pl_module.task_name, trainer.global_step))

        def on_validation_start(self, trainer: Any, pl_module: TurnsLM) -> None:
            seen.append(("val", trainer.global_step))

    run = trainer(Steps(), accumulate_grad_batches=2, max_steps=2, max_epochs=-1, val_check_interval=2)
    run.fit(m, Loader(batches(t, SIZES, accumulate=2, losses=m.losses)), Loader(batches(t, (2,))))
    assert seen == [("tokens", 0), ("boxes", 0), ("val", 1), ("tokens", 1), ("boxes", 1), ("val", 2)]
    terms = {"train_term/text_ce", "train_term/end_l1", "train_total_loss"}
    assert terms | {f"{what}/{task}" for what in ("lr", "grad_norm") for task in TASKS} <= set(run.callback_metrics)


def test_what_is_logged_is_each_terms_mean_over_the_window() -> None:
    """Terms of the second task are those of its own forward, behind the first one's step."""
    t, m = made(DualLM, lr=1e-30)  # weights stay, so both passes see the same
    got = fit(t, m, sizes=(3, 5), max_steps=1).callback_metrics
    ref, _ = made(DualLM)
    window = batches(ref, (3, 5))
    for name in recipe().weights:
        with torch.no_grad():
            theirs = float(by_hand(ref, window, [name])) / recipe().weights[name]
        assert float(got[f"train_term/{name}"]) == pytest.approx(theirs, rel=1e-6)


def test_low_precision_copies_of_weights_are_made_anew_for_the_second_task() -> None:
    """Autocast would keep them while a step lasts (the trainer switches that off): the second task would train on old weights."""
    tasks = {"tokens": TASKS["tokens"], "boxes": {**TASKS["boxes"], "optim": {"lr": 1e-30}}}
    t, m = made(DualLM, tasks, double=False, lr=0.05)
    fit(t, m, sizes=(4,), accumulate=1, precision="bf16-mixed", max_steps=1)
    after = float(m._window["end_l1"])
    start, n = made(DualLM, double=False)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        mine, before = (float(by_hand(x, batches(x, (4,)), ["end_l1"])) / 5 for x in (t, start))
    assert n.losses.weights["end_l1"] == 5
    assert abs(mine - before) > 1e-3
    assert after == pytest.approx(mine, abs=abs(mine - before) / 20)


@pytest.mark.parametrize("kind", [AlternateLM, DualLM])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path, kind: type[TurnsLM]) -> None:
    """Optimisers, schedules and whose turn it is; stopped after one step of three, an epoch's end."""
    tasks = {**TASKS, "boxes": {**TASKS["boxes"], **({"optim": {"lr": 3e-3}} if kind is DualLM else {})}}
    optim = {"schedule": "cosine", "warmup": 2, "final_lr": 0.0}
    options: dict[str, Any] = {"sizes": (4,), "accumulate": 1, "max_steps": 3, "max_epochs": -1}
    whole, m = made(kind, tasks, **optim)
    fit(whole, m, **options)
    half, m = made(kind, tasks, **optim)
    fit(half, m, halted := Halt(tmp_path / "half.ckpt", 1), **options)
    rest, m = made(kind, tasks, **optim)
    rest.backbone.load_state_dict(halted.weights)
    run = trainer(max_steps=3, max_epochs=-1)
    run.fit(m, Loader(batches(rest, (4,), losses=m.losses)), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert run.global_step == 3
    same(rest, whole, tolerance=1e-12)


class Halt(Callback):
    """Saves at the end of an epoch, weights beside it, and ends the run."""

    def __init__(self, file: Path, step: int) -> None:
        self.file, self.step = file, step
        self.weights: dict[str, Tensor] = {}

    def on_train_epoch_end(self, trainer: Any, pl_module: TurnsLM) -> None:
        if trainer.global_step == self.step:
            self.weights = {n: x.clone() for n, x in pl_module.backbone.state_dict().items()}
            trainer.save_checkpoint(self.file)
            trainer.should_stop = True


@pytest.mark.parametrize("deferred", [False, True])
def test_a_loss_that_is_no_number_stops_before_any_task_changes_the_weights(deferred: bool) -> None:
    """Also where it is the other task's: its terms are in the graph with factor 0, and 0 times infinity is no number."""
    t, m = made(DualLM)
    m.guard.deferred = deferred
    sick = [replace(b, query_box=b.query_box * math.nan) for b in batches(t, (8,), losses=m.losses)]
    with pytest.raises(NonFiniteLossError, match=r"step 0: .*end_l1 = nan"):
        trainer().fit(m, Loader(sick))
    assert not moved(t)


def test_a_term_that_trains_the_head_of_another_task_is_refused() -> None:
    tasks = {"tokens": {"terms": "rest", "heads": ["box_end"]}, "boxes": {"terms": ["end_l1", "end_giou"], "heads": ["box_start"]}}
    for kind in (AlternateLM, DualLM):
        t, m = made(kind, tasks)
        with pytest.raises(ConfigError, match=r"tokens: its terms .*start_l1.* train the head 'box_start' of another task"):
            fit(t, m)


def test_alternate_has_one_optimiser() -> None:
    tasks = {**TASKS, "boxes": {**TASKS["boxes"], "optim": {"lr": 1e-4}}}
    with pytest.raises(ConfigError, match="share one optimiser"):
        made(AlternateLM, tasks)
