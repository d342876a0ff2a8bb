"""What a sweep says while it works: a line for every job that ends and, on a terminal, one line that changes."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from coordvlm.utils.sweep import JobResult, clock
from coordvlm.utils.sweep_process import CONSOLE, last_line


class SweepStatus:
    """Counts the jobs of a sweep; without threads, so that processes can be started beside it.

    Args:
        every_seconds: between changes of the line on a terminal.
    """

    def __init__(self, every_seconds: float = 1.0) -> None:
        self.every_seconds = every_seconds
        self.total = self.ended = 0
        self._seconds: list[float] = []
        self._live = sys.stdout.isatty()
        self._drawn = 0.0

    def say(self, text: str) -> None:
        """A line that stays."""
        self._clear()
        print(text, flush=True)

    def job_ended(self, result: JobResult, name: str, seconds: float) -> None:
        """One line: how far the sweep is, how it went, the metric or the error.

        Args:
            name: the overrides that tell the job from the others. seconds: of this attempt.
        """
        self.ended += 1
        if result.status == "finished":
            self._seconds.append(seconds)
        parts = [f"job {self.ended}/{self.total}", result.status, clock(seconds)]
        if result.metric is not None:
            parts.append(f"{result.metric:.4f}")
        parts += [name, Path(result.folder).name]
        self.say("  ".join(part for part in parts if part))
        if result.error and result.status == "failed":
            self.say(f"    {result.error}\n    console: {Path(result.folder) / CONSOLE}")

    def working(self, running: Sequence[tuple[str, Path]], parallel: int) -> None:
        """Draw the line that changes: the jobs that run (name, folder) with the last thing each said."""
        now = time.monotonic()
        if not self._live or now - self._drawn < self.every_seconds:
            return
        self._drawn = now
        head = f"job {min(self.ended + len(running), self.total)}/{self.total}{self._left(parallel)}"
        width = shutil.get_terminal_size().columns - 1
        share = max(10, (width - len(head)) // max(1, len(running)) - 3)  # of each job
        text = " | ".join([head, *(f"{name}  {last_line(folder / CONSOLE)}".strip()[:share] for name, folder in running)])
        print("\r\x1b[2K" + text[:width], end="", flush=True)

    def _left(self, parallel: int) -> str:
        if not self._seconds:
            return ""
        mean = sum(self._seconds) / len(self._seconds)
        return f", about {clock(mean * (self.total - self.ended) / parallel)} left"

    def _clear(self) -> None:
        if self._live:
            print("\r\x1b[2K", end="", flush=True)
