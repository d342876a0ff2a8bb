"""Clips with captions, questions or points: video files, URLs or folders of frames, named in JSON lines.

``{"video": "clips/a.mp4", "caption": "..."}``, ``{"video": "frames/a/", "question": "...", "answer": "..."}`` or
``{..., "question": "...", "point": [x, y]}`` in px of the last frame; ``id``, ``start`` and ``end`` (seconds) may be added.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coordvlm.contracts import Clip, ClipTruth, Object
from coordvlm.data.detection import parse_fields
from coordvlm.data.named_splits import NamedSplits
from coordvlm.data.video_decode import require_decoder
from coordvlm.data.video_folder import frame_files
from coordvlm.data.video_reader import ClipReader, Facts, short_rule
from coordvlm.data.video_rows import ClipRow, RowReader
from coordvlm.data.video_sampling import Sampling
from coordvlm.utils.errors import ConfigError, DataError

_THREADS = 8
_NO_SIZE = (math.nan, math.nan)


@dataclass(frozen=True, kw_only=True)
class VideoFiles:
    """Where a split lives.

    Args:
        file: JSON lines. videos: folder that names of clips start from. Both relative to the root or absolute.
        num_clips: only the first so many lines that are left.
    """

    file: str
    videos: str
    num_clips: int | None = None


class Video(NamedSplits["VideoSplit"]):
    """A ``DataSource`` of annotated clips.

    Lines are checked here: the first broken one raises, or is left out of ``train`` and counted (``on_error=skip``). Folders are listed.
    Videos are opened when a sample is made, and what is wrong with them is then a ``DataError``, which the loader raises or skips and
    counts. They are opened here only where an option counts something in them: ``min_seconds``, ``short=repeat``, ``mixed_sizes=resize``.

    Args:
        root, on_error, test: see ``NamedSplits``.
        splits: name -> the fields of ``VideoFiles``, or None.
        min_seconds: shorter clips (from ``start`` to ``end``) are left out of every split and counted; None: none are.
        num_frames, fps, folder_fps, short, mixed_sizes, max_pixels, retries, retry_seconds, timeout_seconds: see ``Sampling``.
    Raises:
        DataError: broken lines, missing clips, a folder shorter than T frames, no clip left.
        ConfigError: an option without a meaning; video files without PyAV; seconds of folders without ``folder_fps``.
    """

    samples = "clips"

    def __init__(
        self, *, root: str | Path, splits: Mapping[str, Mapping[str, object] | None], test: str | None, num_frames: int, fps: float | None,
        min_seconds: float | None, folder_fps: float | None, short: str, mixed_sizes: str, max_pixels: int, retries: int,
        retry_seconds: float, timeout_seconds: float, on_error: str,
    ) -> None:
        super().__init__(root=root, on_error=on_error, test=test)
        self._sampling = Sampling(
            num_frames=num_frames, fps=fps, folder_fps=folder_fps, short=short, mixed_sizes=mixed_sizes, max_pixels=max_pixels,
            retries=retries, retry_seconds=retry_seconds, timeout_seconds=timeout_seconds,
        )
        if min_seconds is not None and not 0 < min_seconds < math.inf:
            raise ConfigError(f"data.source.min_seconds must be null or positive seconds, got {min_seconds!r}")
        self._min_seconds = min_seconds
        given = {
            name: parse_fields(VideoFiles, f"data.source.splits.{name}", values) for name, values in splits.items() if values is not None
        }
        if not given:
            raise ConfigError("data.source.splits must name a split at least")
        self.check_test(given)
        for name, files in given.items():
            self._splits[name] = self._read(name, files)
        self.note_test(given)

    @property
    def class_names(self) -> tuple[str, ...]:
        """None: answers are words or places."""
        return ()

    def truth(self, name: str) -> ClipTruth:
        """Kept after the first call, which opens the clips whose answer is a point, for the size of their last frame. Sizes of other
        clips are NaN: nothing is measured in them.

        Raises:
            DataError: a point outside its frame; a clip with a point that cannot be opened.
        """
        return self.split(name).truth()

    def dropped(self, name: str) -> Mapping[str, int]:
        """By reason; ``repeated_frames`` and ``resized_frames`` count clips that are kept."""
        return self.split(name).dropped

    def digests(self) -> Mapping[str, str]:
        """Over what the lines say and how frames are chosen; videos are not read."""
        s = self._sampling
        how = (s.num_frames, s.fps, s.folder_fps, s.short, s.mixed_sizes, self._min_seconds)
        return {
            name: hashlib.sha256(repr((how, [row.content() for row in split.rows])).encode("utf-8", "surrogatepass")).hexdigest()[:12]
            for name, split in self._splits.items()
        }

    def _read(self, name: str, files: VideoFiles) -> VideoSplit:
        lenient = self.is_lenient(name)
        reader = RowReader(self.root / files.file, self.root / files.videos, self.root, lenient=lenient, trains=name == "train")
        rows = self._listed(reader.rows(), reader)
        rows = self._measured(name, rows, reader)
        if files.num_clips is not None:
            if not 0 < files.num_clips <= len(rows):
                raise DataError(f"data.source.splits.{name}.num_clips asks for {files.num_clips} clips", where=reader.path, value=len(rows))
            rows = rows[: files.num_clips]
        if not rows:
            raise DataError(f"data.source.splits.{name}: no clip is left", where=reader.path)
        dropped = {key: n for key, n in sorted(reader.counts.items()) if n}
        return VideoSplit(name, tuple(rows), ClipReader(self._sampling), dropped)

    def _listed(self, rows: Sequence[ClipRow], reader: RowReader) -> list[ClipRow]:
        """Rows whose folder, where they have one, has frames enough. Nothing is opened."""
        sampling, numbers, kept = self._sampling, dict[Path, int](), []
        for row in rows:
            if row.path is None or not row.path.is_dir():
                require_decoder(row.named)
                kept.append(row)
                continue
            timed = [k for k, v in (
                ("fps", sampling.fps), ("min_seconds", self._min_seconds), ("start", row.start), ("end", row.end)
            ) if v is not None]
            if timed and sampling.folder_fps is None:
                raise ConfigError(f"{row.named} is a folder of frames, so {timed[0]} needs data.source.folder_fps, frames per second")
            if row.path not in numbers:
                numbers[row.path] = len(frame_files(row.path))
            least = sampling.num_frames if sampling.short == "refuse" else 1
            if numbers[row.path] < least:
                rule = short_rule(sampling) if numbers[row.path] else "a folder of frames must hold images"
                reader.refuse("short_clip", rule, where=row.named, value=numbers[row.path])
            else:
                kept.append(row)
        return kept

    def _measured(self, name: str, rows: list[ClipRow], reader: RowReader) -> list[ClipRow]:
        """Rows of clips that are long enough, with what is done to them counted."""
        def counts_in(row: ClipRow) -> bool:
            folder = row.path is not None and row.path.is_dir()
            return self._min_seconds is not None or self._sampling.short == "repeat" or (folder and self._sampling.mixed_sizes == "resize")

        opened = [row for row in rows if counts_in(row)]
        found = dict(zip((row.id for row in opened), _each(opened, ClipReader(self._sampling).facts), strict=True))
        kept: list[ClipRow] = []
        for row in rows:
            facts = found.get(row.id)
            if isinstance(facts, DataError):
                if name == "train" or not self._skip:
                    reader.refuse("unreadable_clip", facts.rule, where=facts.where, value=facts.value)
                    continue
            elif facts is not None and self._min_seconds is not None and facts.seconds < self._min_seconds:
                reader.counts["below_min_seconds"] += 1
                continue
            elif facts is not None:
                reader.counts.update(_changes(facts, self._sampling))
            kept.append(row)
        return kept


def _changes(facts: Facts, sampling: Sampling) -> Counter[str]:
    return Counter({"repeated_frames": int(facts.available < sampling.num_frames), "resized_frames": int(facts.mixed)})


def _each(rows: Sequence[ClipRow], read: Callable[[ClipRow], Facts]) -> list[Facts | DataError]:
    """What each clip says of itself, or what is wrong with it."""
    def one(row: ClipRow) -> Facts | DataError:
        try:
            return read(row)
        except DataError as error:
            return error

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(one, rows))


class VideoSplit:
    """A ``Split`` of ``Video``."""

    def __init__(self, name: str, rows: tuple[ClipRow, ...], reader: ClipReader, dropped: Mapping[str, int]) -> None:
        self._name, self.rows, self._reader, self.dropped = name, rows, reader, dropped
        self._truth: ClipTruth | None = None

    @property
    def name(self) -> str:
        return self._name

    @property
    def ids(self) -> NDArray[np.int64]:
        return np.asarray([row.id for row in self.rows], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def sample(self, index: int, epoch: int) -> Clip:
        """The same in every epoch.

        Raises:
            DataError: the clip cannot be read as it should, or its point is not in its last frame.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} clips, asked for {index}")
        row = self.rows[index]
        frames = self._reader.frames(row)
        height, width = frames.shape[1:3]
        _check_point(row, (width, height))
        objects = () if row.point is None else (Object("answer", point_px=row.point, annotation_id=row.id),)
        return Clip(
            row.id, Image.fromarray(frames[-1]), width, height, objects, phrase=row.question,
            meta={"file_name": row.video, "where": row.where, "split": self.name}, frames=frames, answer=row.answer, kind=row.kind,
            evidence=np.full((len(frames), 2), np.nan, dtype=np.float32),
        )

    def truth(self) -> ClipTruth:
        """See ``Video.truth``."""
        if self._truth is None:
            sizes = [_NO_SIZE if row.point is None else self._reader.size(row) for row in self.rows]
            for row, size in zip(self.rows, sizes, strict=True):
                _check_point(row, size)
            clips = {video: at for at, video in enumerate(dict.fromkeys(row.video for row in self.rows))}
            self._truth = ClipTruth.of(
                ids=self.ids.tolist(), questions=[r.question for r in self.rows], answers=[r.answer for r in self.rows],
                kinds=[r.kind for r in self.rows], source_clip=[clips[r.video] for r in self.rows],
                sizes=sizes, points=[r.point for r in self.rows],  # type: ignore[arg-type]
            )
        return self._truth


def _check_point(row: ClipRow, size: tuple[float, float]) -> None:
    if row.point is not None and not (row.point[0] <= size[0] and row.point[1] <= size[1]):
        rule = f"point must lie in the last frame, {size[0]:g} x {size[1]:g} px"
        raise DataError(rule, where=row.where, value=list(row.point))
