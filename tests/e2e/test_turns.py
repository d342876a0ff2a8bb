"""Tasks that take turns on two real processes: the weights of one process, with no parameter left out of a backward."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from coordvlm.utils.devices import usable_cpus
from coordvlm.utils.launch import _free_port
from tests.e2e import turns

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(usable_cpus() < 2, reason="two processes want two cores"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("turns")
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in range(2):
        with (folder / f"log{rank}").open("w") as log:
            command = [sys.executable, "-m", "tests.e2e.turns", str(folder / "out.pt")]
            env = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env, cwd=Path(__file__).parents[2]))
    try:
        codes = [p.wait(timeout=240) for p in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], (folder / "log0").read_text()[-3000:] + (folder / "log1").read_text()[-3000:]
    found: dict[str, dict[str, torch.Tensor]] = torch.load(folder / "out.pt")
    return found


@pytest.mark.parametrize("kind", turns.KINDS)
def test_two_processes_lead_to_the_weights_of_one(two: dict[str, dict[str, torch.Tensor]], kind: str) -> None:
    """And to the same norms and losses in the gradient watch, which are those of all ranks."""
    alone = turns.course(turns.KINDS[kind], turns.ONE, None)
    assert alone.keys() == two[kind].keys()
    assert any(name.startswith("norm ") for name in alone)
    off = {name: float((two[kind][name] - value).abs().max() / value.abs().max().clamp(min=1e-3)) for name, value in alone.items()}
    weights = {name: x for name, x in off.items() if not name.startswith(("norm ", "loss "))}
    assert max(weights.values()) < 1e-8, sorted(weights.items(), key=lambda x: -x[1])[:3]
    assert max(off.values()) < 1e-5, sorted(off.items(), key=lambda x: -x[1])[:3]
