"""What a comparison tells of a group beside its metrics: read-outs, what became of answers, cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from coordvlm.analysis.runs import Run
from coordvlm.reports.compare_data import Estimate


def readouts(runs: Sequence[Run]) -> dict[str, dict[str, Estimate]]:
    """Read-out -> metric -> mean over seeds."""
    out: dict[str, dict[str, Estimate]] = {}
    for readout, row in runs[0].readouts.items():
        for metric in row:
            values = np.asarray([run.readouts.get(readout, {}).get(metric, math.nan) for run in runs])
            spread = float(values.std(ddof=1)) if len(values) > 1 else math.nan
            out.setdefault(readout, {})[metric] = Estimate(float(values.mean()), spread=spread)
    return out


def statuses(runs: Sequence[Run]) -> dict[str, int]:
    """Counts of the parser over all seeds: records by status, answers by flag; a phrase or a sample stands where an image does."""
    total: Counter[str] = Counter()
    for run in runs:
        unit = next((name for name in ("phrases", "samples") if name in run.counts), "images")
        counts = {k.replace(unit, "images"): v for k, v in run.counts.items() if unit == "images" or not k.startswith("images")}
        if unit == "samples":
            counts["records"] = sum(v for k, v in counts.items() if k.startswith("status_"))
        total.update({k: v for k, v in counts.items() if k.startswith(("status_", "images", "records", "predictions", "truths"))})
    return dict(total)


def cost(runs: Sequence[Run]) -> dict[str, float]:
    """Means over seeds; what some run did not record is left out."""
    def number(value: object) -> float:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan

    def of(run: Run) -> dict[str, float]:
        record = run.record
        timings, parameters, memory = (record.get(k) or {} for k in ("timings", "parameters", "peak_memory"))
        per_step = number(run.config.get("data.batch_size")) * number(run.config.get("trainer.accumulate_grad_batches", 1))
        steps = number(record.get("steps"))
        return {
            "steps": steps, "training images": steps * per_step, "trained parameters": number(parameters.get("trained")),
            "train_seconds": number(timings.get("train")), "step_seconds": number(timings.get("train")) / steps if steps else math.nan,
            "run_seconds": number(record.get("seconds")), "tokens per answer": number(run.timing.get("new_tokens_per_image")),
            "decoded images_per_second": number(run.timing.get("decode_images_per_second")),
            "peak rss_bytes": number(memory.get("rss_bytes")),
        }

    rows = [of(run) for run in runs]
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return {name: value for name, value in means.items() if math.isfinite(value)}
