"""What a counting evaluation leaves beside its metrics: tables of where it errs with the checklist, and every single step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from coordvlm.callbacks.csv_log import read_curves
from coordvlm.contracts import Evaluation, PointTruth, Prediction
from coordvlm.metrics.counting_tables import CountingTables, counting_tables, counting_to_json, steps_csv
from coordvlm.metrics.point_outcomes import steps_of
from coordvlm.utils.files import atomic_write_json, atomic_write_text
from coordvlm.utils.record import FILE_NAME, RunRecord


def write_count_findings(
    folder: Path, truth: PointTruth, predictions: Sequence[Prediction], evaluation: Evaluation, *, log: Path,
    record: Mapping[str, object],
) -> CountingTables:
    """counting.json and steps.csv, each as a whole.

    Args:
        log: log.csv of the training; an absent one leaves the items of the checklist that need it open.
        record: ``run.json`` of this run. Its ``gradient_health``, or that of the training whose log it is, enters the checklist.
    """
    gradients = record.get("gradient_health")
    if gradients is None and log.parent != folder and (log.parent / FILE_NAME).is_file():
        gradients = RunRecord.read(log.parent).get("gradient_health")
    found = counting_tables(
        truth, predictions, evaluation, curves=read_curves(log), gradients=gradients if isinstance(gradients, Mapping) else None
    )
    any_unmarked = bool(evaluation.counts.get("measured_to_any_unmarked", 0))
    steps = steps_of(truth, {int(p.sample_id): p for p in predictions}, any_unmarked=any_unmarked)
    atomic_write_json(folder / "counting.json", counting_to_json(found))
    atomic_write_text(folder / "steps.csv", steps_csv(truth, steps))
    return found
