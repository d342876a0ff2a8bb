"""Video files and streams, decoded by PyAV (the extra ``video``): the frames at given times, and no more than leads to them."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coordvlm.data.video_retry import PassingError
from coordvlm.data.video_sampling import Sampling
from coordvlm.utils.errors import ConfigError, DataError

#: A time so much later than where decoding stands is sought instead of decoded up to, seconds.
_SEEK_S = 1.0
_COMPLETE = "the clip must be readable and complete"
#: Answers of a server that stay what they are.
_LASTING = ("HTTPBadRequestError", "HTTPUnauthorizedError", "HTTPForbiddenError", "HTTPNotFoundError", "HTTPOtherClientError")


def require_decoder(where: str) -> None:
    """Refuse video files where nothing decodes them.

    Raises:
        ConfigError: PyAV is not installed.
    """
    if importlib.util.find_spec("av") is None:
        raise ConfigError(f"{where} is a video file, and reading one needs PyAV: pip install 'coordvlm[video]'; folders of frames do not")


@dataclass(frozen=True)
class Header:
    """What a container says. seconds: of the video stream. rate: its frames per second, on average."""

    seconds: float
    rate: float


class OpenClip:
    """An open container. Times are seconds after the first frame; pixels are displayed frames, turned as the file says.

    Args:
        container, stream: of PyAV. failure: what PyAV raises. where: what errors name.
    """

    def __init__(self, container: Any, stream: Any, failure: type[Exception], sampling: Sampling, where: str) -> None:
        self._container, self._stream, self._failure, self._sampling, self._where = container, stream, failure, sampling, where
        self._base = float(stream.time_base)
        self._zero = (stream.start_time or 0) * self._base
        rate = stream.average_rate or stream.guessed_rate
        seconds = stream.duration * self._base if stream.duration else (container.duration or 0) / 1e6
        if not rate or not seconds > 0:
            raise DataError("the clip must say its duration and its frame rate", where=where, value={"seconds": seconds, "rate": rate})
        self.header = Header(max(seconds, 1 / float(rate)), float(rate))

    def frames(self, seconds: Sequence[float]) -> NDArray[np.uint8]:
        """uint8[T, height, width, 3]: what is shown at each of the ascending times.

        Raises:
            DataError: broken frames, frames of several sizes or above the pixel limit, an end before the time that the header says.
        """
        found: list[NDArray[np.uint8]] = []
        shown: Any = None
        converted: tuple[Any, NDArray[np.uint8]] | None = None
        for frame in self._at(seconds):
            if frame is not shown:
                shown, converted = frame, (frame, self._pixels(frame))
            assert converted is not None
            found.append(converted[1])
        sizes = {f.shape[:2]: f for f in found}
        if len(sizes) > 1:
            raise DataError("frames must have one size", where=self._where, value=[f"{w} x {h}" for h, w in sizes])
        return np.stack(found)

    def _at(self, seconds: Sequence[float]) -> Iterator[Any]:
        """The frame shown at each time: the last one that begins no later."""
        decoded, here, ahead = self._decoded(), None, None
        seeking, tick = True, min(self._base, 0.25 / self.header.rate)  # a file may count time in frames
        for target in seconds:
            stood: float | None = None if here is None else self._time(here)
            if seeking and target - (stood or 0.0) > _SEEK_S and (ahead is None or self._time(ahead) <= target + tick):
                seeking = self._seek(target)
                if seeking:
                    decoded, here, ahead = self._decoded(), None, None
            while ahead is None or self._time(ahead) <= target + tick:
                here = ahead if ahead is not None else here
                ahead = next(decoded, None)
                if ahead is None:
                    break
                if here is None and stood is not None and self._time(ahead) <= stood:
                    seeking = False  # key frames are further apart than the times: decoding on is cheaper
            here = here if here is not None else ahead
            if here is None or (ahead is None and self._time(here) + 1.5 * self._length(here) < target):
                end = "none at all" if here is None else f"the last is at {self._time(here):.3f} s"
                value = f"no frame at {target:.3f} s of {self.header.seconds:.3f} s; {end}"
                raise DataError(_COMPLETE, where=self._where, value=value)
            yield here

    def _decoded(self) -> Iterator[Any]:
        return (frame for frame in self._container.decode(self._stream) if frame.pts is not None)

    def _seek(self, target: float) -> bool:
        """Go to the key frame before a time; False where the stream cannot."""
        try:
            self._container.seek(math.floor((target + self._zero) / self._base), stream=self._stream, backward=True)
        except self._failure:
            return False
        return True

    def _time(self, frame: Any) -> float:
        return float(frame.pts * self._base) - self._zero

    def _length(self, frame: Any) -> float:
        return max((frame.duration or 0) * self._base, 1 / self.header.rate)

    def _pixels(self, frame: Any) -> NDArray[np.uint8]:
        if frame.is_corrupt:
            raise DataError(_COMPLETE, where=self._where, value=f"a broken frame at {self._time(frame):.3f} s")
        if frame.width * frame.height > self._sampling.max_pixels:
            rule = f"a frame must not have more than {self._sampling.max_pixels} pixels"
            raise DataError(rule, where=self._where, value=f"{frame.width} x {frame.height}")
        pixels: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
        return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90) % 4))


@contextmanager
def _refusing(av: Any, where: str, *, streamed: bool) -> Iterator[None]:
    """Turn what PyAV raises into a DataError, or into an error that may pass."""
    try:
        yield
    except OSError:
        raise
    except av.error.FFmpegError as error:
        if streamed and not isinstance(error, tuple(getattr(av.error, n) for n in _LASTING if hasattr(av.error, n))):
            raise PassingError(f"{type(error).__name__}: {error}") from error
        raise DataError(_COMPLETE, where=where, value=f"{type(error).__name__}: {error}") from error


def with_clip(source: str, sampling: Sampling, where: str, read: Callable[[OpenClip], Any], *, streamed: bool) -> Any:
    """What ``read`` makes of an open clip.

    Args:
        source: a path or a URL.
    Raises:
        ConfigError: PyAV is not installed. DataError: broken, or without pictures. OSError, PassingError: it may be there later.
    """
    require_decoder(where)
    av: Any = importlib.import_module("av")
    timeout = {"timeout": sampling.timeout_seconds} if streamed else {}
    with _refusing(av, where, streamed=streamed), av.open(source, **timeout) as container:
        if not container.streams.video:
            raise DataError("the clip must hold a video stream", where=where, value=[s.type for s in container.streams])
        return read(OpenClip(container, container.streams.video[0], av.error.FFmpegError, sampling, where))
