from __future__ import annotations

import random
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from coordvlm.callbacks.checkpoint import FolderCheckpoint, load_trained, steps_done
from coordvlm.contracts import Contract, ResizeRule
from coordvlm.utils.errors import ConfigError, ContractError

CONTRACT = Contract(
    coords="k999", num_bins=1000, scale=999, format="objects", order="scan", prompt="p", class_list=False, markers=("<a>", "<b>"),
    coord_token="<{k}>", end_token="<e>", resize=ResizeRule(mode="square", patch=8, merge=2, size=(32, 32)),
)


class Trainer:
    """As much of a trainer as the callback asks for."""

    is_global_zero, sanity_checking = True, False
    state = SimpleNamespace(fn="fit")

    def __init__(self) -> None:
        self.global_step = 0
        self.callback_metrics: dict[str, Any] = {}

    def save_checkpoint(self, path: Path) -> None:
        torch.save({"global_step": self.global_step}, path)


class Model(nn.Linear):
    def trained_state(self) -> dict[str, torch.Tensor]:
        return {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}


@pytest.fixture
def parts(tmp_path: Path) -> tuple[FolderCheckpoint, Any, Any]:
    return FolderCheckpoint(tmp_path / "checkpoints", CONTRACT, monitor="val/AP"), Trainer(), Model(3, 2)


def validate(parts: tuple[FolderCheckpoint, Any, Any], value: float) -> dict[str, int]:
    """One validation; gives the step of every checkpoint there is."""
    callback, trainer, model = parts
    trainer.global_step += 10
    trainer.callback_metrics = {"val/AP": torch.tensor(value)}
    callback.on_validation_end(trainer, model)
    return {p.name: steps_done(p / "trainer.ckpt") for p in callback.folder.iterdir()}


def test_best_moves_only_when_the_value_improves(parts: tuple[FolderCheckpoint, Any, Any]) -> None:
    seen = [validate(parts, value) for value in (0.2, 0.1, 0.2, 0.3)]
    assert [s["last"] for s in seen] == [10, 20, 30, 40]
    assert [s["best"] for s in seen] == [10, 10, 10, 40]


def test_an_undefined_value_is_best_only_until_there_is_a_number(parts: tuple[FolderCheckpoint, Any, Any]) -> None:
    seen = [validate(parts, value) for value in (float("nan"), float("nan"), 0.0, float("nan"))]
    assert [s["best"] for s in seen] == [10, 20, 30, 30], "while there is none, what was trained longest"


@pytest.mark.parametrize("monitor", ["val/px384_median", "val/loss_x", "val/count_mae", "val_total_loss"])
def test_a_metric_that_is_better_the_lower_it_is_is_no_monitor(tmp_path: Path, monitor: str) -> None:
    with pytest.raises(ConfigError, match=f"monitor='{monitor}' is better the lower it is"):
        FolderCheckpoint(tmp_path, CONTRACT, monitor=monitor)


def test_zero_is_a_value(parts: tuple[FolderCheckpoint, Any, Any]) -> None:
    assert [validate(parts, 0.0)["best"], validate(parts, 0.0)["best"]] == [10, 10]


def test_an_unknown_monitor_is_named_with_what_is_logged(parts: tuple[FolderCheckpoint, Any, Any]) -> None:
    callback, trainer, model = parts
    trainer.callback_metrics = {"val/F1": torch.tensor(1.0)}
    with pytest.raises(ConfigError, match=r"monitor='val/AP' is not logged in validation; logged: val/F1"):
        callback.on_validation_end(trainer, model)


def test_validation_outside_training_saves_nothing(parts: tuple[FolderCheckpoint, Any, Any]) -> None:
    callback, trainer, model = parts
    trainer.state = SimpleNamespace(fn="validate")
    callback.on_validation_end(trainer, model)
    assert not callback.folder.exists()


def test_the_end_is_saved_unless_it_already_is(parts: tuple[FolderCheckpoint, Any, Any]) -> None:
    callback, trainer, model = parts
    validate(parts, 0.5)
    before = (callback.folder / "last" / "trainer.ckpt").stat().st_ino
    callback.on_train_end(trainer, model)
    assert (callback.folder / "last" / "trainer.ckpt").stat().st_ino == before
    trainer.global_step = 13
    callback.on_train_end(trainer, model)
    assert steps_done(callback.folder / "last" / "trainer.ckpt") == 13
    assert steps_done(callback.folder / "best" / "trainer.ckpt") == 10


def test_what_was_saved_comes_back(parts: tuple[FolderCheckpoint, Any, Any]) -> None:
    callback, _, model = parts
    model.bias.requires_grad_(False)
    validate(parts, 0.5)
    other = Model(3, 2)
    other.bias.requires_grad_(False)
    load_trained(callback.folder / "best", other, CONTRACT)
    assert torch.equal(other.weight, model.weight)
    assert not torch.equal(other.bias, model.bias)  # frozen: built again, not stored


def test_weights_of_another_model_are_refused_by_name(parts: tuple[FolderCheckpoint, Any, Any]) -> None:
    validate(parts, 0.5)
    folder = parts[0].folder / "best"
    with pytest.raises(ContractError, match=r"weight: checkpoint \(2, 3\), model \(2, 4\)"):
        load_trained(folder, Model(4, 2), CONTRACT)
    with pytest.raises(ContractError, match=r"missing 0\.weight[\s\S]*unknown weight"):
        load_trained(folder, nn.Sequential(nn.Linear(3, 2, bias=False)), CONTRACT)


def test_state_survives(parts: tuple[FolderCheckpoint, Any, Any]) -> None:
    validate(parts, 0.5)
    other = FolderCheckpoint(parts[0].folder, CONTRACT, monitor="val/AP")
    other.load_state_dict(parts[0].state_dict())
    assert [validate((other, *parts[1:]), value)["best"] for value in (0.4, 0.6)] == [10, 30]


def test_random_streams_go_on_where_they_stopped(parts: tuple[FolderCheckpoint, Any, Any], tmp_path: Path) -> None:
    def draw() -> list[float]:
        return [random.gauss(0, 1), np.random.normal(), torch.randn(1).item(), random.random(), np.random.rand()]

    callback, trainer, model = parts
    draw()
    state: dict[str, Any] = {}
    callback.on_save_checkpoint(trainer, model, state)
    torch.save(state, tmp_path / "x")
    expected = draw()
    draw()
    callback.on_load_checkpoint(trainer, model, torch.load(tmp_path / "x", weights_only=True))
    assert draw() == expected


@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint"])
def test_a_trainer_state_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "trainer.ckpt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ContractError, match=r"trainer\.ckpt: cannot go on from it, it cannot be read: \S"):
        steps_done(file)


def test_other_ranks_take_part_and_write_nothing(parts: tuple[FolderCheckpoint, Any, Any]) -> None:
    callback, trainer, model = parts
    asked: list[str] = []
    trainer.is_global_zero = False
    trainer.save_checkpoint = lambda path: asked.append("trainer")
    model.trained_state = lambda: asked.append("weights")
    trainer.global_step, trainer.callback_metrics = 10, {"val/AP": torch.tensor(0.5)}
    callback.on_validation_end(trainer, model)
    assert asked == ["trainer", "weights"] * 2  # last and best
    assert not callback.folder.exists()


def test_a_rank_goes_on_with_its_own_random_stream(parts: tuple[FolderCheckpoint, Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    callback, trainer, model = parts
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(torch.get_rng_state())

    def draw(rank: int) -> float:
        torch.manual_seed(9)
        monkeypatch.setattr("coordvlm.utils.collectives.rank", lambda: rank)
        rng: dict[str, Any] = {}
        callback.on_save_checkpoint(trainer, model, rng)
        first, second = ({**rng["rng"], "torch": state} for state in states)
        callback.on_load_checkpoint(trainer, model, {"rng": first, "rng_of_other_ranks": [second]})
        return torch.rand(1).item()

    fresh = [torch.rand(1, generator=torch.Generator().manual_seed(seed)).item() for seed in (1, 2, 9)]
    assert [draw(rank) for rank in range(3)] == fresh  # the third one is new and keeps what it was seeded with


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_step_finish_and_a_second_one_does_not(parts: tuple[FolderCheckpoint, Any, Any], number: int) -> None:
    callback, trainer, model = parts
    before = signal.getsignal(number)
    callback.on_fit_start(trainer, model)
    try:
        signal.raise_signal(number)
        window = SimpleNamespace(index=0, size=2)
        callback.on_train_batch_end(trainer, model, None, SimpleNamespace(window=window), 0)
        assert not callback.folder.exists()
        window.index, trainer.global_step = 1, 7
        with pytest.raises(KeyboardInterrupt):
            callback.on_train_batch_end(trainer, model, None, SimpleNamespace(window=window), 1)
        assert steps_done(callback.folder / "last" / "trainer.ckpt") == 7
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    finally:
        callback.teardown(trainer, model, "fit")
    assert signal.getsignal(number) is before
