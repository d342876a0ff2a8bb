from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from coordvlm.utils import devices
from coordvlm.utils.devices import settle
from coordvlm.utils.errors import ConfigError


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine with 4 cores, no Apple GPU and as many CUDA devices as the test says; none at first."""
    there = {"gpus": 0}
    monkeypatch.setattr(devices, "_num_gpus", lambda: there["gpus"])
    monkeypatch.setattr(devices, "_has_mps", lambda: False)
    monkeypatch.setattr(devices, "usable_cpus", lambda: 4)
    return there


def test_auto_is_every_gpu_or_one_cpu_process(machine: dict[str, int]) -> None:
    auto = {"accelerator": "auto", "devices": "auto", "strategy": "ddp", "precision": "auto"}
    assert settle(auto) == devices.Devices("cpu", (0,), "single", "32-true")
    machine["gpus"] = 3
    assert settle(auto) == devices.Devices("gpu", (0, 1, 2), "ddp", "bf16-mixed")
    assert settle({**auto, "accelerator": "cpu", "devices": 2}) == devices.Devices("cpu", (0, 1), "ddp", "32-true")


@pytest.mark.parametrize(
    ("given", "indices"),
    [(1, (0,)), (2, (0, 1)), ("2", (0, 1)), ("0,2", (0, 2)), ("[1]", (1,)), ([2, 0], (2, 0)), (-1, (0, 1, 2)), ("1,", (1,)),
     (OmegaConf.create([0, 1]), (0, 1))],
)  # fmt: skip
def test_gpus_by_number_list_or_text(machine: dict[str, int], given: Any, indices: tuple[int, ...]) -> None:
    machine["gpus"] = 3
    assert settle({"accelerator": "gpu", "devices": given}).indices == indices


@pytest.mark.parametrize(("given", "meant"), [("32", "32-true"), (32, "32-true"), ("bf16", "bf16-mixed"), ("bf16-true", "bf16-true")])
def test_names_of_precisions(given: Any, meant: str) -> None:
    assert settle({"accelerator": "cpu", "devices": 1, "precision": given}).precision == meant


@pytest.mark.parametrize(
    ("trainer", "gpus", "message"),
    [
        ({"accelerator": "cpu", "devices": 64}, 0, "trainer.devices=64: there are only 4 CPU cores here"),
        ({"accelerator": "gpu", "devices": 4}, 1, "trainer.devices=4: there is only 1 CUDA device here"),
        ({"accelerator": "gpu", "devices": [0, 5]}, 2, r"trainer.devices=\[0, 5\]: no device 5, there are 2 CUDA devices here"),
        ({"accelerator": "gpu", "devices": [1, 1]}, 2, "named twice"),
        ({"accelerator": "gpu"}, 0, "trainer.accelerator=gpu: torch sees no CUDA device here; use trainer=cpu"),
        ({"accelerator": "mps"}, 0, "no Apple GPU"),
        ({"accelerator": "gqu"}, 0, "trainer.accelerator='gqu' is not known; nearest: gpu"),
        ({"accelerator": "cpu", "devices": 0}, 0, "trainer.devices=0: must be at least 1"),
        ({"accelerator": "cpu", "devices": [0, 1]}, 0, "counted, not chosen; write trainer.devices=2"),
        ({"accelerator": "cpu", "devices": "two"}, 0, "trainer.devices='two': must be a number"),
        ({"accelerator": "cpu", "devices": True}, 0, "must be a number"),
        ({"accelerator": "cpu", "devices": None}, 0, "must be a number"),
        ({"accelerator": "cpu", "strategy": "fdsp"}, 0, "trainer.strategy='fdsp' is not known; nearest: fsdp; all: auto, ddp, fsdp"),
        ({"accelerator": "cpu", "precision": "bf16-mixd"}, 0, "nearest: bf16-mixed; all: auto, 32-true, bf16-mixed, bf16-true"),
        ({"accelerator": "cpu", "precision": "16-mixed"}, 0, "trainer.precision='16-mixed' is not known"),
        ({"accelerator": "cpu", "num_nodes": 2}, 0, "one machine only"),
    ],
)
def test_what_this_machine_does_not_have_is_refused(machine: dict[str, int], trainer: dict[str, Any], gpus: int, message: str) -> None:
    machine["gpus"] = gpus
    with pytest.raises(ConfigError, match=message):
        settle(trainer)
