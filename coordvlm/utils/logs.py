"""One console handler and one file handler on the root logger, however often commands and jobs follow one another."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from pathlib import Path

_ours: list[logging.Handler] = []
_FILE_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def process_rank() -> int:
    """Rank of a process that a launcher started, 0 otherwise."""
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0


class _Short(logging.Filter):
    """The console shows our own messages and other libraries' warnings; the file has everything."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or record.name.split(".")[0] in {"coordvlm", "__main__"}


def configure(run_dir: Path | None = None, verbose: bool = False) -> None:
    """Replace what an earlier call, or Hydra, put on the root logger.

    Args:
        run_dir: gets ``run.log`` (``run.rank1.log`` for other ranks). verbose: debug messages, of every library.
    """
    close()
    root = logging.getLogger()
    rank = process_rank()
    console = _console()
    console.setLevel(logging.WARNING if rank else logging.DEBUG if verbose else logging.INFO)
    if not verbose:
        console.addFilter(_Short())
    _add(console)
    if run_dir is not None:
        file = logging.FileHandler(run_dir / (f"run.rank{rank}.log" if rank else "run.log"), encoding="utf-8")
        file.setFormatter(logging.Formatter(_FILE_FORMAT))
        _add(file)
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.getLogger("coordvlm").setLevel(logging.DEBUG)
    logging.captureWarnings(True)


def adopt(*names: str) -> None:
    """Let libraries that print through handlers of their own (Lightning) log through ours; call after importing them."""
    for name in names:
        logger = logging.getLogger(name)
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
        logger.propagate = True


def _add(handler: logging.Handler) -> None:
    _ours.append(handler)
    logging.getLogger().addHandler(handler)


def close() -> None:
    """Flush and close the handlers of ``configure`` and any bare stream handler (Hydra's default)."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        if handler in _ours or type(handler) is logging.StreamHandler:
            root.removeHandler(handler)
            with suppress(ValueError):  # its stream may be closed already
                handler.close()
    _ours.clear()


def _console() -> logging.Handler:
    if not sys.stdout.isatty():  # one line per message, whatever the width a pipe is said to have
        handler: logging.Handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        return handler
    from rich import get_console
    from rich.logging import RichHandler

    # The global console is the one a live progress bar uses: lines then appear above the bar instead of through it.
    return RichHandler(console=get_console(), show_path=False, show_time=False, show_level=False, markup=False, rich_tracebacks=False)
