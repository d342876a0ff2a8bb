"""One job of a sweep as a process of its own: what a job leaks, breaks or kills is gone with it.

A job runs in a session of its own, so that Ctrl-C in the terminal reaches the sweep alone, which passes it on once; a second one
would cut off the checkpoint that the first one asked for. If the sweep dies (``kill -9``), Linux interrupts the job.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coordvlm.utils.overrides import escape_interpolation
from coordvlm.utils.sweep import RESULT_FILE

CONSOLE = "console.log"
RESULT = "job.json"
_INTERRUPTED = (130, -signal.SIGINT)
_PR_SET_PDEATHSIG = 1
#: Hydra's own keys that belong to the sweep and not to one job of it.
_OF_THE_SWEEP = re.compile(r"[+~]*hydra([./](launcher|sweeper)\b|\.(sweep|mode|run)\b)")


@dataclass(frozen=True)
class ChildCommand:
    """The command line of a job, without its overrides.

    Args:
        module: run with ``python -m``. config_name: its root configuration.
        config_path: as ``-cp``. config_dir: absolute, as ``-cd``.
    """

    module: str
    config_name: str
    config_path: str | None = None
    config_dir: str | None = None

    @classmethod
    def of(cls, main: Callable[..., Any], config_name: str, config_path: str | None, config_dir: str | None) -> ChildCommand | None:
        """None for a ``main`` that another process cannot find: it is not at the top of a module."""
        module = main.__module__
        if module == "__main__":
            spec = getattr(sys.modules["__main__"], "__spec__", None)
            module = spec.name if spec else ""
        if not module or "." in getattr(main, "__qualname__", "."):
            return None
        return cls(module, config_name, config_path, config_dir)

    def arguments(self, overrides: Sequence[str], hydra_overrides: Sequence[str], folder: Path) -> list[str]:
        """The whole command line; the job writes into ``folder``."""
        from hydra.core.override_parser.types import Quote, QuotedString

        options = [x for flag, value in (("-cp", self.config_path), ("-cd", self.config_dir)) if value for x in (flag, value)]
        kept = [line for line in hydra_overrides if not _OF_THE_SWEEP.match(line)]
        place = QuotedString(escape_interpolation(str(folder)), Quote.single).with_quotes()
        fixed = ["hydra.mode=RUN", f"hydra.run.dir={place}"]
        return [sys.executable, "-m", self.module, *options, "-cn", self.config_name, *kept, *overrides, *fixed]


class Child:
    """The running job.

    Args:
        arguments: its command line. folder: of its run, made here; its output goes to ``console.log`` in it.
        environment: added to this process's. keep_open: a file descriptor it inherits, the sweep's lock.
    """

    def __init__(self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], keep_open: int | None) -> None:
        self.folder = folder
        self.started = time.monotonic()
        self.seconds: float | None = None
        folder.mkdir(parents=True, exist_ok=True)
        own = {"PYTHONUNBUFFERED": "1", RESULT_FILE: str(folder / RESULT)}
        with (folder / CONSOLE).open("wb") as console:
            self.process = subprocess.Popen(
                arguments,
                env={**os.environ, **environment, **own},
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=() if keep_open is None else (keep_open,),
                preexec_fn=_follow_parent,  # safe: this process has no other threads that could hold a lock
            )

    def ended(self) -> bool:
        if self.process.poll() is None:
            return False
        if self.seconds is None:
            self.seconds = time.monotonic() - self.started
            if self.process.returncode < 0:
                self._signal(signal.SIGKILL)  # a killed job leaves its data loaders behind
        return True

    def interrupt(self) -> None:
        """Ask it to save and stop, as Ctrl-C does."""
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)

    def outcome(self) -> tuple[str, float | None, str | None]:
        """(status, metric, error) of a job that has ended."""
        code = self.process.returncode
        told = read_result(self.folder)
        if code == 0:
            return "finished", told.get("metric"), None
        if code in _INTERRUPTED:
            return "interrupted", None, "stopped by Ctrl-C"
        return "failed", None, told.get("error") or last_error(self.folder / CONSOLE) or _how_it_ended(code)


def read_result(folder: Path) -> dict[str, Any]:
    """What the job told about itself; empty if it did not get that far."""
    try:
        data = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def last_line(path: Path, size: int = 2000) -> str:
    """The last line of a console, without what moves the cursor."""
    lines = _tail(path, size)
    return lines[-1] if lines else ""


def last_error(path: Path) -> str | None:
    """The last ``error: ...``, to its end, or the last line of a traceback."""
    lines = _tail(path, 8000)
    found = [index for index, line in enumerate(lines) if line.startswith("error: ")]
    if found:
        return " ".join(lines[found[-1] :]).removeprefix("error: ")
    if any(line.startswith("Traceback (most recent call last)") for line in lines):
        return lines[-1]
    return None


def _tail(path: Path, size: int) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n")
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
    return f"killed by {name}" + (": out of memory?" if -code == signal.SIGKILL else "")


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _follow_parent() -> None:
    """In the new process, before it becomes the job: be interrupted when the sweep dies, whatever the sweep itself ignores.

    A shell's background process ignores SIGINT and would hand that on.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
