"""Which frames of a clip are shown: T times, evenly from its first frame to its last, both included.

One time is the middle of the clip, or its end where the answer is a point in the last frame. With the ends included, the last frame
shown is the last one of the clip (or of its window), which is the frame that points refer to. A clip of n frames at a steady rate gives
the frames ``round(t * (n - 1) / (T - 1))``, each at most once while n >= T.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from coordvlm.utils.errors import ConfigError

SHORT, MIXED = ("refuse", "repeat"), ("refuse", "resize")
#: Share of a frame by which rounding may fall short of it.
_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How clips are read.

    Args:
        num_frames: T.
        fps: frames per second to choose from, counted back from the last; None: all there are. A clip of a lower rate keeps its own.
        folder_fps: frames per second of folders of images; None: they have no time.
        short: ``refuse`` a clip with fewer frames to choose from than T, or ``repeat`` frames.
        mixed_sizes: ``refuse`` a folder whose frames have several sizes, or ``resize`` them to the size of the last frame shown.
        max_pixels: of a frame, width x height.
        retries: times that a read is tried again after an error that may pass. retry_seconds: pause before the first; doubled each time.
        timeout_seconds: that a URL may take to answer.
    Raises:
        ConfigError: an option has no meaning.
    """

    num_frames: int
    fps: float | None
    folder_fps: float | None
    short: str
    mixed_sizes: str
    max_pixels: int
    retries: int
    retry_seconds: float
    timeout_seconds: float

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise ConfigError(f"data.source.num_frames must be at least 1, got {self.num_frames}")
        for name in ("fps", "folder_fps"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"data.source.{name} must be null or positive frames per second, got {value!r}")
        for name, known in (("short", SHORT), ("mixed_sizes", MIXED)):
            if getattr(self, name) not in known:
                raise ConfigError(f"data.source.{name} must be {' or '.join(known)}, got {getattr(self, name)!r}")
        if self.retries < 0 or not 0 <= self.retry_seconds < math.inf or not 0 < self.timeout_seconds < math.inf:
            raise ConfigError(
                "data.source: retries and retry_seconds must not be negative and timeout_seconds positive, got "
                f"{self.retries}, {self.retry_seconds!r} and {self.timeout_seconds!r}"
            )


@dataclass(frozen=True)
class Times:
    """Where to read a clip.

    Args:
        seconds: T times after its start, ascending; at a steady rate none is at the edge of a frame.
        available: frames to choose from.
    """

    seconds: tuple[float, ...]
    available: int


def sample_times(seconds: float, rate: float, *, num_frames: int, fps: float | None, last: bool) -> Times:
    """The times to show.

    Args:
        seconds: how long the clip is, at least a frame's duration. rate: its frames per second. num_frames: T. fps: see ``Sampling``.
        last: whether a single frame is the last one instead of the middle one.
    """
    chosen = rate if fps is None else min(fps, rate)
    first, end = 0.5 / rate, max(seconds - 0.5 / rate, 0.5 / rate)
    available = math.floor((end - first) * chosen + _EPS) + 1
    picks = [available - 1 if last else available // 2] if num_frames == 1 else [
        (2 * t * (available - 1) + num_frames - 1) // (2 * (num_frames - 1)) for t in range(num_frames)
    ]
    return Times(tuple(end - (available - 1 - pick) / chosen for pick in picks), available)


def window_of(start: float | None, end: float | None, seconds: float, rate: float) -> tuple[float, float] | None:
    """(start, end) in seconds of what is read of a clip; None where that does not lie in it, up to one frame."""
    low, high = start or 0.0, seconds if end is None else end
    if high > seconds + 1 / rate or not low < min(high, seconds):
        return None
    return low, min(high, seconds)
