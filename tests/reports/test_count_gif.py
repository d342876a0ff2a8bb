"""The loop as a GIF: its frames show the steps, its limits hold, and what is left out is said."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from coordvlm.reports import count_gif as module
from coordvlm.reports.count_gif import count_gif, shown_steps
from coordvlm.reports.overlay import RED
from coordvlm.reports.point_overlay import YELLOW, Canvas
from coordvlm.utils.errors import ConfigError


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(60, 190, (height, width, 3), dtype=np.uint8))


def points(num: int, side: float) -> np.ndarray:
    return np.random.default_rng(1).uniform(0.1 * side, 0.9 * side, (num, 2))


def make(num: int = 4, *, width: int = 128, height: int = 96, max_frames: int = 20, **more: object) -> Image.Image:
    data = count_gif(
        noise(width, height), points(num, min(width, height)), [0.1] * num, category="dot", ended="finished", max_frames=max_frames,
        **more,  # type: ignore[arg-type]
    )
    assert len(data) <= more.get("max_bytes", 2_000_000)  # type: ignore[operator]
    return Image.open(io.BytesIO(data))


def count(frame: Image.Image, colour: tuple[int, int, int]) -> int:
    return int((np.asarray(frame.convert("RGB")) == colour).all(2).sum())


@pytest.fixture
def titles(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []

    class Spy(Canvas):
        def __init__(self, image: Image.Image, size: tuple[float, float] | None, title: str, *, side: int, max_side: int) -> None:
            seen.append(title)
            super().__init__(image, size, title, side=side, max_side=max_side)

    monkeypatch.setattr(module, "Canvas", Spy)
    return seen


def test_one_frame_per_step_and_the_result(titles: list[str]) -> None:
    gif = make(3)
    assert gif.n_frames == 4  # type: ignore[attr-defined]
    assert titles == [
        "0 marked · dot · pred_done=0.10", "1 marked · dot · pred_done=0.10", "2 marked · dot · pred_done=0.10",
        "3 counted · dot · finished",
    ]  # fmt: skip
    yellow, red = [], []
    for i in range(4):
        gif.seek(i)
        yellow.append(count(gif, YELLOW))
        red.append(count(gif, RED))
    assert yellow[0] == 0
    assert sorted(yellow) == yellow
    assert yellow[3] > yellow[0]
    assert [n > 0 for n in red] == [True, True, True, False]


def test_skipped_steps_are_said(titles: list[str]) -> None:
    gif = make(30, max_frames=6)
    assert gif.n_frames == 6  # type: ignore[attr-defined]
    assert titles[-1] == "30 counted · dot · finished · 25 of 30 steps not shown"
    assert titles[0].startswith("0 marked")
    assert titles[4].startswith("29 marked")


def test_shown_steps_are_spread_evenly() -> None:
    assert shown_steps(0, 5) == []
    assert shown_steps(3, 5) == [0, 1, 2]
    assert shown_steps(101, 5) == [0, 25, 50, 75, 100]
    assert shown_steps(9, 1) == [0]


def test_nothing_counted_is_one_frame(titles: list[str]) -> None:
    assert make(0).n_frames == 1  # type: ignore[attr-defined]
    assert titles == ["0 counted · dot · finished"]


def test_the_longer_side_is_limited() -> None:
    gif = make(2, width=900, height=300)
    assert gif.width == 512
    assert 171 < gif.height < 215  # the image and a line of text


def test_a_heavy_gif_is_made_smaller_then_shorter() -> None:
    wide = make(8, width=512, height=512)
    small = make(8, width=512, height=512, max_bytes=250_000)
    tiny = make(8, width=512, height=512, max_bytes=60_000)
    assert wide.width > small.width >= 192
    assert tiny.width >= 192 or tiny.n_frames < 9  # type: ignore[attr-defined]


def test_limits_that_hold_no_gif_are_refused() -> None:
    for limits in ({"max_frames": 1}, {"max_side": 8}, {"max_bytes": 10}):
        with pytest.raises(ConfigError, match="at least, got"):
            make(2, **limits)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="max_bytes=1001 holds no GIF"):
        make(2, max_bytes=1001)
    with pytest.raises(ValueError, match="got 1 for 2 points"):
        count_gif(noise(96, 96), points(2, 96), [0.1], category="dot", ended="", max_frames=4)
