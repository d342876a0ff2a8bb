"""Lines of an annotation file of clips: ``{"video": "a.mp4", "caption": "..."}`` and what else may be said about a clip."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coordvlm.data.named_splits import inside
from coordvlm.data.rows import read_rows
from coordvlm.data.table import leaves_folder
from coordvlm.data.values import INT64, integral, no_collecting, number
from coordvlm.utils.errors import DataError
from coordvlm.utils.overrides import hint, nearest

#: What a line may say, by the kind of its question.
_KINDS = {"caption": ("caption",), "qa": ("question", "answer"), "point": ("question", "point")}
_ANSWERS = frozenset(key for keys in _KINDS.values() for key in keys)
_KNOWN = (*sorted(_ANSWERS), "end", "id", "start", "video")
_RULE = "a line must have video and either caption, or question and answer, or question and point"
_URLS = ("http://", "https://")


class _BadLine(Exception):
    """A line that is refused, or left out and counted under ``key``."""

    def __init__(self, key: str, rule: str, value: object) -> None:
        super().__init__(rule)
        self.key, self.rule, self.value = key, rule, value


def is_url(name: str) -> bool:
    return name.lower().startswith(_URLS)


@dataclass(frozen=True)
class ClipRow:
    """One line.

    Args:
        id: of the clip. where: file and line. video: as written. path: where it is; None for a URL.
        kind: ``caption``, ``qa`` or ``point``. question, answer: ``""`` where there is none.
        point: (x, y) in px of the last frame. start, end: seconds; None: of the clip.
    """

    id: int
    where: str
    video: str
    path: Path | None
    kind: str
    question: str
    answer: str
    point: tuple[float, float] | None
    start: float | None
    end: float | None

    @property
    def named(self) -> str:
        """Line and clip, for messages."""
        return f"{self.where}: {self.path or self.video}"

    def content(self) -> tuple[object, ...]:
        """What is said, without where."""
        return self.id, self.video, self.kind, self.question, self.answer, self.point, self.start, self.end


class RowReader:
    """The lines of one split.

    Args:
        path: the file. videos: folder that names of clips start from. root: of the data; a clip lies in one of both.
        lenient: leave out and count what would be refused. trains: whether ``data.on_error=skip`` would help.
    """

    def __init__(self, path: Path, videos: Path, root: Path, *, lenient: bool, trains: bool) -> None:
        self.path, self.lenient = path, lenient
        self._videos, self._inside = videos, (root.resolve(), videos.resolve())
        self._hint = "; data.on_error=skip trains without it" if trains else "; without it the truth is unknown"
        self.counts: Counter[str] = Counter()
        self._ids: dict[int, str] = {}
        self._num_lines, self._with_id = 0, False
        self._paths: dict[str, Path | None] = {}

    def refuse(self, key: str, rule: str, *, where: object, value: object = ...) -> None:
        """Count under ``key`` and go on, or raise.

        Raises:
            DataError: unless lenient.
        """
        if not self.lenient:
            raise DataError(rule + self._hint, where=where, value=value)
        self.counts[key] += 1

    def rows(self) -> list[ClipRow]:
        """All lines in order.

        Raises:
            DataError: a missing file; ids on some lines only, or twice; a broken line, unless lenient.
        """
        with no_collecting():
            return list(self._read())

    def _read(self) -> Iterator[ClipRow]:
        for row in read_rows((self.path,)):
            where = f"{self.path}:{row.number}"
            if row.values is None:
                self.refuse("bad_line", row.problem[0], where=where, value=row.problem[1])
            else:
                row_id = self._id(row.values.get("id"), where)
                try:
                    found = self._row(row.values, row_id, where)
                except _BadLine as bad:
                    self.refuse(bad.key, bad.rule, where=where, value=bad.value)
                else:
                    yield found

    def _row(self, values: Mapping[str, Any], row_id: int, where: str) -> ClipRow:
        if unknown := sorted(map(str, values.keys() - set(_KNOWN))):
            rule = f"a line knows {', '.join(_KNOWN)}{hint(nearest(unknown[0], _KNOWN))}"
            raise _BadLine("unknown_key", rule, unknown[0])
        given = values.keys() & _ANSWERS
        kind = next((name for name, keys in _KINDS.items() if given == set(keys)), None)
        video = values.get("video")
        if kind is None or not isinstance(video, str):
            raise _BadLine("bad_line", _RULE, sorted(map(str, values)))
        for key in ("video", *sorted(given - {"point"})):
            if not isinstance(values[key], str) or not values[key].strip():
                raise _BadLine(f"empty_{key}", f"{key} must be text that is not blank", values[key])
        point = values.get("point")
        if kind == "point" and not _is_point(point):
            raise _BadLine("bad_point", "point must be [x, y], px of the last frame, not negative", point)
        times = (values.get("start"), values.get("end"))
        if not _is_window(*times):
            raise _BadLine("bad_window", "start and end must be seconds with 0 <= start < end", {"start": times[0], "end": times[1]})
        try:
            path = self._path(video.strip(), where)
        except DataError as error:
            raise _BadLine("missing_clip", error.rule, error.value) from error
        answer = values.get("caption", values.get("answer", "")).strip()
        xy = (float(point[0]), float(point[1])) if isinstance(point, list) else None
        start, end = (None if t is None else float(t) for t in times)
        return ClipRow(row_id, where, video.strip(), path, kind, values.get("question", "").strip(), answer, xy, start, end)

    def _path(self, video: str, where: str) -> Path | None:
        """Where a clip is; None for a URL.

        Raises:
            DataError: outside of the folders, or not there.
        """
        if video not in self._paths:
            if is_url(video):
                self._paths[video] = None
            else:
                if leaves_folder(video) or "://" in video:
                    rule = "a clip must be a relative path that stays inside its folder, or a http(s) URL"
                    raise DataError(rule, where=where, value=video)
                path = inside(self._videos / video, self._inside, where=where)
                if not path.exists():
                    raise DataError("the clip must exist: a file, or a folder of frames", where=where, value=str(path))
                self._paths[video] = path
        return self._paths[video]

    def _id(self, written: object, where: str) -> int:
        """The id of a line: its own, or its number among all."""
        self._num_lines += 1
        if self._num_lines > 1 and (written is not None) != self._with_id:
            raise DataError("either every line has an id or none", where=where, value=written)
        self._with_id = written is not None
        if written is None:
            return self._num_lines
        found = integral(written)
        if found is None or not INT64[0] <= found <= INT64[1]:
            raise DataError("id must be an integer of 64 bits", where=where, value=written)
        if found in self._ids:
            raise DataError(f"an id must be unique in its file (first at {self._ids[found]})", where=where, value=written)
        self._ids[found] = where
        return found


def _is_point(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(0 <= number(v) < math.inf for v in value)


def _is_window(start: object, end: object) -> bool:
    low, high = (number(t) if t is not None else default for t, default in ((start, 0.0), (end, math.inf)))
    return 0 <= low < high and low < math.inf and (end is None or high < math.inf)
