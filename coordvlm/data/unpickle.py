"""Pickles that hold data and nothing else.

A pickle is a program: it may name any function that can be imported and call it. Whatever names something is refused before it is
looked up, so that nothing is left that could be called. What remains are lists, dicts, tuples, sets, text, bytes, numbers, booleans
and None.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, NoReturn

from coordvlm.data.values import no_collecting
from coordvlm.utils.errors import DataError

#: 50,000 referring expressions with 142,000 sentences, as many as RefCOCO has, written like RefCOCO's take 27 MB.
MAX_BYTES = 256 * 2**20
_RULE = "a pickle must hold plain containers, text and numbers only; this one asks for code or a class, which is never loaded"


def load_plain(path: Path, *, max_bytes: int = MAX_BYTES) -> tuple[Any, str]:
    """The content of a pickle of any protocol, and how the byte strings of Python 2 in it were read: ``utf-8`` or ``latin1``.

    Raises:
        DataError: missing, too large, not a pickle, bytes after its end, or anything that names a module, a class or a function.
    """
    try:
        if path.stat().st_size > max_bytes:
            raise DataError(f"a pickle must not have more than {max_bytes} bytes", where=path, value=path.stat().st_size)
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError("the file with the referring expressions must exist", where=path) from error
    except OSError as error:
        raise DataError("the file with the referring expressions must be readable", where=path, value=str(error)) from error
    try:
        return _load(data, path, "utf-8"), "utf-8"
    except UnicodeDecodeError:
        return _load(data, path, "latin1"), "latin1"


def _load(data: bytes, path: Path, encoding: str) -> Any:
    stream = io.BytesIO(data)
    try:
        with no_collecting():
            found = _PlainUnpickler(stream, path, encoding).load()
    except (DataError, UnicodeDecodeError):
        raise
    except Exception as error:  # UnpicklingError, EOFError, TypeError of a call without a callable, MemoryError, OverflowError ...
        rule = "the file must be a complete pickle of plain containers"
        raise DataError(rule, where=path, value=f"{type(error).__name__}: {error}") from error
    if rest := len(data) - stream.tell():
        raise DataError("a pickle must end where its file ends", where=path, value=f"{rest} bytes more")
    return found


class _PlainUnpickler(pickle.Unpickler):
    """Without the two doors: names of things that can be imported, and ids of things kept elsewhere.

    GLOBAL, STACK_GLOBAL, INST and the extension codes all go through ``find_class``; REDUCE, OBJ, NEWOBJ and BUILD then find nothing on
    the stack that they could call.
    """

    def __init__(self, stream: io.BytesIO, path: Path, encoding: str) -> None:
        super().__init__(stream, fix_imports=False, encoding=encoding)
        self._path = path

    def find_class(self, module: str, name: str, /) -> NoReturn:
        raise DataError(_RULE, where=self._path, value=f"{module}.{name}")

    def persistent_load(self, pid: Any, /) -> NoReturn:
        raise DataError(_RULE, where=self._path, value=f"persistent id {pid!r}"[:200])
