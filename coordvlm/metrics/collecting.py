"""What the metrics of decoded answers share: they keep predictions as objects, gather them once, and know which samples exist."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, cast

import torch.distributed as dist
from torchmetrics import Metric

from coordvlm.contracts.evaluation import Evaluation
from coordvlm.contracts.prediction import Prediction
from coordvlm.contracts.sample import GroundTruth


class CollectingMetric(Metric):
    """Predictions in, an ``Evaluation`` out.

    Predictions are kept as Python objects on each rank and gathered once, in ``compute``; nothing enters a ``state_dict``.
    A sample without a prediction stays in the denominator. Two predictions for one sample are an error on one rank; across ranks
    they come from a distributed sampler that pads its last round, and the one of the lowest rank is kept.

    Args:
        num_replicates: bootstrap replicates; 0 gives values without intervals.
        seed: of the weights. Runs on the same samples and seed have paired replicates.
    """

    full_state_update = False
    higher_is_better = True
    #: What one prediction is an answer to, in messages.
    unit = "image"

    def __init__(self, *, num_replicates: int, seed: int) -> None:
        if num_replicates < 0 or seed < 0:
            raise ValueError(f"num_replicates and seed must not be negative, got {num_replicates} and {seed}")
        super().__init__(sync_on_compute=False)
        self.num_replicates, self.seed = num_replicates, seed
        self._predictions: dict[int, Prediction] = {}
        self._truth: GroundTruth | None = None

    @abstractmethod
    def check_truth(self, truth: GroundTruth) -> None:
        """A truth that this metric cannot evaluate against is a ``ValueError``."""

    @abstractmethod
    def evaluate(self, predictions: Mapping[int, Prediction], *, sampler_duplicates: int) -> Evaluation:
        """Evaluate all samples of the truth. ``sampler_duplicates``: predictions that several ranks made and one was kept of."""

    @property
    def truth(self) -> GroundTruth:
        """Raises ``RuntimeError`` before ``set_truth``."""
        if self._truth is None:
            raise RuntimeError("the metric has no truth yet: call set_truth before update")
        return self._truth

    @property
    def predictions(self) -> tuple[Prediction, ...]:
        """This rank's predictions so far, in the order they came."""
        return tuple(self._predictions.values())

    def set_truth(self, truth: GroundTruth) -> None:
        """Evaluate against this truth from now on; predictions so far are dropped. Inconsistent ids are a ``ValueError``."""
        self.check_truth(truth)
        self._truth, self._known_ids = truth, frozenset(truth.image_ids.tolist())
        self.reset()

    def reset(self) -> None:
        """Forget predictions; the truth stays."""
        super().reset()
        self._predictions = {}

    def update(self, predictions: Sequence[Prediction]) -> None:
        """Add answers.

        Raises:
            ValueError: a sample that the truth does not have, or a second prediction for one that was already given; nothing of
                the call is added then.
        """
        self.truth  # noqa: B018 - refuse before anything is stored
        new: dict[int, Prediction] = {}
        for prediction in predictions:
            sample_id = prediction.sample_id
            if sample_id not in self._known_ids:
                known = f"the truth ({len(self._known_ids)} {self.unit}s)"
                raise ValueError(f"prediction for {self.unit} {sample_id!r}, which {known} does not have")
            if sample_id in self._predictions or sample_id in new:
                raise ValueError(f"{self.unit} {sample_id!r} was predicted twice; its boxes would count double")
            new[int(sample_id)] = prediction
        self._predictions |= new

    def compute(self) -> Evaluation:
        """Evaluate all samples of the truth; on several ranks every rank returns the same."""
        self.truth  # noqa: B018 - refuse before a collective
        predictions, repeated = self._gather()
        return self.evaluate(predictions, sampler_duplicates=repeated)

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        """Moving a module that holds this metric moves nothing: there are no tensors, and results are frozen."""
        return self

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Not meaningful: the metric of a batch is not a part of the metric of a set."""
        raise TypeError(f"{type(self).__name__} has no per-batch value: call update(predictions), then compute()")

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        """The base class wraps results in tensor handling that refuses frozen dataclasses; caching is all that is wanted."""

        @functools.wraps(compute)
        def cached() -> Evaluation:
            if self._computed is None:
                self._computed = compute()
            return cast(Evaluation, self._computed)

        return cached

    def _gather(self) -> tuple[dict[int, Prediction], int]:
        """All ranks' predictions by sample id, and how many came twice. A collective when a process group is up."""
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return self._predictions, 0
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, self._predictions)
        merged: dict[int, Prediction] = {}
        for part in reversed(parts):
            merged |= part
        return merged, sum(len(part) for part in parts) - len(merged)
