"""Requests to count -> files: counts as they come, pictures, films of the counting, and a list of what could not be counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from coordvlm.callbacks.asking import Bar, Files, Requests, Tally, Writer, ask_all, number
from coordvlm.reports.count_gif import count_gif
from coordvlm.reports.counted_overlay import draw_counted
from coordvlm.sequence.count_answer import CountAnswer
from coordvlm.utils.asked import Request
from coordvlm.utils.errors import DataError

OVERLAYS, GIFS = "overlays", "gifs"
#: Frames of a film; steps between them are left out. It has at most two million bytes, see ``count_gif``.
_MAX_FRAMES = 60
_ENDED = {"repeated": "stopped: marked objects again and again", "step_limit": "stopped at the step limit"}


class CountPredictor(Protocol):
    """What is asked; see ``build.predictor.Predictor``."""

    requests: Any
    device: torch.device

    def batch_size(self, item: Any) -> int: ...

    def count(self, items: Sequence[Any], *, on_step: Callable[[], Any] | None = None) -> list[CountAnswer | DataError]: ...


@dataclass
class CountSummary(Tally):
    """What came of the requests. ``ended``: how the loops ended. ``num_points``: objects counted in all."""

    ended: Counter[str] = field(default_factory=Counter)
    num_points: int = 0
    num_repeated: int = 0

    @property
    def num_answered(self) -> int:
        return sum(self.ended.values())

    def counts(self) -> dict[str, Any]:
        """For the run's record."""
        return {
            "requests": self.num_requests, "images": self.num_images, "answered": self.num_answered, "points": self.num_points,
            "ended": dict(self.ended), "repeated_points": self.num_repeated, **self.failures(),
        }  # fmt: skip

    def sentence(self) -> str:
        """For the terminal."""
        stopped = [f"{self.ended[name]} {_ENDED[name]}" for name in ("repeated", "step_limit") if self.ended[name]]
        parts = [
            f"{self.num_answered} of {self.asked_words()} counted: {number(self.num_points, 'point')}",
            f"; {self.num_repeated} more lay on marked objects and do not count" if self.num_repeated else "",
            f"; {', '.join(stopped)}" if stopped else "",
        ]
        return "".join(parts) + self.failed_words() + self.results_words()


def count_all(
    predictor: CountPredictor, requests: Sequence[Request], folder: Path, *, batch_size: int | None, num_workers: int | None,
    overlays: bool, gif: bool,
) -> CountSummary:
    """Count for every request; see ``asking.ask_all``.

    Args:
        overlays: draw a picture per count. gif: and a film of its steps.
    """
    summary = CountSummary(folder, len(requests), len({r.image for r in requests}))
    with ExitStack() as stack:
        writer = _Writer(Files(folder, stack), summary, predictor.requests, overlays, gif)
        say = stack.enter_context(Bar(len(requests)))
        ask_all(
            requests, predictor.requests, writer, ask=lambda items: predictor.count(items, on_step=say.step), at_once=predictor.batch_size,
            device=predictor.device, batch_size=batch_size, num_workers=num_workers, say=say,
        )
    return summary


class _Writer(Writer[CountAnswer]):
    """Writes counts, and adds them up."""

    def __init__(self, files: Files, summary: CountSummary, frames: Requests, overlays: bool, gif: bool) -> None:
        super().__init__(files, summary, frames)
        self.summary, self.overlays, self.gif = summary, overlays, gif

    def answered(self, request: Request, found: CountAnswer) -> None:
        at = self.summary.num_answered + 1
        drawn = {"overlay": self._draw(request, found, at)} if self.overlays else {}
        filmed = {"gif": self._film(request, found, at)} if self.gif else {}
        self.summary.ended[found.ended] += 1
        self.summary.num_points += found.count
        self.summary.num_repeated += len(found.repeated)
        self.files.answer({"image": str(request.image), **found.to_json(), **drawn, **filmed})

    def _draw(self, request: Request, found: CountAnswer, at: int) -> str:
        path, name = self.files.picture(OVERLAYS, at, request.image, ".jpg")
        points, repeated = ([(p.x, p.y) for p in part] for part in (found.points, found.repeated))
        draw_counted(self.frame(request), points, repeated, category=found.phrase, ended=_short(found)).save(path, quality=90)
        return name

    def _film(self, request: Request, found: CountAnswer, at: int) -> str:
        """Of the points that count; how many more were repeated is in the last frame's words."""
        path, name = self.files.picture(GIFS, at, request.image, ".gif")
        path.write_bytes(
            count_gif(
                self.frame(request), np.asarray([(p.x, p.y) for p in found.points], dtype=np.float64), [p.p_done for p in found.points],
                category=found.phrase, ended=_short(found), max_frames=_MAX_FRAMES,
            )
        )
        return name


def _short(found: CountAnswer) -> str:
    """How the loop ended, for a title."""
    more = f", {len(found.repeated)} more on marks" if found.repeated else ""
    return found.ended.replace("_", " ") + more
