from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from coordvlm.callbacks import progress
from coordvlm.callbacks.progress import ProgressReport


class Trainer:
    world_size, estimated_stepping_batches, num_val_batches, num_test_batches = 1, 100, [3], [float("inf")]

    def __init__(self) -> None:
        self.global_step = 0
        self.callback_metrics: dict[str, Any] = {"train_term/l1": torch.tensor(0.1234), "val/AP": torch.tensor(0.5), "other": 1}


def run(report: ProgressReport, monkeypatch: pytest.MonkeyPatch, steps: int, *, terminal: bool) -> str:
    """``steps`` steps of one second each with 8 images, a validation, and a test."""
    out = io.StringIO()
    report.console = Console(file=out, force_terminal=terminal, width=160)
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock.now)
    trainer, module = Trainer(), None
    report.on_train_start(trainer, module)  # type: ignore[arg-type]
    for step in range(steps):
        clock.now += 1
        trainer.global_step = step + 1
        report.on_train_batch_end(trainer, module, None, [None] * 8, step)  # type: ignore[arg-type]
    report.on_validation_start(trainer, module)  # type: ignore[arg-type]
    report.on_validation_batch_end()
    report.on_validation_end(trainer, module)  # type: ignore[arg-type]
    report.on_train_end(trainer, module)  # type: ignore[arg-type]
    report.on_test_start(trainer, module)  # type: ignore[arg-type]
    report.on_test_batch_end()
    report.on_test_end(trainer, module)  # type: ignore[arg-type]
    report.teardown(trainer, module, "fit")  # type: ignore[arg-type]
    return out.getvalue()


def test_without_a_terminal_a_line_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = run(ProgressReport(every_seconds=10), monkeypatch, 25, terminal=False).splitlines()
    assert [line.partition("  ")[0] for line in lines] == ["step 10 / 100", "step 20 / 100"]
    assert "l1 0.123  val AP 0.500" in lines[0]
    assert "8 images/s" in lines[0]
    assert lines[0].endswith("1:30 left")


def test_a_count_shows_the_score_it_is_chosen_by() -> None:
    trainer: Any = SimpleNamespace(callback_metrics={"train_term/done_bce": torch.tensor(0.5), "val/pck384_5": torch.tensor(0.25)})
    assert "done_bce 0.5  val pck384_5 0.250" in ProgressReport(every_seconds=10)._terms(trainer)


def test_a_terminal_gets_a_bar_with_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    text = run(ProgressReport(every_seconds=10), monkeypatch, 3, terminal=True)
    for part in ("train", "3/100", "l1 0.123", "images/s", "validate", "evaluate"):
        assert part in text


@pytest.mark.parametrize("terminal", [False, True])
def test_disabled_means_silent(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    report = ProgressReport(every_seconds=1)
    report.disable()
    assert run(report, monkeypatch, 5, terminal=terminal) == ""


def test_an_error_ends_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    report = ProgressReport(every_seconds=1)
    report.console = Console(file=io.StringIO(), force_terminal=True)
    report.on_train_start(Trainer(), None)  # type: ignore[arg-type]
    assert report._progress is not None
    report.on_exception(Trainer(), None, RuntimeError())  # type: ignore[arg-type]
    assert report._progress is None
