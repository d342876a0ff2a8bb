"""Pictures of attention: one colour scale, the true patch in green, a GIF frame per frame and within its size."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from coordvlm.metrics.looking import SeenClip
from coordvlm.reports.look_overlay import colours, difference_map, heat_map, look_gif, look_picture, shown_frames
from coordvlm.reports.overlay import GREEN
from coordvlm.utils.errors import ConfigError

SIDE = 64


def clip(frames: int = 3, arms: tuple[str, ...] = ("coarse", "fine"), size: int = SIDE) -> SeenClip:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (frames, size, size, 3), dtype=np.uint8)
    maps = {arm: rng.dirichlet(np.full(16, 0.4), frames).reshape(frames, 4, 4).astype(np.float32) for arm in arms}
    evidence = np.full((frames, 2), np.nan, dtype=np.float32)
    evidence[-1] = (0.9, 0.1)
    return SeenClip(7, pixels, maps, evidence)


def test_the_scale_runs_from_dark_to_bright_and_is_clamped() -> None:
    shades = colours(np.linspace(0, 1, 50)).astype(int).sum(-1)
    assert (np.diff(shades) > 0).all()
    assert (colours(np.asarray([-1.0, 2.0])) == colours(np.asarray([0.0, 1.0]))).all()


def test_equal_weights_look_alike_in_both_arms() -> None:
    """A flat map and a peaked one on one scale: where both have the same weight they have the same colour."""
    frame = np.full((SIDE, SIDE, 3), 120, dtype=np.uint8)
    flat, peaked = np.full((2, 2), 0.25, dtype=np.float32), np.asarray([[0.25, 0.55], [0.1, 0.1]], dtype=np.float32)
    a, b = (np.asarray(heat_map(frame, m, 0.55, SIDE)) for m in (flat, peaked))
    assert (a[:30, :30] == b[:30, :30]).all()
    assert b[10, 50].astype(int).sum() > b[10, 10].astype(int).sum() > b[50, 10].astype(int).sum()


def test_less_is_blue_and_more_is_red() -> None:
    frame = np.full((SIDE, SIDE, 3), 120, dtype=np.uint8)
    made = np.asarray(difference_map(frame, np.asarray([[-0.5, 0.5]], dtype=np.float32), 0.5, SIDE)).astype(int)
    assert made[5, 5, 2] > made[5, 5, 0] + 60
    assert made[5, 60, 0] > made[5, 60, 2] + 60


def test_the_patch_of_the_true_place_is_framed_where_it_is_known() -> None:
    with_place = np.asarray(look_picture(clip()))
    green = (with_place == np.asarray(GREEN)).all(-1)
    assert green.any()
    nowhere = SeenClip(7, clip().frames, clip().maps, np.full((3, 2), np.nan, dtype=np.float32))
    assert not (np.asarray(look_picture(nowhere)) == np.asarray(GREEN)).all(-1).any()


def test_a_gif_has_a_frame_per_frame_and_stays_within_its_size() -> None:
    with Image.open(io.BytesIO(look_gif(clip(frames=5)))) as gif:
        assert gif.n_frames == 5
        wide = gif.width
    big = clip(frames=6, size=224)
    data = look_gif(big, max_bytes=60_000)
    assert len(data) <= 60_000
    with Image.open(io.BytesIO(data)) as small:
        assert small.n_frames == 6
        assert small.width < wide
    with pytest.raises(ConfigError, match="holds no GIF of clip 7"):
        look_gif(big, max_bytes=500)


def test_a_clip_of_one_frame_and_one_without_a_pass() -> None:
    with Image.open(io.BytesIO(look_gif(clip(frames=1)))) as gif:
        assert gif.n_frames == 1
    with pytest.raises(ConfigError, match="got none of fine"):
        look_gif(clip(arms=("coarse",)))
    assert look_picture(clip(arms=("coarse",))).height < look_picture(clip()).height


def test_of_many_frames_some_are_shown_the_ends_included() -> None:
    assert shown_frames(3) == [0, 1, 2]
    shown = shown_frames(40)
    assert len(shown) == 8
    assert (shown[0], shown[-1]) == (0, 39)
