"""Which step of a count a sample asks for: how many objects are marked, which ones, and what comes next.

Shapes: N objects of the category, k of them marked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coordvlm.utils.errors import ConfigError

MODES, TARGETS = ("regression", "classification", "mixed"), ("next", "nearest")
#: Share of the questions of ``classification`` with k = N and with k = N - 1; the others are uniform below.
ALL_MARKED, LAST_LEFT = 0.5, 0.25


@dataclass(frozen=True)
class Step:
    """One step of a count; indices into the objects in the order of counting.

    Args:
        marked: int64[k], in the order in which they were marked. unmarked: int64[N - k], ascending; the first one is the target.
    """

    marked: NDArray[np.int64]
    unmarked: NDArray[np.int64]


@dataclass(frozen=True)
class Steps:
    """Draws steps (SPEC 8).

    | mode | k |
    |---|---|
    | ``regression`` | uniform in 0 .. N - 1; 0 where N = 0. The done head learns nothing |
    | ``classification`` | N for half of the questions, N - 1 for a quarter, uniform in 0 .. N - 2 for the rest, which is 0 where N = 1 |
    | ``mixed`` | ``classification`` for ``done_share`` of the questions, else ``regression`` |

    Args:
        mode: see the table. done_share: of ``mixed``; has no effect in other modes.
        target: ``next`` marks the first k objects in order, and only the next one is right. ``nearest`` marks any k, in any order, and any
            unmarked object is right; where one has to be named it is the first in order.
    """

    mode: str
    done_share: float
    target: str

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(f"sequence.mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if self.target not in TARGETS:
            raise ConfigError(f"sequence.target must be one of {', '.join(TARGETS)}, got {self.target!r}")
        if isinstance(self.done_share, bool) or not isinstance(self.done_share, (int, float)) or not 0 <= self.done_share <= 1:
            raise ConfigError(f"sequence.done_share must be a number in [0, 1], got {self.done_share!r}")

    @property
    def asks_done(self) -> bool:
        """Whether questions teach when all is marked."""
        return self.mode != "regression"

    @property
    def any_unmarked(self) -> bool:
        """Whether every unmarked object is a right answer."""
        return self.target == "nearest"

    def draw(self, num: int, rng: np.random.Generator) -> Step:
        """A step of a count of N = ``num`` objects."""
        return self.at(num, self._marked(num, rng), rng)

    def at(self, num: int, k: int, rng: np.random.Generator) -> Step:
        """The step after ``k`` marks. rng: which ones are marked where that is free (``nearest``)."""
        if not 0 <= k <= num:
            raise ValueError(f"{k} of {num} objects cannot be marked")
        order = rng.permutation(num) if self.any_unmarked else np.arange(num)
        return Step(order[:k].astype(np.int64), np.sort(order[k:]).astype(np.int64))

    def _marked(self, num: int, rng: np.random.Generator) -> int:
        if num == 0:
            return 0
        as_classification = {"regression": 0.0, "classification": 1.0, "mixed": self.done_share}[self.mode]
        if rng.random() >= as_classification:
            return int(rng.integers(num))
        kind = rng.random()
        if kind < ALL_MARKED:
            return num
        if kind < ALL_MARKED + LAST_LEFT or num == 1:
            return num - 1
        return int(rng.integers(num - 1))


@dataclass(frozen=True)
class CountTexts:
    """The question in words, by how many objects are marked; each has its place ``{category}`` once.

    Args:
        none: nothing is marked. one: one object is. many: ``{k}`` of them are, written once.
    """

    none: str
    one: str
    many: str

    def __post_init__(self) -> None:
        for name, text in vars(self).items():
            if text.count("{category}") != 1:
                raise ConfigError(f"sequence.prompts.{name} must contain {{category}} once, got {text!r}")
        if self.many.count("{k}") != 1:
            raise ConfigError(f"sequence.prompts.many must contain {{k}} once, got {self.many!r}")

    def parts(self, k: int) -> tuple[str, str]:
        """The text before and after the category."""
        text = {0: self.none, 1: self.one}.get(k, self.many)
        before, after = text.split("{category}")
        return before.replace("{k}", str(k)), after.replace("{k}", str(k))


def texts_of(prompts: Mapping[str, str]) -> CountTexts:
    """From config. A name that is missing or unknown is a ConfigError."""
    if set(prompts) != {"none", "one", "many"}:
        raise ConfigError(f"the prompts of counting are none, one and many, got {', '.join(map(str, prompts))}")
    return CountTexts(**prompts)
