from __future__ import annotations

import lightning
import pytest
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from coordvlm.modules.precision import BFloat16Weights
from coordvlm.modules.strategies import ShardedStrategy, trainer_arguments
from coordvlm.utils import devices

CPU = {"accelerator": "cpu", "devices": 2, "strategy": "auto", "precision": "auto"}


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is the first of two that were started together."""
    monkeypatch.setattr(devices, "usable_cpus", lambda: 2)
    for name, value in {"COORDVLM_JOB": "/nowhere", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)


def made(**trainer: object) -> lightning.Trainer:
    return lightning.Trainer(**trainer_arguments({**CPU, **trainer}), logger=False, enable_checkpointing=False, enable_progress_bar=False)


@pytest.mark.usefixtures("ranks")
@pytest.mark.parametrize(("name", "kind"), [("auto", DDPStrategy), ("ddp", DDPStrategy), ("fsdp", ShardedStrategy)])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_ranks_get_the_strategy_and_never_start_processes_themselves(name: str, kind: type, precision: str) -> None:
    trainer = made(strategy=name, precision=precision)
    assert isinstance(trainer.strategy, kind)
    assert trainer.precision == precision
    assert isinstance(trainer.precision_plugin, BFloat16Weights) == (precision == "bf16-true")
    assert (trainer.world_size, trainer.global_rank) == (2, 0)
    assert trainer.strategy.cluster_environment.creates_processes_externally  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["auto", "ddp", "fsdp"])
def test_outside_of_ranks_there_is_one_process(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The supervisor builds no trainer; whoever does without being a rank works alone."""
    monkeypatch.setattr(devices, "usable_cpus", lambda: 2)
    trainer = made(strategy=name)
    assert isinstance(trainer.strategy, SingleDeviceStrategy)
    assert trainer.world_size == 1
