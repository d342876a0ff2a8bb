"""What every check of an audit shares: its settings, and how a count becomes a finding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coordvlm.contracts import ResizeRule
from coordvlm.reports.audit_data import Example, Finding, Level


@dataclass(frozen=True, kw_only=True)
class CheckSettings:
    """Limits that are a matter of choice, from conf/audit.yaml.

    Args:
        num_examples: places named by each finding. num_images: decoded per split, drawn by ``seed``; all with ``full``.
        num_samples: looked at per split of a source that makes its images up.
        near_duplicate_iou: two boxes of one class in one image are one object annotated twice from here on.
        usual_share: a class in so many of the images is expected in all of them.
        near_bits: bits of 64 in which the difference hashes of near duplicates may differ. near_grey: mean difference of their small
            grey versions, in levels of 0..255.
        max_pixels: of a source image, above which it is refused. max_objects: targets above which an image is dropped or cut in training.
        resize: the model's rule, None if it is not known here.
    """

    num_examples: int
    num_images: int
    num_samples: int
    full: bool
    seed: int
    near_duplicate_iou: float
    usual_share: float
    near_bits: int
    near_grey: float
    max_pixels: int
    max_objects: int | None
    resize: ResizeRule | None


def percent(share: float) -> str:
    """``0.4 %``, ``12 %``; never a rounded nothing or a rounded everything."""
    if not share:
        return "0 %"
    if share < 0.001:
        return "< 0.1 %"
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    return f"{100 * share:.0f} %" if 0.1 <= share <= 0.9 or float(100 * share).is_integer() else f"{100 * share:.1f} %"


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Counts places of one kind in one split (or pair of splits) and makes findings of them.

    Args:
        of: how many places there are. place: position -> file, line or id. value: position -> what stands there, None: nothing to add.
    """

    topic: str
    split: str
    settings: CheckSettings
    of: int
    place: Callable[[int], str]
    value: Callable[[int], object] | None = None

    def __call__(
        self, check: str, hits: NDArray[np.int64] | Sequence[int], rule: str, level: Level, *, worse: tuple[float, Level] | None = None,
        value: Callable[[int], object] | None = None, details: Mapping[str, object] | None = None,
    ) -> Finding:
        """A finding.

        Args:
            hits: positions, the ones to be named first.
            level: if there is one. worse: (share, level) from which share on it is that instead.
        """
        number, value = len(hits), value or self.value
        share = number / self.of if self.of else 0.0
        reached = Level.OK if not number else worse[1] if worse and share >= worse[0] else level
        named = np.asarray(hits, dtype=np.int64)[: self.settings.num_examples].tolist()
        examples = tuple(Example(self.place(at), None if value is None else value(at)) for at in named)
        shown = f"{number:,} ({percent(share)})" if number else "0"
        return Finding(self.topic, check, self.split, reached, number, shown, rule, examples, {"of": self.of, **(details or {})})


def stated(topic: str, check: str, split: str, value: float, shown: str, rule: str, **details: object) -> Finding:
    """A finding that judges nothing."""
    return Finding(topic, check, split, Level.OK, value, shown, rule, (), details)
