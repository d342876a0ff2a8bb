"""What decoding yields, before and after parsing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

#: Record statuses that keep a record. Every other status is the reason it was dropped.
KEPT = ("ok", "repaired")
DROP_REASONS = ("bad_arity", "not_a_coordinate", "out_of_range", "degenerate", "missing_desc", "bad_json")


@dataclass(frozen=True)
class Decoded:
    """One decoded answer, n emitted tokens. Slot fields are read at every position and only mean something where
    ``bin >= 0`` (the emitted token is a coordinate).

    Args:
        token_ids: int64[n], end-of-turn included when it was reached.
        logprob: float32[n], log-probability of the emitted token in the raw, unmasked distribution.
        bin: int64[n], the emitted coordinate bin or -1.
        expectation, local: float32[n], normalised coordinate by the mean over all bins / over a window around the mode.
        mass: float32[n], raw full-vocabulary probability within +-r bins of the emitted bin.
        truncated: the token budget ended before the end of turn.
        seconds: wall time of the batch divided by its samples.
        model_size: (width, height) in px of the image as the model saw it.
        head_box: float32[4], normalised xyxy, of the regression head where the model has one: read at the end of turn (None if it never
            came) or at the start of the answer.
    """

    sample_id: int | str
    token_ids: NDArray[np.int64]
    logprob: NDArray[np.float32]
    bin: NDArray[np.int64]
    expectation: NDArray[np.float32]
    local: NDArray[np.float32]
    mass: NDArray[np.float32]
    truncated: bool
    seconds: float
    model_size: tuple[int, int] = (0, 0)
    head_box: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class SlotReadout:
    """All read-outs of one coordinate slot, normalised to [0, 1]."""

    bin: int
    argmax: float
    expectation: float
    local: float


@dataclass(frozen=True)
class Record:
    """One parsed (or dropped) object.

    Args:
        box_xyxy_px: float xyxy in source pixels by the chosen read-out; None when it could not be read.
        score: what AP sorts by. score_parts: ``geom`` and ``desc``.
        status: ``ok``, ``repaired`` or a drop reason.
        slots: read-outs of x1, y1, x2, y2. token_span: [start, end) in the answer's tokens.
    """

    desc: str
    box_xyxy_px: tuple[float, float, float, float] | None
    score: float
    status: str
    score_parts: Mapping[str, float] = field(default_factory=dict)
    slots: tuple[SlotReadout, ...] = ()
    token_span: tuple[int, int] = (0, 0)
    point_px: tuple[float, float] | None = None

    @property
    def kept(self) -> bool:
        return self.status in KEPT


@dataclass(frozen=True)
class Alternative:
    """One of several answers to the same phrase: the box of its first kept record, or None; ``says_none`` as in ``Prediction.flags``."""

    box_xyxy_px: tuple[float, float, float, float] | None
    score: float
    says_none: bool


@dataclass(frozen=True)
class Asked:
    """A single step of counting with the *true* first k objects marked: what was answered, and what is true.

    Args:
        k: objects marked. num: N, how many there are.
        target_px: (x, y) of the next object in source px; None: all are marked.
        unmarked_px: float64[N - k, 2], all that are not marked, the target included.
        point_px: (x, y) that was answered. done: the probability that everything is marked.
    """

    k: int
    num: int
    target_px: tuple[float, float] | None
    unmarked_px: NDArray[np.float64]
    point_px: tuple[float, float]
    done: float


@dataclass(frozen=True)
class ArmAnswer:
    """What one way of looking at a clip (``coarse``, ``fine``, ``auto`` or a control) answered.

    Args:
        text: decoded words, without the end. point_px: (x, y) in source pixels of the last frame; None where it gave none.
        nll: sum of -log p of the true answer's tokens in nats, over ``num_tokens`` tokens, coordinates included. num_correct: of them, how
            many were the likeliest.
        finished: the end of the answer was decoded within the budget.
    """

    arm: str
    text: str
    point_px: tuple[float, float] | None
    nll: float
    num_tokens: int
    num_correct: int
    finished: bool = True


@dataclass(frozen=True)
class Prediction:
    """One image's answer. A failed image is a Prediction with zero kept records; it is never left out.

    Args:
        records: in emission order, dropped ones included.
        flags: any of ``truncated`` (no end token), ``no_output`` (not a single record), ``stray_text``; in grounding also
            ``says_none`` (the answer is that the phrase names nothing here) and ``retried`` (the first answers said nothing, so it was
            asked again).
        timing: seconds and the number of new tokens, over all attempts where there were several; then also ``attempts`` (decodes in
            all) and ``samples`` (decodes that the consensus was taken of).
        asked: in counting, single steps with true marks; ``records`` are then the points that the loop has marked, in order, with
            ``1 - p_done`` at their step as score. Flags of the loop: ``finished`` (it said so itself), ``repeated`` (it pointed at marked
            objects again and again), ``step_limit``; none of them where the loop was not run.
        arms: of a clip (task=video), the answers of all ways of looking; ``records`` and ``raw_text`` are those of the trained one.
        alternatives: all answers in the order of their attempts, the chosen one included; empty when there was only one.
    """

    sample_id: int | str
    size: tuple[int, int]
    records: tuple[Record, ...]
    raw_text: str = ""
    token_ids: tuple[int, ...] = ()
    flags: frozenset[str] = frozenset()
    timing: Mapping[str, float] = field(default_factory=dict)
    alternatives: tuple[Alternative, ...] = ()
    asked: tuple[Asked, ...] = ()
    arms: tuple[ArmAnswer, ...] = ()

    @property
    def kept(self) -> tuple[Record, ...]:
        return tuple(r for r in self.records if r.kept)
