"""Two real processes train, validate and score exactly like one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from coordvlm.utils.devices import usable_cpus
from coordvlm.utils.launch import _free_port
from tests.e2e import ranks

pytestmark = [
    pytest.mark.skipif(usable_cpus() < 2, reason="two processes want two cores"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Everything two ranks computed, in one go."""
    folder = tmp_path_factory.mktemp("ranks")
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in range(2):
        with (folder / f"log{rank}").open("w") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.e2e.ranks", str(folder / "out.pt")], stdout=log, stderr=subprocess.STDOUT,
                    env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, cwd=Path(__file__).parents[2],
                )
            )
    try:
        codes = [p.wait(timeout=240) for p in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], (folder / "log0").read_text()[-3000:] + (folder / "log1").read_text()[-3000:]
    found: dict[str, Any] = torch.load(folder / "out.pt", weights_only=False)
    return found


def worst(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Largest difference, relative to the largest value."""
    assert mine.keys() == theirs.keys()
    return max(float((mine[n] - theirs[n]).abs().max()) for n in theirs) / max(float(g.abs().max()) for g in theirs.values())


@pytest.fixture(scope="module")
def whole() -> dict[str, dict[str, torch.Tensor]]:
    return ranks.gradients(ranks.WHOLE, ranks.RECIPES, torch.float64)


@pytest.mark.parametrize("recipe", ranks.RECIPES)
def test_the_gradient_of_a_step_is_that_of_one_process(two: dict[str, Any], whole: dict[str, Any], recipe: str) -> None:
    """Whatever is cut how between ranks and micro-batches, also where a rank has no slot, nothing at all, or the window ends early."""
    others = {k: v for k, v in two["double"].items() if k.startswith(f"{recipe}/")}
    assert len(others) == 5
    off = {name: worst(found, whole[f"{recipe}/1x1"]) for name, found in others.items()}
    assert max(off.values()) <= 1e-10, off


def test_nor_does_it_depend_on_micro_batches_alone(whole: dict[str, Any]) -> None:
    alone = ranks.gradients(ranks.ONE, ["hybrid"], torch.float64)
    assert len(alone) == 3
    assert max(worst(found, whole["hybrid/1x1"]) for found in alone.values()) <= 1e-10


def test_in_single_precision_too(two: dict[str, Any]) -> None:
    alone = ranks.gradients(ranks.WHOLE, ["hybrid"], torch.float32)
    assert max(worst(found, alone["hybrid/1x1"]) for found in two["single"].values()) <= 1e-5


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return ranks.scores()


def test_validation_logs_the_same_values(two: dict[str, Any], one: dict[str, Any]) -> None:
    mine, theirs = two["scores"]["validation"], one["validation"]
    assert {"val_total_loss", "val_term/giou", "val_iou", "val/AP"} <= set(theirs)
    assert mine == pytest.approx(theirs, rel=1e-5, nan_ok=True)


def test_a_rank_that_saw_no_image_changes_no_value(two: dict[str, Any], one: dict[str, Any]) -> None:
    assert two["scores"]["one rank alone"] == pytest.approx(one["one rank alone"], rel=1e-6)


def test_an_odd_number_of_images_is_scored_once_each(two: dict[str, Any], one: dict[str, Any]) -> None:
    same: Callable[[str], bool] = lambda key: two["scores"][key] == one[key]  # noqa: E731
    assert one["counts"]["images"] == 7
    assert one["counts"]["sampler_duplicates"] == 0
    assert same("counts")
    assert str(two["scores"]["metrics"]) == str(one["metrics"])  # as text: NaN equals NaN
    assert str(two["scores"]["replicates"]) == str(one["replicates"])
    assert len(one["lines"].splitlines()) == 7


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_clipped_steps_lead_to_the_same_weights(two: dict[str, Any], kind: str) -> None:
    assert worst(two["course"][kind], ranks.course(None)) < 1e-9
