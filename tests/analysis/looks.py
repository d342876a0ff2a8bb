"""Runs of clips by hand: answers at random with known chances to be right, evaluated by the project's own metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from coordvlm.analysis.runs import Run
from coordvlm.contracts import ArmAnswer, Evaluation, Prediction
from coordvlm.contracts.clip import ClipTruth
from coordvlm.metrics.foveation import FoveationMetric
from tests.metrics.clip_cases import clips

ARMS = ("coarse", "fine", "swap", "random", "no_image")
WORDS = clips(*["word"] * 200, kinds=["qa"] * 200)
POINTS = clips(*[(192.0, 192.0)] * 200, kinds=["ball"] * 200)
#: Arm -> how often it is right; its loss is 0.1 where right and 3 where wrong. Of points: px that it is off by, in the median.
SEEING = {"coarse": 0.25, "fine": 0.95, "swap": 0.2, "random": 0.2, "no_image": 0.15}
BLIND = dict.fromkeys(ARMS, 0.5)
NEAR = {"coarse": 40.0, "fine": 5.0, "swap": 40.0, "random": 50.0, "no_image": 80.0}


def answers(truth: ClipTruth, arms: Mapping[str, float], *, seed: int, common: bool = False) -> list[Prediction]:
    """common: all arms are right on the same clips, so that only their chances tell them apart."""
    rng = np.random.default_rng(seed)
    out = []
    for clip_id, (width, height) in zip(truth.image_ids.tolist(), truth.image_wh.tolist(), strict=True):
        drawn = rng.uniform()
        said = []
        for arm, level in arms.items():
            at = truth.point_of(clip_id)
            right = (drawn if common else rng.uniform()) < level
            point = None if at is None else (at[0] + level * float(rng.uniform(0.5, 1.5)), at[1])
            said.append(ArmAnswer(arm, "word", point, 0.1 if right or at is not None else 3.0, 2, 2 if right else 1))
        out.append(Prediction(clip_id, (int(width), int(height)), (), "word", arms=tuple(said)))
    return out


def evaluate(truth: ClipTruth, predictions: list[Prediction], *, coarse: float, fine: float, replicates: int = 100) -> Evaluation:
    metric = FoveationMetric(num_replicates=replicates, seed=0, coarse_weight=coarse, fine_weight=fine, truth=truth)
    metric.update(predictions)
    return metric.compute()


def run(
    arms: Mapping[str, float] = SEEING, *, seed: int = 0, coarse: float = 1.0, fine: float = 1.0, truth: ClipTruth = WORDS,
    steps: int = 100, common: bool = False, **config: Any,
) -> Run:
    """One finished run. config: further settings, ``module__queries="random"``."""
    found = evaluate(truth, answers(truth, arms, seed=seed + 1000, common=common), coarse=coarse, fine=fine)
    settings = {
        "seed": seed, "module.coarse_weight": coarse, "module.fine_weight": fine, "metrics.coarse_weight": coarse,
        "metrics.fine_weight": fine, "module.queries": "llm", "module.iterations": 1, "trainer.max_steps": steps,
        **{name.replace("__", "."): value for name, value in config.items()},
    }
    name = "_".join(map(str, (coarse, fine, seed, *config.values())))
    return Run(
        folder=Path("/runs") / name, record={"steps": steps, "started": "2026"}, config=settings, seed=seed,
        values={n: float(i.value) for n, i in found.metrics.items()}, replicates=dict(found.replicates), image_ids=truth.image_ids,
        bootstrap_seed=0, protocol={"split": "test", "readout": "local", "data": truth.digest()}, protocol_hash="ab", readouts={},
        counts=dict(found.counts), timing={}, curves={}, contract=None,
    )


def with_values(of: Run, **values: float) -> Run:
    """The run with other values of metrics; their replicates are moved along."""
    moved = {n: of.replicates[n] + (v - of.values[n]) for n, v in values.items()}
    return replace(of, values={**of.values, **values}, replicates={**of.replicates, **moved})
