"""Sizes of image files that no annotation declares, from their headers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from coordvlm.data.images import displayed_size
from coordvlm.utils.errors import DataError

log = logging.getLogger(__name__)
#: A header takes about 30 us from a local disk, where threads only get in each other's way, and milliseconds over a network.
_SLOW_S, _TRIAL, _THREADS = 1e-3, 64, 16
_MANY, _REPORT_EVERY_S = 20_000, 10.0


def read_sizes(paths: Sequence[Path | bytes], where: Callable[[int], object]) -> Iterator[tuple[int, int] | DataError]:
    """(width, height) of the displayed frame of each file (or encoded image), in order, or what is wrong with it.

    Says so when there are many, and goes on saying so while it takes long.

    Args:
        where: position -> what an error names beside the file.
    """

    def one(at: int) -> tuple[int, int] | DataError:
        path = paths[at]
        try:
            return displayed_size(path, where=where(at) if isinstance(path, bytes) else f"{where(at)}: {path}")
        except DataError as error:
            return error

    if len(paths) >= _MANY:
        log.info("reading the sizes of %d images from their headers; widths and heights in the annotations would spare that", len(paths))
    start = said = time.monotonic()
    positions = iter(range(len(paths)))
    trial = [one(at) for at in islice(positions, _TRIAL)]
    yield from trial
    slow = bool(trial) and (time.monotonic() - start) / len(trial) > _SLOW_S
    with ThreadPoolExecutor(_THREADS) as pool:
        for done, found in enumerate(pool.map(one, positions) if slow else map(one, positions), start=len(trial) + 1):
            if (now := time.monotonic()) - said > _REPORT_EVERY_S:
                log.info("read the sizes of %d of %d images in %.0f s", done, len(paths), now - start)
                said = now
            yield found
