"""What attention over patches says: how narrow it is, where it lies, and whether the place that was asked for gets it.

All of it is per map, so per layer and head, of maps that queries of single frames make.

Shapes: N patches in rows from the top left, of a grid of (rows, columns); places are (x, y) in [0, 1] of the frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from coordvlm.metrics.arrays import FloatArray

#: Patches that ``focus_ratio`` takes together.
FOCUS_PATCHES = 3


def entropy(attention: FloatArray) -> FloatArray:
    """Entropy over the last axis divided by ln N: 1 is uniform, 0 a single patch (and a frame of one patch)."""
    num = attention.shape[-1]
    if num < 2:
        return np.zeros(attention.shape[:-1])
    terms = np.where(attention > 0, attention * np.log(np.where(attention > 0, attention, 1.0)), 0.0)
    return np.asarray(-terms.sum(-1) / np.log(num))


def focus_ratio(attention: FloatArray, patches: int = FOCUS_PATCHES) -> FloatArray:
    """The mass on the ``patches`` best ones over their share of all: 1 is uniform, N / patches everything on them."""
    num = attention.shape[-1]
    few = min(patches, num)
    best = np.sort(attention, -1)[..., num - few :].sum(-1)
    return np.asarray(best / (few / num))


def patch_centres(grid: tuple[int, int]) -> FloatArray:
    """float64[N, 2], (x, y) in [0, 1] of the patches' centres."""
    rows, columns = grid
    y, x = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij")
    return np.stack((x.ravel(), y.ravel()), -1)


def centre_of_mass(attention: FloatArray, grid: tuple[int, int]) -> FloatArray:
    """[..., N] -> [..., 2]: the mean place."""
    return np.asarray(attention @ patch_centres(grid))


def patch_of(place: FloatArray, grid: tuple[int, int]) -> NDArray[np.int64]:
    """[..., 2] -> int64[...]: the patch that holds a place; -1 where the place is unknown (NaN)."""
    rows, columns = grid
    known = np.isfinite(place).all(-1)
    x, y = (np.where(known, place[..., i], 0.0) for i in (0, 1))
    column = np.clip(np.floor(x * columns), 0, columns - 1).astype(np.int64)
    row = np.clip(np.floor(y * rows), 0, rows - 1).astype(np.int64)
    return np.where(known, row * columns + column, -1)


@dataclass(frozen=True)
class AtPlace:
    """Attention against true places, means over the frames that have one.

    Args:
        hit: share of frames whose best patch holds the place. mass: on that patch. distance: mean distance of the attention from the
            place, in sides of the frame. Each of the maps' leading shape; NaN where no frame has a place.
    """

    hit: FloatArray
    mass: FloatArray
    distance: FloatArray


def at_place(attention: FloatArray, place: FloatArray, grid: tuple[int, int]) -> AtPlace:
    """attention: float[L, F, h, N] of frames, place: float[F, 2], NaN where unknown -> float[L, h] each."""
    patch = patch_of(place, grid)
    seen = np.flatnonzero(patch >= 0)
    if not len(seen):
        nothing = np.full((attention.shape[0], attention.shape[2]), np.nan)
        return AtPlace(nothing, nothing, nothing)
    maps = attention[:, seen]
    mass = np.take_along_axis(maps, patch[seen][None, :, None, None], -1)[..., 0]
    far = np.linalg.norm(patch_centres(grid)[None] - place[seen][:, None], axis=-1)  # [F, N]
    hit = maps.argmax(-1) == patch[seen][None, :, None]
    return AtPlace(hit.mean(1), mass.mean(1), np.einsum("lfhn,fn->lfh", maps, far).mean(1))


@dataclass(frozen=True)
class ArmLooks:
    """How one arm looks; arrays are float64[layers, heads], means over the frames of the diagnosed clips.

    Args:
        entropy: divided by ln N. peak: the largest weight. focus: of ``focus_ratio``. centre: float64[layers, heads, 2], mean centre of
            mass. wander: how far, on average over frames, the centre of mass lies from that mean, in sides of the frame: 0 where the
            head looks at one place whatever is asked.
        place: against true places; NaN where the data know none. chance: hit rate of a patch drawn at random.
        queries: named numbers about the queries and what they see.
        frame_loss: float64[T], nats per token of the answer asked after frame t; empty where not measured. frame_error: float64[T], mean
            distance of points by the heads, px on a side of 384; empty where no head reads points.
        frame_latent: float64[T], reconstruction loss of each frame; empty where none is trained.
    """

    arm: str
    entropy: FloatArray
    peak: FloatArray
    focus: FloatArray
    centre: FloatArray
    wander: FloatArray
    place: AtPlace
    chance: float
    queries: Mapping[str, float] = field(default_factory=dict)
    frame_loss: FloatArray = field(default_factory=lambda: np.zeros(0))
    frame_error: FloatArray = field(default_factory=lambda: np.zeros(0))
    frame_latent: FloatArray = field(default_factory=lambda: np.zeros(0))

    @property
    def knows_places(self) -> bool:
        """Whether the data know where the answer is."""
        return bool(np.isfinite(self.place.hit).any())


def summarise(arm: str, attention: FloatArray, place: FloatArray, grid: tuple[int, int], **more: object) -> ArmLooks:
    """attention: float[layers, F, heads, N], rows that add up to 1. place: float[F, 2], NaN where unknown. more: fields of ``ArmLooks``.

    Raises:
        ValueError: shapes that do not belong together, or rows that are no distribution.
    """
    maps = np.asarray(attention, dtype=np.float64)
    if maps.ndim != 4 or maps.shape[-1] != grid[0] * grid[1] or place.shape != (maps.shape[1], 2):
        raise ValueError(f"maps of shape {maps.shape} and places of shape {place.shape} do not fit a grid of {grid}")
    if not np.allclose(maps.sum(-1), 1, atol=1e-3):
        raise ValueError(f"attention of {arm} must add up to 1 over patches, got {maps.sum(-1).min():.4f} to {maps.sum(-1).max():.4f}")
    centre = centre_of_mass(maps, grid)
    middle = centre.mean(1)
    return ArmLooks(
        arm, entropy(maps).mean(1), maps.max(-1).mean(1), focus_ratio(maps).mean(1), middle,
        np.linalg.norm(centre - middle[:, None], axis=-1).mean(1), at_place(maps, np.asarray(place, dtype=np.float64), grid),
        1 / maps.shape[-1], **more,  # type: ignore[arg-type]
    )


@dataclass(frozen=True)
class SeenClip:
    """A clip to draw.

    Args:
        frames: uint8[T, S, S, 3] as the model sees them. maps: arm -> float32[T, rows, columns], the mean over layers and heads; each
            frame's adds up to 1.
        evidence: float32[T, 2], (x, y) in [0, 1]; NaN where unknown.
    """

    clip_id: int
    frames: NDArray[np.uint8]
    maps: Mapping[str, NDArray[np.float32]]
    evidence: NDArray[np.float32]

    @property
    def top(self) -> float:
        """The end of the one colour scale: the largest weight of any arm in any frame."""
        return max((float(m.max()) for m in self.maps.values()), default=0.0)


@dataclass(frozen=True)
class FoveationFindings:
    """What was looked into beside the metrics of clips.

    Args:
        clips: how many were diagnosed. grid: (rows, columns) of patches. feature_cosine: between what the coarse and the fine query saw
            of the same frame; NaN unless both passes ran.
    """

    clips: int
    grid: tuple[int, int]
    arms: Mapping[str, ArmLooks]
    feature_cosine: float
    seen: tuple[SeenClip, ...] = ()
