"""Recipe x format x family: each combination takes a training step and answers a prompt, or is refused by name.

The fast suite covers every pair of options, the slow one every combination.
"""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path

import pytest
import torch

from coordvlm import build
from coordvlm.contracts import Prediction
from coordvlm.utils.errors import ConfigError
from tests.compose import compose
from tests.recipes import ANSWERING

RECIPES = ANSWERING  # counting has one format of its own
FAMILIES = ("tiny", "tiny_qwen2vl", "tiny_qwen25vl")
#: sequence, coords
FORMATS = (
    ("objects", "k999"), ("objects", "k1000"), ("json_coord", "k999"), ("json_coord", "k1000"), ("json_digits", "qwen1000"),
    ("json_digits", "pixel"), ("qwen2_box", "qwen1000"), ("qwen2_box", "pixel"), ("json_unit", "unit"),
)
TOKENS = ("objects", "json_coord")
Case = tuple[str, tuple[str, str], str]


def pairwise() -> list[Case]:
    """All (recipe, format) pairs; families rotate so that every (recipe, family) and (format, family) pair is there too."""
    return [(r, f, FAMILIES[(i + j) % 3]) for i, r in enumerate(RECIPES) for j, f in enumerate(FORMATS)]


def name(case: Case) -> str:
    return f"{case[0]}-{'-'.join(case[1])}-{case[2]}"


def teaches(recipe: str, sequence: str) -> bool:
    """Digits have no coordinate slots: only the one mean over all supervised tokens can teach them."""
    return sequence in TOKENS or recipe in ("ce", "ce_box_head")


def experiment(folder: Path, case: Case, *overrides: str) -> build.Experiment:
    recipe, (sequence, coords), family = case
    small = ("data.source.num_train=8", "data.source.num_val=4", "data.source.num_test=4", "data.val_images=2", "data.num_workers=0",
             "data.batch_size=2", "data.eval_batch_size=2", "metrics.num_replicates=0", "decode.max_new_tokens=6")
    return build.build_experiment(
        compose(folder, f"loss={recipe}", f"sequence={sequence}", f"coords={coords}", f"model={family}", *small, *overrides)
    )


@cache
def seen_pairs() -> tuple[set[tuple[object, object]], ...]:
    cases = pairwise()
    return tuple({(c[a], c[b]) for c in cases} for a, b in itertools.combinations(range(3), 2))


def test_every_pair_is_covered() -> None:
    options = (RECIPES, FORMATS, FAMILIES)
    for (a, b), seen in zip(itertools.combinations(range(3), 2), seen_pairs(), strict=True):
        assert seen == set(itertools.product(options[a], options[b]))


def run(folder: Path, case: Case) -> None:
    recipe, (sequence, _), _ = case
    if not teaches(recipe, sequence):
        with pytest.raises(ConfigError, match=f"sequence.format={sequence}"):
            experiment(folder, case)
        return
    mine = experiment(folder, case)
    module, losses = mine.module, mine.losses
    batch = mine.model.encoder.collate([mine.model.encoder.encode(s, epoch=0) for s in mine.data.first_samples()])
    loss = losses(mine.model.backbone(batch, losses.needs), batch, losses.counts(batch))
    loss.total.backward()
    trained = [(n, p) for n, p in mine.model.backbone.named_parameters() if p.requires_grad]
    missing = [n for n, p in trained if p.grad is None or not torch.isfinite(p.grad).all()]
    assert torch.isfinite(loss.total)
    assert not missing, missing[:3]
    before = loss.total.item()
    with torch.no_grad():
        for _, p in trained:
            p -= 1e-3 * p.grad / (p.grad.norm() + 1e-9) * p.norm()
        after = losses(mine.model.backbone(batch, losses.needs), batch, losses.counts(batch)).total
    assert after.item() < before
    read = module.predict_batch(batch, list(module.test_metrics))
    assert all(isinstance(p, Prediction) and p.sample_id in batch.ids for predictions in read.values() for p in predictions)


@pytest.mark.parametrize("case", pairwise(), ids=name)
def test_pairwise(tmp_path: Path, case: Case) -> None:
    run(tmp_path, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", sorted(set(itertools.product(RECIPES, FORMATS, FAMILIES)) - set(pairwise())), ids=name)
def test_every_combination(tmp_path: Path, case: Case) -> None:
    run(tmp_path, case)


@pytest.mark.parametrize(("sequence", "coords"), sorted(
    set(itertools.product([f[0] for f in FORMATS], sorted({f[1] for f in FORMATS}))) - set(FORMATS)
))
def test_pairs_that_no_model_writes_are_refused_with_those_that_fit(tmp_path: Path, sequence: str, coords: str) -> None:
    with pytest.raises(ConfigError, match=f"sequence={sequence} cannot write coords={coords}: use coords="):
        experiment(tmp_path, ("ce", (sequence, coords), "tiny"))
