"""One clip of an annotation file: its length and size, and the frames that are shown of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from coordvlm.data.video_decode import OpenClip, with_clip
from coordvlm.data.video_folder import files_at, frame_files, read_frames, sizes_of
from coordvlm.data.video_retry import with_retries
from coordvlm.data.video_rows import ClipRow
from coordvlm.data.video_sampling import Sampling, Times, sample_times, window_of
from coordvlm.utils.errors import DataError

R = TypeVar("R")


@dataclass(frozen=True)
class Facts:
    """Of a line. seconds: of what is read of the clip; of a folder without a rate, its number of frames. available: see ``Times``.
    mixed: whether the frames shown have several sizes; False for video files, which are refused then."""

    seconds: float
    available: int
    mixed: bool


@dataclass(frozen=True)
class ClipReader:
    """Reads clips as ``sampling`` says; picklable."""

    sampling: Sampling

    def frames(self, row: ClipRow) -> NDArray[np.uint8]:
        """uint8[T, height, width, 3], RGB.

        Raises:
            DataError: missing, unreadable, shorter than T frames, frames of several sizes; names line and file.
        """
        if _is_folder(row):
            return self._retried(row, lambda: read_frames(self._shown(row, self._long_enough)[0], self.sampling, row.where))

        def read(clip: OpenClip) -> NDArray[np.uint8]:
            start, times = self._times(row, clip.header.seconds, clip.header.rate)
            self._long_enough(row, times)
            return clip.frames([start + s for s in times.seconds])

        return self._opened(row, read)

    def size(self, row: ClipRow) -> tuple[int, int]:
        """(width, height) px of the last frame shown. A video file is decoded there, as its header does not say how it is turned.

        Raises:
            DataError: see ``frames``.
        """
        if _is_folder(row):
            return self._retried(row, lambda: sizes_of(self._shown(row, self._long_enough)[0][-1:], row.where)[0])

        def read(clip: OpenClip) -> tuple[int, int]:
            start, times = self._times(row, clip.header.seconds, clip.header.rate)
            height, width = clip.frames([start + times.seconds[-1]]).shape[1:3]
            return int(width), int(height)

        return self._opened(row, read)

    def facts(self, row: ClipRow) -> Facts:
        """Without decoding pictures. Sizes are compared where ``mixed_sizes`` is ``resize``.

        Raises:
            DataError: see ``frames``.
        """
        if _is_folder(row):
            return self._retried(row, lambda: self._folder_facts(row))

        def read(clip: OpenClip) -> Facts:
            said = (clip.header.seconds, clip.header.rate)
            return Facts(self._window(row, *said)[1], self._times(row, *said)[1].available, False)

        return self._opened(row, read)

    def _folder_facts(self, row: ClipRow) -> Facts:
        files, times = self._shown(row)
        num, rate = len(frame_files(_folder(row))), self.sampling.folder_fps or 1.0
        mixed = self.sampling.mixed_sizes == "resize" and len(set(sizes_of(files, row.where))) > 1
        return Facts(self._window(row, num / rate, rate)[1], times.available, mixed)

    def _shown(self, row: ClipRow, check: Callable[[ClipRow, Times], None] | None = None) -> tuple[list[Path], Times]:
        """The files of a folder that are shown, and their times."""
        files, rate = frame_files(_folder(row)), self.sampling.folder_fps or 1.0
        if not files:
            raise DataError("a folder of frames must hold images", where=row.where, value=str(row.path))
        start, times = self._times(row, len(files) / rate, rate)
        if check is not None:
            check(row, times)
        return files_at(files, [start + s for s in times.seconds], rate), times

    def _window(self, row: ClipRow, seconds: float, rate: float) -> tuple[float, float]:
        """(start, length) in seconds of what is read."""
        found = window_of(row.start, row.end, seconds, rate)
        if found is None:
            value = {"start": row.start, "end": row.end, "seconds": round(seconds, 3)}
            raise DataError("start and end must lie in the clip", where=row.named, value=value)
        return found[0], found[1] - found[0]

    def _times(self, row: ClipRow, seconds: float, rate: float) -> tuple[float, Times]:
        start, length = self._window(row, seconds, rate)
        s = self.sampling
        return start, sample_times(length, rate, num_frames=s.num_frames, fps=s.fps, last=row.point is not None)

    def _long_enough(self, row: ClipRow, times: Times) -> None:
        if times.available < self.sampling.num_frames and self.sampling.short == "refuse":
            raise DataError(short_rule(self.sampling), where=row.named, value=times.available)

    def _retried(self, row: ClipRow, read: Callable[[], R]) -> R:
        return with_retries(read, retries=self.sampling.retries, pause=self.sampling.retry_seconds, where=row.named)

    def _opened(self, row: ClipRow, read: Callable[[OpenClip], R]) -> R:
        source = str(row.path) if row.path is not None else row.video

        def once() -> R:
            found: R = with_clip(source, self.sampling, row.named, read, streamed=row.path is None)
            return found

        return self._retried(row, once)


def short_rule(sampling: Sampling) -> str:
    """What a clip that is too short breaks."""
    at = f" at {sampling.fps:g} per second" if sampling.fps else ""
    return f"a clip must have at least {sampling.num_frames} frames{at} (data.source.num_frames), or data.source.short=repeat"


def _is_folder(row: ClipRow) -> bool:
    return row.path is not None and row.path.is_dir()


def _folder(row: ClipRow) -> Path:
    assert row.path is not None
    return row.path
