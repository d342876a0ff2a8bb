"""What every evaluation leaves behind: metrics.json, metrics.csv, predictions.jsonl and bootstrap.npz in the run folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from coordvlm.contracts import ClipTruth, Evaluation, GroundTruth, PhraseTruth, PointTruth, Prediction
from coordvlm.metrics.phrase_log import phrase_fields
from coordvlm.metrics.phrases import outcomes
from coordvlm.metrics.records import TruthIndex, clip_fields, count_fields, evaluation_to_json, prediction_to_line
from coordvlm.metrics.replicates import save_replicates
from coordvlm.reports.tables import metrics_csv
from coordvlm.utils.files import atomic_write_json, atomic_write_text

#: Metrics shown when read-outs are compared.
READOUT_METRICS = ("AP", "AP50", "AP75", "F1_50", "acc_50", "acc_75", "iou_mean_all", "px_mean", "px_median", "parse_rate",
                   "pck384_5", "pck384_2", "n5_pck384_5", "px384_median", "px384_mean", "on_unmarked", "done_acc")


def write_evaluation(
    folder: Path,
    evaluation: Evaluation,
    predictions: Sequence[Prediction],
    truth: GroundTruth,
    *,
    split: str,
    protocol: Mapping[str, Any],
    selected_on: str,
    timing: Mapping[str, float],
    readouts: Mapping[str, Mapping[str, float]],
    seed: int,
    prompt: Callable[[int | str], str],
    sha1: Callable[[int | str], str | None],
) -> None:
    """Write all four files; each replaces an earlier one as a whole. Lines of a ``PhraseTruth`` hold their phrase and IoU too, lines of a
    ``PointTruth`` what is counted, those of a ``ClipTruth`` question, answer and kind.

    Args:
        seed: of the bootstrap weights. selected_on: "" for a model that was not selected.
        prompt, sha1: sample id -> prompt text, hash of the image file (None for images that are no files).
    """
    content = evaluation_to_json(evaluation, split=split, protocol=protocol["hash"], timing=timing, selected_on=selected_on or None)
    atomic_write_json(folder / "metrics.json", {**content, "readouts": readouts, "protocol_values": dict(protocol)})
    atomic_write_text(folder / "metrics.csv", metrics_csv(evaluation.metrics))
    index = TruthIndex(truth, evaluation.pairs)
    ordered = sorted(predictions, key=lambda p: p.sample_id)  # type: ignore[arg-type, return-value]
    lines = [prediction_to_line(p, index, prompt=prompt(p.sample_id), sha1=sha1(p.sample_id)) for p in ordered]
    if isinstance(truth, PhraseTruth):
        more = phrase_fields(truth, outcomes(truth, {int(p.sample_id): p for p in ordered}))
        lines = [line | more[int(line["id"])] for line in lines]
    if isinstance(truth, PointTruth):
        counted = count_fields(truth)
        lines = [line | counted[int(line["id"])] for line in lines]
    if isinstance(truth, ClipTruth):
        asked = clip_fields(truth)
        lines = [line | asked[int(line["id"])] for line in lines]
    atomic_write_text(folder / "predictions.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    save_replicates(folder / "bootstrap.npz", evaluation, image_ids=truth.image_ids, seed=seed)


def readout_table(evaluations: Mapping[str, Evaluation]) -> dict[str, dict[str, float]]:
    """Read-out -> metric -> value, for those in ``READOUT_METRICS``."""
    return {name: {m: float(e.metrics[m].value) for m in READOUT_METRICS if m in e.metrics} for name, e in sorted(evaluations.items())}
