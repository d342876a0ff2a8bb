"""Read stored predictions again with another read-out: one decode yields all of them, so no model is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from coordvlm.analysis.runs import Run
from coordvlm.contracts import ClipTruth, GroundTruth, PhraseTruth, PointTruth, Prediction, Record
from coordvlm.contracts.prediction import KEPT
from coordvlm.coords.grid import to_px
from coordvlm.metrics.collecting import CollectingMetric
from coordvlm.metrics.detection import DetectionMetric
from coordvlm.metrics.grounding import GroundingMetric
from coordvlm.metrics.phrase_log import phrase_fields
from coordvlm.metrics.phrases import outcomes
from coordvlm.metrics.records import TruthIndex, line_to_prediction, prediction_to_line
from coordvlm.utils.errors import ConfigError, DataError

READOUTS = ("argmax", "expectation", "local")


def reread(prediction: Prediction, readout: str) -> Prediction:
    """The same answer with boxes by another read-out. A record is degenerate, or no longer, by its new box; scores stay.

    Raises:
        DataError: a box without stored slots (coordinates in digits have one reading only).
    """
    return replace(prediction, records=tuple(_reread(r, prediction, readout) for r in prediction.records))


def _reread(record: Record, prediction: Prediction, readout: str) -> Record:
    if record.status not in (*KEPT, "degenerate"):
        return record
    if len(record.slots) != 4:
        rule = f"readout={readout} needs the read-outs of four coordinate tokens"
        raise DataError(rule, where=f"image {prediction.sample_id}", value=len(record.slots))
    x1, y1, x2, y2 = to_px([getattr(slot, readout) for slot in record.slots], *prediction.size).tolist()
    if not (x1 < x2 and y1 < y2):
        status = "degenerate"
    else:
        status = "ok" if record.status == "degenerate" else record.status
    return replace(record, box_xyxy_px=(x1, y1, x2, y2), status=status)


def rescore(
    run: Run, lines: Sequence[Mapping[str, Any]], truth: GroundTruth, readout: str, *, num_replicates: int, seed: int, backend: str = ""
) -> tuple[Run, list[dict[str, Any]]]:
    """The run as if it had been evaluated with this read-out, and its predictions.

    Args:
        lines: of its predictions.jsonl. truth: of the evaluated images, in full: the file's lines lack areas and empty classes.
        num_replicates, seed: of the metric. backend: of ``DetectionMetric``; phrases have none.
    Raises:
        ConfigError: not a read-out, a truth that is not the one the run was evaluated on, or one of points.
        DataError: answers without read-outs.
    """
    if readout not in READOUTS:
        raise ConfigError(f"readout must be one of {', '.join(READOUTS)}, got {readout!r}")
    if isinstance(truth, PointTruth):
        raise ConfigError(f"readout={readout}: counting stores its points by one read-out only; evaluate again with decode.readout=...")
    if isinstance(truth, ClipTruth):
        raise ConfigError(f"readout={readout}: answers to clips are stored by one read-out only; evaluate again with decode.readout=...")
    if (digest := truth.digest()) != run.protocol.get("data"):
        raise ConfigError(
            f"readout={readout}: the data of {run.folder} has changed (truth {digest}, evaluated on {run.protocol.get('data')}), "
            "so its predictions cannot be scored again"
        )
    metric: CollectingMetric
    if isinstance(truth, PhraseTruth):
        metric = GroundingMetric(num_replicates=num_replicates, seed=seed, truth=truth)
    else:
        casefold = bool(run.config.get("metrics.casefold", False))
        metric = DetectionMetric(backend=backend, num_replicates=num_replicates, seed=seed, casefold=casefold, truth=truth)
    predictions = [reread(line_to_prediction(line), readout) for line in lines]
    metric.update(predictions)
    found = metric.compute()
    index = TruthIndex(truth, found.pairs)
    kept = {k: run.values[k] for k in run.values if k not in found.metrics}
    changed = replace(
        run,
        values={**kept, **{name: float(m.value) for name, m in found.metrics.items()}},
        replicates=dict(found.replicates),
        image_ids=truth.image_ids,
        bootstrap_seed=seed,
        protocol={**run.protocol, "readout": readout},
        protocol_hash="",
        counts=dict(found.counts),
    )
    written = [prediction_to_line(p, index, prompt=str(line["prompt"])) for p, line in zip(predictions, lines, strict=True)]
    if isinstance(truth, PhraseTruth):
        more = phrase_fields(truth, outcomes(truth, {int(p.sample_id): p for p in predictions}))
        written = [line | more[int(line["id"])] for line in written]
    return changed, written
