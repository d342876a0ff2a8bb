"""How much Acc@0.5 falls when a model is given the wrong phrase, or no picture.

Shapes: I phrases, B replicates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from coordvlm.contracts.evaluation import Interval
from coordvlm.contracts.sample import PhraseTruth
from coordvlm.metrics.arrays import FloatArray
from coordvlm.metrics.bootstrap import percentile_interval, weighted_ratio
from coordvlm.metrics.phrases import Outcomes, phrase_weights

#: A smaller fall than this means that the model does not look.
LEAST_DROP = 0.05
#: Control -> what the model was kept from.
CONTROLS = {"shuffled": "phrase", "blank": "image"}


@dataclass(frozen=True)
class Control:
    """One control, on the same phrases as the figure that it is compared with.

    Args:
        name: one of ``CONTROLS``. phrases: with a target, on which both were measured. unchanged: phrases that stayed as they were.
        plain, controlled: Acc@0.5 without and with it. drop: their difference, with a paired interval over source images.
    """

    name: str
    phrases: int
    plain: float
    controlled: Interval
    drop: Interval
    unchanged: int = 0

    @property
    def ignored(self) -> bool:
        """The model does as well without: the fall is below ``LEAST_DROP``, though there was something to lose."""
        return self.plain >= LEAST_DROP and self.drop.value < LEAST_DROP

    @property
    def sentence(self) -> str:
        """What was found, in words."""
        given = "With the phrases permuted" if self.name == "shuffled" else "With blank images"
        if not self.phrases:
            return f"{given} nothing can be measured: no phrase has a target."
        interval = "" if math.isnan(self.drop.low) else f" [{self.drop.low:.3f}, {self.drop.high:.3f}]"
        kept = f" ({self.unchanged} kept their own: more than half are equal)" if self.unchanged else ""
        fell = f"from {self.plain:.3f} to {self.controlled.value:.3f}, a drop of {self.drop.value:.3f}{interval}"
        fell = fell.replace("-", "−")
        return f"{given}, Acc@0.5 goes {fell}, on {self.phrases:,} phrases{kept}: {self._judgement}."

    @property
    def _judgement(self) -> str:
        kept_from = CONTROLS[self.name]
        if self.ignored:
            return f"the model does not read the {kept_from}"
        if self.plain < LEAST_DROP:
            return "there was nothing to lose, so this says nothing"
        return f"the model reads the {kept_from}" if self.drop.low > 0 else "too few phrases to be sure"


def control(
    name: str, truth: PhraseTruth, plain: Outcomes, controlled: Outcomes, *, num_replicates: int, seed: int, unchanged: int = 0
) -> Control:
    """Compare two sets of answers to the same phrases.

    Args:
        truth: of the phrases of the control. plain, controlled: their outcomes.
        num_replicates, seed: of the weights over source images.
    Raises:
        ValueError: outcomes of other phrases than the truth's.
    """
    for found in (plain, controlled):
        if not np.array_equal(found.ids, truth.image_ids):
            raise ValueError(f"the outcomes of a control must be of its own {len(truth.image_ids)} phrases, got {len(found)}")
    target = plain.has_target.astype(np.float64)
    hits = np.stack([plain.hit(0.5), controlled.hit(0.5)]).astype(np.float64)

    def accuracy(weights: FloatArray) -> FloatArray:
        return weighted_ratio(hits, np.stack([target, target]), weights)

    before, after = accuracy(np.ones((len(target), 1)))[:, 0].tolist()
    replicates = accuracy(phrase_weights(truth, num_replicates, seed))
    return Control(
        name, int(target.sum()), before, percentile_interval(after, replicates[1]),
        percentile_interval(before - after, replicates[0] - replicates[1]), unchanged,
    )


def controls_to_json(found: dict[str, Control]) -> dict[str, object]:
    """The entry ``controls`` of metrics.json; strict JSON, undefined values are null."""

    def plain(value: float) -> float | None:
        return value if math.isfinite(value) else None

    def interval(value: Interval) -> dict[str, float | None]:
        return {"value": plain(value.value), "low": plain(value.low), "high": plain(value.high)}

    out: dict[str, object] = {}
    for name, c in found.items():
        out |= {f"acc_50_{name}": interval(c.controlled), f"drop_{name}": interval(c.drop), f"sentence_{name}": c.sentence}
    if found:
        first = next(iter(found.values()))
        out = {"phrases": first.phrases, "acc_50": plain(first.plain), "unchanged": sum(c.unchanged for c in found.values())} | out
        out["ignored"] = [CONTROLS[name] for name, c in found.items() if c.ignored]
    return out
