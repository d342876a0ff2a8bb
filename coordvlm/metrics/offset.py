"""Is there one constant error in all boxes, such as another coordinate convention than the one they are read by?

Two looks at the pairs of answered and true boxes, none of which needs the model. *Lines*: robust least squares of scale and shift per
axis. *Conventions*: the boxes that each wrong reading of the truth would give, compared with those that were answered. Boxes on the
wrong object are outliers to both; up to a third of them may be wild.

A convention is named when (1) it comes closer to most answers than no error does (a sign test over phrases), (2) its median error is
smaller by a stated ratio, (3) what it leaves has scale 1: a model that shrinks all boxes towards the middle resembles several
conventions and is none. A grid of 1000 instead of 999 shifts less than a pixel; it is told by the lines alone.

Shapes: n phrases with an answered and a true box. Fractions are of the source image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from coordvlm.metrics.arrays import FloatArray, IntArray
from coordvlm.metrics.conventions import CONVENTIONS, Frame
from coordvlm.metrics.phrases import Outcomes
from coordvlm.metrics.robust_line import Line, robust_line

#: Fewer phrases than this say nothing.
LEAST_PHRASES = 20
#: Fewer source images than this cannot tell how much their phrases err together; phrases are then taken as independent.
_LEAST_CLUSTERS = 10
#: For a convention: standard errors of the sign test, ratio of median errors, largest remaining error of scale.
_LEAST_Z, _LEAST_RATIO, _SCALE_LEFT = 5.0, 1.5, 0.1
#: A convention that moves the median box by less than this (fraction of the image) cannot be told from none on these images.
_LEAST_MOVE = 0.005
#: A line is off when its scale or shift (fraction) differs by both this and ``_LEAST_Z`` standard errors, and the median error falls by
#: this ratio once it is taken off: noise that is cut at the border tilts lines too, and taking that off helps nothing.
_SCALE_OFF, _SHIFT_OFF, _RATIO_OFF = 0.02, 0.01, 1.1
#: Coordinates this near to the border are left out of lines: predictions are cut off there, which would tilt them.
_BORDER = 0.02
#: Half a step of the default grid: spreads below it are rounding.
_ROUNDING = 0.5 / 999
#: A scale this near to a grid's counts as its own: three tenths of what tells the grids apart.
_GRID_NEAR = 0.0003
_GRIDS = {
    "bins of a grid of 1000 (k / 1000) are read as k / 999": 1000 / 999,
    "bins of a grid of 999 (k / 999) are read as k / 1000": 999 / 1000,
}


@dataclass(frozen=True)
class Offset:
    """What was found.

    Args:
        phrases: n. verdict: ``none``, ``named``, ``unnamed`` (scale or shift is off, but no convention fits) or ``too_few``.
        convention: in words; "" unless named. alternatives: others that these images cannot tell from it.
        ratio: median error without any over that under the convention. z: how clear that is, in standard errors.
        lines: ``x``, ``y`` (fractions), ``x_px``, ``y_px`` -> scale and shift of predicted against true coordinates.
        grid_scale, grid_scale_se: scale with a shift of its own for each corner: what a grid of 1000 would set to 1.001 or 0.999.
    """

    phrases: int
    verdict: str
    convention: str = ""
    alternatives: tuple[str, ...] = ()
    ratio: float = math.nan
    z: float = math.nan
    lines: Mapping[str, Line] = field(default_factory=dict)
    grid_scale: float = math.nan
    grid_scale_se: float = math.nan

    @property
    def sentence(self) -> str:
        """The finding in words, with the sample size."""
        boxes = f"{self.phrases:,} boxes"
        if self.verdict == "too_few":
            return f"{self.phrases} answered boxes are too few to look for a constant offset: {LEAST_PHRASES} at several places are needed."
        if self.verdict == "named":
            other = f" (these images cannot tell it from: {'; '.join(self.alternatives)})" if self.alternatives else ""
            how = f"it explains {boxes} {self.ratio:.2f} times better than no offset, {self.z:.0f} standard errors"
            return f"The boxes look as if {self.convention}{other}: {how}."
        x, y = (f"{axis} has scale {n.scale:.3f} ± {n.scale_se:.3f} and shift {n.shift:+.3f}" for axis, n in self._fractions())
        if self.verdict == "unnamed":
            return f"The boxes are off by a scale or shift that no known convention explains: of {boxes}, {x}; {y} (of the image)."
        least = f" A scale error below {_LEAST_Z * self.grid_scale_se:.4f} would not have been seen." if self.grid_scale_se > 0 else ""
        return f"No offset: of {boxes}, {x}; {y} (of the image).{least}"

    def _fractions(self) -> list[tuple[str, Line]]:
        return [(axis, self.lines[axis]) for axis in ("x", "y")]


def estimate_offset(found: Outcomes, *, model_wh: FloatArray) -> Offset:
    """Look for a constant offset in the answered boxes.

    Args:
        model_wh: float64[I, 2], (width, height) in px of each phrase's image as the model sees it; NaN where there is none.
    """
    if len(model_wh) != len(found):
        raise ValueError(f"{len(found)} phrases need as many model sizes, got {len(model_wh)}")
    used = np.flatnonzero(found.located & np.isfinite(model_wh).all(1) & (found.image_wh > 0).all(1))
    frame = Frame(found.image_wh[used], np.asarray(model_wh, dtype=np.float64)[used])
    sides = np.tile(frame.source, 2)
    true, predicted = found.true_xyxy[used] / sides, found.pred_xyxy[used] / sides
    source = found.source[used]
    cluster = source if len(np.unique(source)) >= _LEAST_CLUSTERS else np.arange(len(used))
    try:
        if len(used) < LEAST_PHRASES:
            raise ValueError("too few")
        lines = _lines(true, predicted, sides, cluster)
        grid = _grid_scale(true, predicted, cluster)
    except ValueError:  # no line is determined, as all boxes are at one place
        return Offset(len(used), "too_few")
    known = {"lines": lines, "grid_scale": grid[0], "grid_scale_se": grid[1]}
    named = _convention(true, predicted, frame, cluster) or _grid(true, predicted, grid)
    if named is not None:
        convention, others, ratio, z = named
        return Offset(len(used), "named", convention, others, ratio, z, **known)  # type: ignore[arg-type]
    off = any(
        abs(value) > max(least, _LEAST_Z * se)
        for line in (lines["x"], lines["y"])
        for value, least, se in ((line.scale - 1, _SCALE_OFF, line.scale_se), (line.shift, _SHIFT_OFF, line.shift_se))
    )
    fitted = true * np.tile([lines[a].scale for a in "xy"], 2) + np.tile([lines[a].shift for a in "xy"], 2)
    off = off and _median_error(predicted, true) >= _RATIO_OFF * _median_error(predicted, fitted)
    return Offset(len(used), "unnamed" if off else "none", **known)  # type: ignore[arg-type]


def _lines(true: FloatArray, predicted: FloatArray, sides: FloatArray, cluster: IntArray) -> dict[str, Line]:
    """Both corners of each axis together, in fractions and in pixels."""
    lines = {}
    for axis, name in enumerate("xy"):
        inside = _interior(true[:, axis::2])
        twice = np.repeat(cluster, 2).reshape(-1, 2)[inside]
        lines[name] = robust_line(true[:, axis::2][inside], predicted[:, axis::2][inside], twice, floor=_ROUNDING)
        px = (true * sides)[:, axis::2][inside], (predicted * sides)[:, axis::2][inside]
        lines[f"{name}_px"] = robust_line(*px, twice, floor=_ROUNDING * float(np.median(sides[:, axis])))
    return lines


def _interior(true: FloatArray) -> NDArray[np.bool_]:
    return (true > _BORDER) & (true < 1 - _BORDER)


def _grid_scale(true: FloatArray, predicted: FloatArray, cluster: IntArray) -> tuple[float, float]:
    """(scale, standard error) from four lines, one per coordinate: boxes that are all a little too tight tilt none of them.

    (NaN, NaN) where the four disagree or one has no error.
    """
    fits = []
    for column in range(4):
        inside = _interior(true[:, column])
        fits.append(robust_line(true[inside, column], predicted[inside, column], cluster[inside], floor=_ROUNDING))
    scale, se = np.asarray([f.scale for f in fits]), np.asarray([f.scale_se for f in fits])
    if not (se > 0).all():
        return math.nan, math.nan
    weight = 1 / se**2
    mean = float((weight * scale).sum() / weight.sum())
    if (np.abs(scale - mean) > 4 * se).any():
        return math.nan, math.nan
    return mean, float(1 / np.sqrt(weight.sum()))


Named = tuple[str, tuple[str, ...], float, float]


def _grid(true: FloatArray, predicted: FloatArray, grid: tuple[float, float]) -> Named | None:
    """The grid whose scale the coordinates have, when they clearly have not scale 1."""
    scale, se = grid
    z = abs(scale - 1) / se if se > 0 else 0.0
    for words, expected in _GRIDS.items():
        if z >= _LEAST_Z and abs(scale - expected) <= max(3 * se, _GRID_NEAR):
            return words, (), _median_error(predicted, true) / max(_median_error(predicted, true * expected), 1e-12), z
    return None


def _convention(true: FloatArray, predicted: FloatArray, frame: Frame, cluster: IntArray) -> Named | None:
    """The convention that fits best, if one fits clearly."""
    plain = _errors(predicted, true)
    fitting: list[tuple[float, str, FloatArray, float]] = []
    for words, convention in CONVENTIONS.items():
        expected = convention(true, frame)
        if np.median(np.abs(expected - true).max(1)) < _LEAST_MOVE:
            continue
        errors = _errors(predicted, _cut(expected, predicted))
        median, z = float(np.median(errors)), _sign_z(plain - errors, cluster)
        ratio = float(np.median(plain)) / max(median, 1e-12)
        if z >= _LEAST_Z and ratio >= _LEAST_RATIO and _leaves_nothing(expected, predicted, cluster):
            fitting.append((median, words, errors, z))
    if not fitting:
        return None
    fitting.sort(key=lambda f: f[0])
    median, words, errors, z = fitting[0]
    others = tuple(f[1] for f in fitting[1:] if not _sign_z(f[2] - errors, cluster) >= _LEAST_Z)
    return words, others, float(np.median(plain)) / max(median, 1e-12), z


def _leaves_nothing(expected: FloatArray, predicted: FloatArray, cluster: IntArray) -> bool:
    """Answers follow what the convention expects at scale 1 on both axes, and most of their variation with it."""
    spread = np.median(np.abs(predicted - np.median(predicted, axis=0)).mean(1))
    if np.median(_errors(predicted, _cut(expected, predicted))) > 0.5 * spread:
        return False
    for axis in (0, 1):
        inside = (expected[:, axis::2] > 0) & (expected[:, axis::2] < 1)
        twice = np.repeat(cluster, 2).reshape(-1, 2)[inside]
        try:
            line = robust_line(expected[:, axis::2][inside], predicted[:, axis::2][inside], twice, floor=1e-6)
        except ValueError:
            return False
        if abs(line.scale - 1) > _SCALE_LEFT:
            return False
    return True


def _cut(expected: FloatArray, predicted: FloatArray) -> FloatArray:
    """Expected boxes as a decoder that stays inside the image would give them; where answers leave the image, as they are."""
    inside = ((predicted >= 0) & (predicted <= 1)).all(1, keepdims=True)
    return np.where(inside, np.clip(expected, 0.0, 1.0), expected)


def _errors(predicted: FloatArray, expected: FloatArray) -> FloatArray:
    """float64[n], mean absolute difference of the four coordinates."""
    return np.asarray(np.abs(predicted - expected).mean(1), dtype=np.float64)


def _median_error(predicted: FloatArray, expected: FloatArray) -> float:
    return float(np.median(_errors(predicted, expected)))


def _sign_z(gain: FloatArray, cluster: IntArray) -> float:
    """Standard errors by which more phrases gain than lose, by sign alone; phrases of one cluster may err together.

    One more cluster, that says nothing, is counted: where all agree there would be no error at all.
    """
    sign = np.sign(gain)
    _, group, size = np.unique(cluster, return_inverse=True, return_counts=True)
    apart = np.bincount(group.reshape(-1), weights=sign) - size * sign.mean()
    return float(sign.sum() / np.sqrt((apart**2).sum() + size.mean() ** 2))


def offset_to_json(found: Offset) -> dict[str, object]:
    """The entry ``offset`` of metrics.json; strict JSON, undefined values are null."""

    def plain(value: object) -> object:
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else list(value) if isinstance(value, tuple) else value

    return {"sentence": found.sentence, **{k: plain(v) for k, v in asdict(found).items()}}
