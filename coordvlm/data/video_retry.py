"""Reading again what failed for a reason that may pass: files of a network drive, streams."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

from coordvlm.utils.errors import DataError

log = logging.getLogger(__name__)
R = TypeVar("R")
#: Errors of the system that stay what they are.
_LASTING = frozenset({
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.ENOSYS,
})


class PassingError(Exception):
    """A stream failed in a way that may pass; the cause is what the decoder raised."""


def may_pass(error: BaseException) -> bool:
    """Whether an error, or one beneath it, is one of the system that may be gone at the next try. Broken files are not."""
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, PassingError):
            return True
        if isinstance(current, OSError) and current.errno is not None and current.errno not in _LASTING:
            return True
        current = current.__cause__
    return False


def with_retries(read: Callable[[], R], *, retries: int, pause: float, where: str) -> R:
    """What ``read`` returns; after an error that may pass, ``retries`` times more.

    Args:
        pause: seconds before the second try; doubled before each further one.
    Raises:
        DataError: whatever a read raised last, named by ``where``.
    """
    for again in range(retries + 1):
        try:
            return read()
        except (DataError, OSError, PassingError) as error:
            if again == retries or not may_pass(error):
                if isinstance(error, DataError):
                    raise
                tried = f" ({again + 1} tries)" if again else ""
                shown = error.__cause__ if isinstance(error, PassingError) and error.__cause__ else error
                raise DataError(f"the clip must be readable{tried}", where=where, value=f"{type(shown).__name__}: {shown}") from error
            log.warning("%s: %s; trying again", where, error)
            time.sleep(pause * 2**again)
    raise AssertionError("a read returns or raises")
