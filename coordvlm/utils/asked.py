"""What ``predict`` is asked: ``images=`` and ``phrase=`` or ``phrases=`` of the command line as one list of requests."""

from __future__ import annotations

import csv
import glob
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from coordvlm.utils.errors import ConfigError, DataError

#: Files of a folder or pattern that count as images; a file that is named itself may be called anything.
IMAGE_SUFFIXES = frozenset(
    (".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
_MAGIC = frozenset("*?[")


@dataclass(frozen=True)
class Request:
    """One question. ``phrase``: None asks for every object. ``where``: what errors name."""

    image: Path
    phrase: str | None
    where: str


@dataclass(frozen=True)
class _Row:
    """A line of a phrases file. ``image``: as written there, None where the file names no images."""

    phrase: str
    image: str | None
    where: str


def read_requests(images: str | None, *, phrase: str | None, phrases: str | None) -> list[Request]:
    """Every request, images sorted by name, the phrases of an image in their own order.

    Args:
        images: a file, a folder (its image files, not those of folders in it), or a pattern (``**`` for folders in folders). With a
            phrases file that names its images: the folder they are relative to; null: the file's own.
        phrase: one phrase, asked of every image. phrases: a file of them: text with one per line, or JSONL or CSV with ``phrase``
            and perhaps ``image``. Both None: detection.
    Raises:
        ConfigError: nothing to ask, nothing to ask it of, or both ways of asking at once.
        DataError: a phrases file that cannot be read; names file and line.
    """
    if phrase is not None and phrases is not None:
        raise ConfigError("phrase= and phrases= exclude each other: one phrase, or a file of them")
    rows = read_phrases(Path(phrases).expanduser()) if phrases is not None else []
    if rows and rows[0].image is not None:
        return _paired(rows, images, Path(str(phrases)).expanduser())
    if phrase is not None:
        if not phrase.strip():
            raise ConfigError(f"phrase={phrase!r}: a phrase must have at least one word")
        rows = [_Row(phrase.strip(), None, "phrase=")]
    if images is None:
        raise ConfigError("no images to look at: add images=<file, folder or pattern>")
    found = find_images(images)
    if not rows:
        return [Request(path, None, str(path)) for path in found]
    return [Request(path, row.phrase, f"{path}, {row.phrase!r}") for path in found for row in rows]


def find_images(text: str) -> list[Path]:
    """The images that ``images=`` means, sorted by name. A file or folder whose name looks like a pattern is that file or folder.

    Raises:
        ConfigError: there is none.
    """
    path = Path(text).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        candidates, what = list(path.iterdir()), "the folder has"
    elif _MAGIC & set(text):
        candidates, what = [Path(p) for p in glob.glob(str(path), recursive=True)], "the pattern matches"
    else:
        raise ConfigError(f"images={text}: no such file or folder")
    files = [p for p in candidates if p.is_file() and not p.name.startswith(".")]
    found = sorted(p for p in files if p.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise ConfigError(f"images={text}: {what} {len(files)} files and no image ({' '.join(sorted(IMAGE_SUFFIXES))})")
    return found


def read_phrases(path: Path) -> list[_Row]:
    """The lines of a phrases file; blank ones are passed over.

    Raises:
        DataError: not UTF-8, no phrase in it, a line without a phrase, or some lines with an image and some without.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"a phrases file must be readable as UTF-8 text: {error}", where=path) from error
    readers: dict[str, Callable[[Path, str], Iterator[_Row]]] = {".jsonl": _json_lines, ".ndjson": _json_lines, ".csv": _csv_lines}
    rows = list(readers.get(path.suffix.lower(), _text_lines)(path, text))
    if not rows:
        raise DataError("a phrases file must hold at least one phrase", where=path)
    for row in rows:
        if not row.phrase:
            raise DataError("a phrase must have at least one word", where=row.where)
        if (row.image is None) != (rows[0].image is None):
            raise DataError("either every line names its image or none does", where=row.where)
    return rows


def _text_lines(path: Path, text: str) -> Iterator[_Row]:
    for number, line in enumerate(io.StringIO(text), 1):  # at newlines only: a form feed is part of a phrase
        if line.strip():
            yield _Row(line.strip(), None, f"{path}:{number}")


def _json_lines(path: Path, text: str) -> Iterator[_Row]:
    for number, line in enumerate(io.StringIO(text), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            data = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"must be JSON: {error}", where=where) from error
        if not isinstance(data, dict) or not isinstance(data.get("phrase"), str):
            raise DataError('must be a mapping with a text "phrase"', where=where, value=data)
        image = data.get("image")
        if image is not None and (not isinstance(image, str) or not image):
            raise DataError('"image" must be a path', where=where, value=image)
        yield _Row(data["phrase"].strip(), image, where)


def _csv_lines(path: Path, text: str) -> Iterator[_Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = [c.strip() for c in reader.fieldnames or ()]
        if "phrase" not in columns:
            raise DataError('a CSV file of phrases must have a column "phrase", and may have "image"', where=f"{path}:1", value=columns)
        reader.fieldnames = columns
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if None in row or row["phrase"] is None:
                raise DataError(f"must have {len(columns)} fields; one with a comma needs quotes", where=where)
            if "image" in columns and not row["image"]:
                raise DataError('"image" must be a path', where=where, value=row["image"])
            yield _Row(row["phrase"].strip(), row["image"] if "image" in columns else None, where)
    except csv.Error as error:
        raise DataError(f"must be CSV: {error}", where=f"{path}:{reader.line_num}") from error


def _paired(rows: Sequence[_Row], images: str | None, file: Path) -> list[Request]:
    """Requests of a file that names its images."""
    root = file.parent if images is None else Path(images).expanduser()
    if images is not None and not root.is_dir():
        raise ConfigError(f"images={images}: {file} names its images, so images= must be the folder they are relative to, or null")
    found = [Request(root / str(row.image), row.phrase, row.where) for row in rows]
    return sorted(found, key=lambda request: str(request.image))
