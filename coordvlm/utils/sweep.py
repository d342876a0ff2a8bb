"""What becomes of the jobs of a multirun: a table, ``jobs.json`` and an exit status."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coordvlm.utils.files import atomic_write_json


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
    """One line of the table; ``metric`` is None unless the command returned a float."""

    job: int
    overrides: tuple[str, ...]
    status: str
    metric: float | None
    folder: str
    error: str | None = None


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
    """Print the table, keep it as ``jobs.json`` in the sweep's folder.

    Returns:
        1 if a job failed, else 0. Sweepers that return nothing (optimisers) report for themselves: 0.
    """
    if not returned:
        return 0
    results = collect(returned)
    _print_table(results)
    folder = Path(results[0].folder).parent
    atomic_write_json(folder / "jobs.json", [asdict(result) for result in results])
    return 1 if any(result.status == "failed" for result in results) else 0


def _print_table(results: Sequence[JobResult]) -> None:
    import sys

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("job", "overrides", "status", "metric", "folder", title=f"{len(results)} jobs")
    for result in results:
        style = "red" if result.status == "failed" else "green"
        metric = "" if result.metric is None else f"{result.metric:.4f}"
        cells = [str(result.job), " ".join(result.overrides), result.status, metric, result.folder]
        table.add_row(*(Text(cell, style=style if index == 2 else "", overflow="fold") for index, cell in enumerate(cells)))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
