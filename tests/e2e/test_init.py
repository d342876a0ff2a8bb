"""A warm start: the weights of one run, everything else as this run says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.e2e.commands import FAST, Ran, finished, refusal, train

STILL = ("optim.lr=1e-12", "optim.muon_lr=1e-12", "optim.weight_decay=0", "trainer.max_steps=1")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def first(outputs: Path) -> Ran:
    return finished(outputs, "seed=3")


def weights(run: Ran, name: str) -> dict[str, torch.Tensor]:
    return load_file(run.run / "checkpoints" / name / "trained.safetensors")


def test_training_starts_from_its_weights_with_another_prompt_and_order(outputs: Path, first: Ran) -> None:
    second = finished(outputs, f"init={first.run}", "sequence.prompt=Find them.", "sequence.order=size", *STILL)
    assert second.record["started_from"].startswith(str(first.run))
    before, after = weights(first, Path(second.record["started_from"]).name), weights(second, "last")
    fresh = weights(finished(outputs, *STILL), "last")
    assert before.keys() == after.keys()
    moved = [n for n in before if not torch.allclose(before[n], after[n], atol=1e-6)]
    assert not moved
    assert any(not torch.allclose(fresh[n], after[n], atol=1e-3) for n in fresh), "the seed alone gives other weights"


def test_tokens_that_mean_something_else_are_refused(outputs: Path, first: Ran) -> None:
    said = refusal(train(outputs, *FAST, f"init={first.run}", "coords=k1000"))
    assert "coords: the checkpoint has 'k999', this run's config has 'k1000'" in said


def test_a_run_that_is_not_there_is_refused_before_anything_is_built(outputs: Path) -> None:
    ran = train(outputs, *FAST, "init=no/such/run")
    assert "no/such/run" in refusal(ran)
    assert ran.folder is None or not (ran.run / "first_batch.html").exists()
