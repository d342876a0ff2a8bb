"""Clips and answers to them for tests, by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from coordvlm.contracts import ArmAnswer, Evaluation, Prediction
from coordvlm.contracts.clip import ClipTruth
from coordvlm.metrics.foveation import FoveationMetric

Point = tuple[float, float]


def clips(
    *answers: str | Point, kinds: Sequence[str] | None = None, source: Sequence[int] | None = None, size: tuple[int, int] = (384, 384)
) -> ClipTruth:
    """Clips 1, 2, .. answered by these words, or by points in source px."""
    ids = list(range(1, len(answers) + 1))
    usual = ["qa" if isinstance(a, str) else "ball" for a in answers]
    return ClipTruth.of(
        ids=ids, questions=[f"question {i}" for i in ids], answers=[a if isinstance(a, str) else "" for a in answers],
        kinds=list(kinds) if kinds is not None else usual, source_clip=list(source or ids),
        sizes=[size] * len(ids), points=[None if isinstance(a, str) else a for a in answers],
    )


def said(clip_id: int, arms: Mapping[str, tuple[float, int, int] | tuple[float, int, int, Point | None]]) -> Prediction:
    """Arm -> (nll, tokens, correct tokens[, point])."""
    answers = tuple(ArmAnswer(arm, "word", v[3] if len(v) > 3 else None, *v[:3]) for arm, v in arms.items())  # type: ignore[misc]
    return Prediction(clip_id, (384, 384), (), arms=answers)


def evaluate(
    truth: ClipTruth, answers: Sequence[Prediction], *, coarse: float = 1.0, fine: float = 1.0, num_replicates: int = 0, seed: int = 0
) -> Evaluation:
    """What the metric says of these answers; coarse, fine: weights in training."""
    metric = FoveationMetric(num_replicates=num_replicates, seed=seed, coarse_weight=coarse, fine_weight=fine, truth=truth)
    metric.update(answers)
    return metric.compute()


def values(truth: ClipTruth, answers: Sequence[Prediction], **options: float) -> dict[str, float]:
    """Metric -> its value."""
    return {name: interval.value for name, interval in evaluate(truth, answers, **options).metrics.items()}  # type: ignore[arg-type]
