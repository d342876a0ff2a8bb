"""What a comparison found about looking: arms of every recipe, and a verdict per task. Filled in by ``analysis.foveation``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from coordvlm.reports.compare_data import Estimate
from coordvlm.reports.foveation_names import is_struck


@dataclass(frozen=True)
class ArmsRow:
    """One recipe on one kind of question.

    Args:
        group: its short name. kind: of question; "" where there is one only. trained: arms whose pass was trained, with their weights.
        arms: arm -> metric (``acc``, ``px384_median``, ``loss``) -> estimate over seeds.
        compared: ``ratio_matched``, ``gain_acc`` ... of the runs themselves, what is no evidence included, under its own name.
    """

    group: str
    kind: str
    seeds: tuple[int, ...]
    trained: Mapping[str, float]
    arms: Mapping[str, Mapping[str, Estimate]]
    compared: Mapping[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True)
class LookVerdict:
    """Whether looking pays for one recipe on one kind of question.

    Args:
        group: whose fine pass is judged. coarse: of which group the coarse pass is: itself where both were trained alike, one that
            trained coarse by itself, or "" where there is none.
        outcome: of ``analysis.foveation.OUTCOMES``. words: one sentence.
        evidence: what the sentence is about -> estimate. read: metrics of runs that it was made of.
    """

    group: str
    kind: str
    coarse: str
    outcome: str
    words: str
    evidence: Mapping[str, Estimate] = field(default_factory=dict)
    read: tuple[str, ...] = ()


@dataclass(frozen=True)
class Foveation:
    """All of it.

    Args:
        coverage: of the intervals. tasks: kinds of question, as the runs were evaluated on them.
    """

    coverage: float
    tasks: tuple[str, ...]
    rows: Sequence[ArmsRow]
    verdicts: Sequence[LookVerdict]

    def to_json(self) -> dict[str, Any]:
        """Strict JSON: undefined is null; of the runs' own comparisons each says whether it is evidence."""
        rows = [
            {
                "group": r.group, "kind": r.kind, "seeds": list(r.seeds), "trained": dict(r.trained),
                "arms": {arm: {m: _estimate(e) for m, e in found.items()} for arm, found in r.arms.items()},
                "compared": {m: {**_estimate(e), "evidence": not is_struck(m)} for m, e in r.compared.items()},
            }
            for r in self.rows
        ]
        verdicts = [
            {
                "group": v.group, "kind": v.kind, "coarse": v.coarse, "outcome": v.outcome, "words": v.words,
                "evidence": {name: _estimate(e) for name, e in v.evidence.items()}, "read": list(v.read),
            }
            for v in self.verdicts
        ]
        return {"coverage": self.coverage, "tasks": list(self.tasks), "verdicts": verdicts, "rows": rows}


def _estimate(found: Estimate) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in asdict(found).items()}
