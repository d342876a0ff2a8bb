"""What becomes of the jobs of a multirun: a table, ``jobs.json`` and an exit status.

``sweep_launcher`` runs the jobs, ``sweep_process`` is one of them, ``sweep_resume`` finds what an earlier attempt left.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordvlm.utils.files import atomic_write_json

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from coordvlm.utils.sweep_process import ChildCommand

JOBS_FILE = "jobs.json"
#: Environment of a job that is a process of its own: where it tells its metric or its error.
RESULT_FILE = "COORDVLM_SWEEP_JOB"


@dataclass(frozen=True)
class JobFailure:
    """Returned in place of a value by a job that failed, so that the other jobs still run. Crosses processes.

    Args:
        status: exit status. kind: name of the exception. message: its text.
    """

    status: int
    kind: str
    message: str


@dataclass(frozen=True)
class JobResult:
    """One line of the table and of ``jobs.json``.

    Args:
        status: waiting | running | finished | failed | interrupted.
        metric: what the command returned if that was a float, else None.
        folder: of the run. error: ``kind: message`` of a job that did not finish.
        seconds: of its process, earlier attempts included as far as they told; None before it ended.
    """

    job: int
    overrides: tuple[str, ...]
    status: str
    metric: float | None
    folder: str
    error: str | None = None
    seconds: float | None = None


@dataclass
class SweepTask:
    """What Hydra hands to its launcher. Called, it runs a job in this process.

    Args:
        run: the task. command: how another process does the same; None if none can.
        results: filled by a launcher that keeps account itself; empty with other launchers.
        earlier: jobs in the sweep's folder that belong to its arguments of before, not to those of now.
        lock: descriptor of the lock on the folder.
    """

    run: Callable[[DictConfig], Any]
    command: ChildCommand | None
    results: list[JobResult] = field(default_factory=list)
    earlier: list[JobResult] = field(default_factory=list)
    lock: int | None = None

    def __call__(self, cfg: DictConfig) -> Any:
        return self.run(cfg)

    def all_results(self) -> list[JobResult]:
        return [*self.results, *self.earlier]

    def finish(self, returned: Any) -> int:
        """The table at the end; returns the exit status of the sweep, 1 if a job did not finish."""
        if not self.results:
            return finish_sweep(returned)
        _print_table(self.results)
        if self.earlier:
            folders = ", ".join(Path(result.folder).name for result in self.earlier)
            print(f"the folder also holds jobs of other arguments: {folders}")
        return 0 if all(result.status == "finished" for result in self.results) else 1

    def __enter__(self) -> SweepTask:
        return self

    def __exit__(self, *_: object) -> None:
        """Give the sweep's folder back."""
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None


def collect(batches: Sequence[Sequence[Any]]) -> list[JobResult]:
    """From Hydra's ``JobReturn`` objects, as its sweepers return them."""
    results = []
    for number, job in enumerate(job for batch in batches for job in batch):
        value = job.return_value
        failed = isinstance(value, JobFailure)
        results.append(
            JobResult(
                job=number,
                overrides=tuple(job.overrides or ()),
                status="failed" if failed else "finished",
                metric=value if isinstance(value, float) else None,
                folder=str(job.hydra_cfg.hydra.runtime.output_dir),
                error=f"{value.kind}: {value.message}" if failed else None,
            )
        )
    return results


def finish_sweep(returned: Any) -> int:
    """Of launchers that are not ours: print the table, keep it as ``jobs.json`` in the sweep's folder.

    Returns:
        1 if a job failed, else 0. Sweepers that return nothing (optimisers) report for themselves: 0.
    """
    if not returned:
        return 0
    results = collect(returned)
    _print_table(results)
    write_results(Path(results[0].folder).parent, results)
    return 1 if any(result.status == "failed" for result in results) else 0


def write_results(folder: Path, results: Sequence[JobResult]) -> None:
    """Replace ``jobs.json``."""
    atomic_write_json(folder / JOBS_FILE, [asdict(result) for result in results])


def report_job(value: Any) -> None:
    """Tell the sweep that started this process, if one did, what ``main`` returned."""
    if not (path := os.environ.get(RESULT_FILE)):
        return
    failed = isinstance(value, JobFailure)
    error = f"{value.kind}: {value.message}" if failed else None
    atomic_write_json(path, {"metric": value if isinstance(value, float) else None, "error": error})


def varying(jobs: Sequence[Sequence[str]]) -> list[list[str]]:
    """Of each job the overrides that not all jobs have; of a single job all."""
    shared = set(jobs[0]).intersection(*jobs) if len(jobs) > 1 else set()
    return [[line for line in job if line not in shared] for job in jobs]


def clock(seconds: float | None) -> str:
    """``1:02:03`` or ``2:03``."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _print_table(results: Sequence[JobResult]) -> None:
    import sys

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = varying([result.overrides for result in results])
    title = f"{len(results)} jobs in {Path(results[0].folder).parent}"
    table = Table("job", "overrides", "status", "metric", "time", "folder", title=title)
    for result, overrides in zip(results, shown, strict=True):
        style = {"finished": "green", "failed": "red"}.get(result.status, "yellow")
        metric = "" if result.metric is None else f"{result.metric:.4f}"
        cells = [str(result.job), " ".join(overrides), result.status, metric, clock(result.seconds), Path(result.folder).name]
        table.add_row(*(Text(cell, style=style if index == 2 else "", overflow="fold") for index, cell in enumerate(cells)))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
