"""Rows of JSON lines and parquet files as dicts, with the file and the number of each."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coordvlm.utils.errors import ConfigError, DataError

#: What ends the name of a file that is read as parquet; everything else is JSON lines.
_PARQUET = (".parquet", ".pq")
_BATCH = 256
#: More than so many bytes of images in annotation files are not kept in memory.
MAX_EMBEDDED = 4 * 2**30


@dataclass(frozen=True)
class Embedded:
    """An image that a row holds itself: the name of its content in ``EmbeddedImages``, and the path it came from, if that is told."""

    digest: str
    path: str | None


class EmbeddedImages:
    """The images that rows hold themselves, each once: exports repeat an image on every row that speaks of it."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self._total = 0

    def take(self, row: Row, where: Callable[[Row], str]) -> Row:
        """The row with ``Embedded`` in the place of bytes.

        Raises:
            DataError: too many bytes together.
        """
        found: dict[str, Any] = {}
        for key, value in (row.values or {}).items():
            if type(value) not in (dict, bytes):
                continue
            content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
            if isinstance(content, bytes):
                digest = self._keep(content, row, where)
                found[key] = Embedded(digest, path if isinstance(path, str) and path.strip() else None)
        return replace(row, values={**(row.values or {}), **found}) if found else row

    def _keep(self, content: bytes, row: Row, where: Callable[[Row], str]) -> str:
        digest = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        if digest not in self.content:
            self.content[digest] = content
            self._total += len(content)
            if self._total > MAX_EMBEDDED:
                rule = f"images in annotation files must not have more than {MAX_EMBEDDED} bytes together; write them as files"
                raise DataError(rule, where=where(row), value=self._total)
        return digest


@dataclass(frozen=True)
class Row:
    """One row.

    Args:
        file: position in ``row_files``. number: line from 1 in JSON lines, row from 0 in parquet.
        values: the fields; None where the row could not be read, with what is wrong in ``problem``.
    """

    file: int
    number: int
    values: Mapping[str, Any] | None
    problem: tuple[str, object] = ("", None)


def row_files(root: Path, pattern: str) -> tuple[Path, ...]:
    """The files of a split: one, or all that a pattern with ``*`` names, by name.

    Raises:
        DataError: there is none.
    """
    found = sorted(root.glob(pattern)) if "*" in pattern and not Path(pattern).is_absolute() else [root / pattern]
    if not found:
        raise DataError("a pattern must name a file at least", where=root, value=pattern)
    return tuple(found)


def is_parquet(path: Path) -> bool:
    return path.suffix.lower() in _PARQUET


def read_rows(files: tuple[Path, ...]) -> Iterator[Row]:
    """All rows in order; blank lines are left out.

    Raises:
        DataError: a missing or unreadable file, one JSON document instead of lines.
        ConfigError: parquet, and nothing installed that reads it.
    """
    for at, path in enumerate(files):
        if not path.is_file():
            raise DataError("the annotation file must exist", where=path)
        for number, values, problem in _parquet(path) if is_parquet(path) else _lines(path):
            yield Row(at, number, values, problem)


def _lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | None, tuple[str, object]]]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError("the annotation file must be readable", where=path, value=str(error)) from error
    for number, raw in enumerate(io.BytesIO(data.removeprefix(b"\xef\xbb\xbf")), start=1):
        if not raw.strip():
            continue
        try:
            line = json.loads(raw.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            if number == 1 and raw.strip() in (b"[", b"{"):
                rule = "a JSONL file must hold one JSON object per line, not one JSON document"
                raise DataError(rule, where=f"{path}:1") from error
            yield number, None, ("a line must be JSON", f"{error}: {raw[:80].decode('utf-8', 'replace')}")
            continue
        if isinstance(line, dict):
            yield number, line, ("", None)
        elif number == 1 and isinstance(line, list):
            raise DataError("a JSONL file must hold one JSON object per line, not one JSON document", where=f"{path}:1")
        else:
            yield number, None, ("a line must be a JSON object", raw[:80].decode("utf-8", "replace").strip())


def _parquet(path: Path) -> Iterator[tuple[int, Mapping[str, Any], tuple[str, object]]]:
    try:
        reader: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ConfigError(f"reading {path} needs pyarrow (pip install pyarrow); or write it as JSON lines") from error
    number = 0
    try:
        for batch in reader.ParquetFile(path).iter_batches(batch_size=_BATCH):
            for values in batch.to_pylist():
                yield number, values, ("", None)
                number += 1
    except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
        raise DataError("the file must be parquet", where=path, value=str(error)) from error
