"""What every parser shares: read-outs of four slots, the box they make, and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from coordvlm.contracts import Decoded, SlotReadout
from coordvlm.contracts.prediction import KEPT
from coordvlm.coords.grid import Digits, Grid, Size, to_px
from coordvlm.utils.errors import ConfigError

READOUTS = ("argmax", "expectation", "local")
SCORES = ("geom_desc", "geom", "desc", "one")
Box = tuple[float, float, float, float]


def check_readout(readout: str) -> None:
    """Refuse an unknown ``decode.readout``."""
    if readout not in READOUTS:
        raise ConfigError(f"decode.readout must be one of {', '.join(READOUTS)}, got {readout!r}")


def check_score(score: str) -> None:
    """Refuse an unknown ``decode.score``."""
    if score not in SCORES:
        raise ConfigError(f"decode.score must be one of {', '.join(SCORES)}, got {score!r}")


def score_of(parts: Mapping[str, float], score: str) -> float:
    """``geom_desc`` (mean probability of the numbers times that of the description), ``geom``, ``desc`` or ``one``."""
    geom, desc = parts.get("geom", 0.0), parts["desc"]
    return {"geom_desc": geom * desc, "geom": geom, "desc": desc, "one": 1.0}[score]


def token_slots(decoded: Decoded, at: ArrayLike, grid: Grid) -> tuple[SlotReadout, ...]:
    """Read-outs of coordinate tokens. at: int[n], their positions in the answer."""
    positions = np.asarray(at, dtype=np.int64)
    argmax = grid.decode(decoded.bin[positions])
    return tuple(
        SlotReadout(int(decoded.bin[t]), float(argmax[i]), float(decoded.expectation[t]), float(decoded.local[t]))
        for i, t in enumerate(positions)
    )


def number_slots(values: Sequence[float], coords: Grid | Digits, model_size: Size) -> tuple[SlotReadout, ...]:
    """Written numbers, xyxy or xy: every read-out is the number itself, ``bin`` the number rounded. Empty when one is not finite."""
    if not np.isfinite(values).all():
        return ()
    norm = coords.decode(values, model_size) if isinstance(coords, Digits) else coords.decode(values)
    return tuple(SlotReadout(round(v), float(c), float(c), float(c)) for v, c in zip(values, norm, strict=True))


def in_range(values: Sequence[float], coords: Grid | Digits, model_size: Size) -> bool:
    """Whether the convention can write every one of these numbers."""
    if isinstance(coords, Digits):
        return coords.in_range(values, model_size)
    return all(0 <= v <= coords.num_bins - 1 for v in values)


def box_px(slots: Sequence[SlotReadout], readout: str, size: Size) -> Box:
    """The box in source pixels by one read-out. size: (width, height) of the source image."""
    px = to_px([getattr(s, readout) for s in slots], *size)
    return float(px[0]), float(px[1]), float(px[2]), float(px[3])


def judge(status: str, box: Box, *, inside: bool) -> str:
    """The status of a record that could be read, once its numbers mean something. NaN has no area."""
    if status not in KEPT:
        return status
    if not inside:
        return "out_of_range"
    return status if box[0] < box[2] and box[1] < box[3] else "degenerate"
