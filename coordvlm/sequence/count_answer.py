"""What a user gets of a count: the points in the order in which they were found, and how the loop ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from coordvlm.contracts import Prediction

#: How a loop ends: it says so itself; it points at marked objects again and again; it is cut.
ENDED = ("finished", "repeated", "step_limit")


class Pointed(NamedTuple):
    """A point in pixels of the displayed image; the model may have put it outside.

    Args:
        p_done: the probability, when it was asked for, that everything was marked already. step: from 1, repeated points included.
    """

    x: float
    y: float
    p_done: float
    step: int


@dataclass(frozen=True)
class CountAnswer:
    """What was counted in one image.

    Args:
        phrase: what was to be counted. size: (width, height) of the displayed image.
        points: of the objects, in the order in which they were found. repeated: those that lay on a mark already; they are not counted.
        ended: one of ``ENDED``. p_done: of the last step, which marked nothing; None where the loop did not end by itself.
        seconds: this image's share of the time that its batch took.
    """

    phrase: str
    size: tuple[int, int]
    points: tuple[Pointed, ...]
    repeated: tuple[Pointed, ...]
    ended: str
    p_done: float | None
    seconds: float

    @property
    def count(self) -> int:
        """How many objects there are."""
        return len(self.points)

    @property
    def finished(self) -> bool:
        """Whether the model itself said that all are marked. If not, the count is where the loop was stopped."""
        return self.ended == "finished"

    def to_json(self) -> dict[str, Any]:
        """Strict JSON of everything but the image."""
        return {
            "phrase": self.phrase,
            "size": list(self.size),
            "count": self.count,
            "ended": self.ended,
            "points": [_plain(p) for p in self.points],
            "repeated": [_plain(p) for p in self.repeated],
            "p_done": self.p_done,
            "seconds": self.seconds,
        }


def finish_count(prediction: Prediction, *, phrase: str, p_done: Sequence[float]) -> CountAnswer:
    """Points and repeated points apart.

    Args:
        prediction: of the loop. p_done: of every step, the last one included where it marked nothing.
    Raises:
        ValueError: no flag of the loop, or not as many probabilities as steps.
    """
    ended = [flag for flag in ENDED if flag in prediction.flags]
    steps = len(prediction.records) + (ended == ["finished"])
    if len(ended) != 1 or len(p_done) != steps:
        raise ValueError(f"a count ends in one way and has a probability per step, got {ended} and {len(p_done)} for {steps} steps")
    found: dict[bool, list[Pointed]] = {True: [], False: []}
    for at, record in enumerate(prediction.records):
        assert record.point_px is not None, "every step but the last marks a point"
        found[record.kept].append(Pointed(*record.point_px, float(p_done[at]), at + 1))
    return CountAnswer(
        phrase, prediction.size, tuple(found[True]), tuple(found[False]), ended[0],
        float(p_done[-1]) if ended == ["finished"] else None, float(prediction.timing.get("seconds", 0.0)),
    )


def _plain(pointed: Pointed) -> dict[str, Any]:
    return {"point": [pointed.x, pointed.y], "p_done": pointed.p_done, "step": pointed.step}
