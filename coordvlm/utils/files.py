"""Writing that never leaves half a file: write beside, sync, rename last. A full or read-only disk is a clear error."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from coordvlm.utils.errors import CoordVLMError

#: Errors of the file system that a user can repair; anything else keeps its traceback.
_USER_ERRNOS = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.EFBIG,
    errno.ENAMETOOLONG, errno.EEXIST,
}


class OutputError(CoordVLMError):
    """Output cannot be written: full disk, no permission, or a file where a folder should be."""


def output_error(path: Path | str, error: OSError, need_bytes: int | None = None) -> OutputError:
    """An ``OutputError`` that names the path, the reason and, for a full disk, needed and free bytes."""
    parts = [f"{path}: cannot write: {error.strerror or error}"]
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        needed = "unknown" if need_bytes is None else f"{need_bytes:,}"
        parts.append(f"needed {needed} bytes, free {_free_text(path)}")
    elif error.filename and str(error.filename) != str(path):
        parts.append(f"at {error.filename}")
    return OutputError("; ".join(parts))


def is_output_problem(error: OSError) -> bool:
    """Whether a stray ``OSError`` of a command means a full or read-only disk (rather than a missing input)."""
    return error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


def free_bytes(path: Path | str) -> int | None:
    """Free bytes of the file system that holds ``path`` or its nearest existing parent; None when that cannot be told."""
    folder = Path(path).absolute()
    for candidate in (folder, *folder.parents):
        with suppress(OSError):
            return shutil.disk_usage(candidate).free
    return None


def _free_text(path: Path | str) -> str:
    free = free_bytes(path)
    return "unknown" if free is None else f"{free:,} bytes"


def check_writable(path: Path | str, need_bytes: int = 0) -> None:
    """Make the folder ``path`` and write a probe into it.

    Raises:
        OutputError: it cannot be made, cannot be written to, or has less than ``need_bytes`` free.
    """
    folder = Path(path)
    with _user_errors(folder, need_bytes):
        folder.mkdir(parents=True, exist_ok=True)
        handle, probe = tempfile.mkstemp(dir=folder, prefix=".probe-")
        try:
            os.write(handle, b"probe")
        finally:
            os.close(handle)
            os.unlink(probe)
    free = free_bytes(folder)
    if free is not None and free < need_bytes:
        raise OutputError(f"{folder}: not enough space: needed {need_bytes:,} bytes, free {free:,} bytes")


@contextmanager
def _user_errors(path: Path, need_bytes: int | None = None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _USER_ERRNOS:
            raise output_error(path, error, need_bytes) from error
        raise


def _sync(path: Path) -> None:
    """Flush a file or a folder's entries to disk; file systems that cannot sync a folder are left alone."""
    flags = os.O_RDONLY | (getattr(os, "O_DIRECTORY", 0) if path.is_dir() else 0)
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP, errno.EBADF}:
            raise
    finally:
        os.close(handle)


def atomic_write_bytes(path: Path | str, data: bytes) -> None:
    """Replace ``path`` by ``data`` or leave it as it was. Makes parent folders.

    Raises:
        OutputError: full disk, no permission, or a path that cannot be a file.
    """
    target = Path(path)
    with _user_errors(target, len(data)):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, _file_mode(target))
            os.replace(name, target)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise


def _file_mode(target: Path) -> int:
    """Mode of the file to be replaced, else what ``open`` would give (mkstemp makes files private)."""
    try:
        return target.stat().st_mode & 0o777
    except OSError:
        return 0o666 & ~_umask()


def atomic_write_text(path: Path | str, text: str) -> None:
    """UTF-8, newlines kept."""
    atomic_write_bytes(path, text.encode("utf-8"))


def _finite(data: object) -> object:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return data


def atomic_write_json(path: Path | str, data: object) -> None:
    """Indented JSON. Non-finite numbers become null, so that readers other than Python's can open the file."""
    atomic_write_text(path, json.dumps(_finite(data), indent=2, ensure_ascii=False, default=str, allow_nan=False) + "\n")


@contextmanager
def atomic_folder(path: Path | str, need_bytes: int = 0) -> Iterator[Path]:
    """Fill a folder beside ``path``; on success it takes the name, on any failure the previous folder stays as it was.

    Args:
        path: the folder to replace. need_bytes: refuse to start with less space than this.
    Yields:
        The folder to write into.
    Raises:
        OutputError: as above; also when writing inside the block fails for a reason of the disk.

    Replacing a non-empty folder takes two renames. If the process dies between them the previous folder is found at
    ``.<name>.old`` and put back by the next ``atomic_folder`` or by ``recover_folder``.
    """
    target = Path(path).absolute()
    old = target.with_name(f".{target.name}.old")
    with _user_errors(target, need_bytes or None):
        target.parent.mkdir(parents=True, exist_ok=True)
        free = free_bytes(target.parent)
        if free is not None and free < need_bytes:
            raise OutputError(f"{target}: not enough space: needed {need_bytes:,} bytes, free {free:,} bytes")
        recover_folder(target)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part"))
        try:
            temporary.chmod(0o777 & ~_umask())
            yield temporary
            for entry in sorted(temporary.rglob("*")):
                if entry.is_file() and not entry.is_symlink():
                    _sync(entry)
            _sync(temporary)
            if target.exists():
                os.rename(target, old)
            try:
                os.rename(temporary, target)
            except OSError:
                if old.exists():
                    os.rename(old, target)
                raise
            _sync(target.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def recover_folder(path: Path | str) -> None:
    """Put back ``.<name>.old`` if a process died between the two renames of ``atomic_folder``."""
    target = Path(path)
    old = target.with_name(f".{target.name}.old")
    if old.is_dir():
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, target)


def sha1_file(path: Path | str) -> str:
    """Hex digest of a file's bytes, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha1").hexdigest()
