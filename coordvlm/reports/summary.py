"""Everything a run report is made of, and how the free-form part of it (``run.json``) is read and shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image

from coordvlm.contracts import ClipTruth, Contract, Evaluation, GroundTruth, PhraseTruth, PointTruth, Prediction
from coordvlm.metrics.counting_tables import CountingTables
from coordvlm.metrics.failures import FailureRow
from coordvlm.metrics.looking import FoveationFindings
from coordvlm.metrics.offset import Offset
from coordvlm.metrics.phrase_controls import Control
from coordvlm.reports.base_beside import BaseComparison
from coordvlm.reports.foveation_names import are_of_clips

Curve = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class PhraseFindings:
    """What was looked into beside the metrics of a grounding evaluation. ``controls``: by name; empty when not asked for."""

    failures: tuple[FailureRow, ...]
    offset: Offset
    controls: Mapping[str, Control] = field(default_factory=dict)


@dataclass(frozen=True)
class RunSummary:
    """What is known about a run. Every part may be missing; the page then says so.

    Args:
        run_info: content of ``run.json``. Read by name: ``status`` (``finished``, ``running``, ``interrupted``, ``failed``, ``dead``),
            ``error`` (``type``, ``message``, ``traceback``), ``command_line``, ``seed``, ``started``, ``ended``, ``seconds``,
            ``hostname``, ``git``, ``versions``, ``timings`` (seconds), ``peak_memory``, ``hardware``, ``data``, ``dropped``, and
            ``choices`` (``experiment``, ``loss``, ``model``, ``data``: names of the chosen configs). All of it is listed at the end.
        curves: name -> (steps, values) of the CSV log: ``train_l1``, ``val/l1`` ... ; train and val of one name share a panel.
        load_image: image id -> displayed frame (EXIF applied); an OSError, KeyError or ValueError leaves a note in its place.
        readouts: ``argmax``, ``expectation``, ``local`` -> metric name -> value, of one and the same decode.
        readout: the one that made ``predictions``.
        split, selected_on: data this was measured on, and data the checkpoint was chosen on.
        protocol: hash of the evaluation protocol.
        base: this evaluation beside the one given with ``base=``. phrases: of a grounding evaluation. counting: of one of counting.
        foveation: of one of clips.
    """

    run_info: Mapping[str, object] = field(default_factory=dict)
    contract: Contract | None = None
    evaluation: Evaluation | None = None
    curves: Mapping[str, Curve] = field(default_factory=dict)
    predictions: Sequence[Prediction] = ()
    truth: GroundTruth | None = None
    load_image: Callable[[int], Image.Image] | None = None
    readouts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    readout: str = ""
    split: str = ""
    selected_on: str = ""
    protocol: str = ""
    base: BaseComparison | None = None
    phrases: PhraseFindings | None = None
    counting: CountingTables | None = None
    foveation: FoveationFindings | None = None

    @property
    def grounding(self) -> bool:
        """Whether phrases were evaluated."""
        return isinstance(self.truth, PhraseTruth) or (self.evaluation is not None and "acc_50" in self.evaluation.metrics)

    @property
    def counts(self) -> bool:
        """Whether points were counted."""
        return isinstance(self.truth, PointTruth) or (self.evaluation is not None and "pck384_5" in self.evaluation.metrics)

    @property
    def clips(self) -> bool:
        """Whether questions about clips were answered."""
        return isinstance(self.truth, ClipTruth) or (self.evaluation is not None and are_of_clips(self.evaluation.metrics))

    @property
    def status(self) -> str:
        return str(self.run_info.get("status") or "unknown")

    def info(self, *names: str) -> object:
        """The first of these fields that says something; None if none does. ``git.commit`` looks inside."""
        for name in names:
            value: object = self.run_info
            for part in name.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
            if value not in (None, "", {}, []):
                return value
        return None

    def choice(self, name: str) -> str:
        """The chosen config of a group; "" when that is not recorded."""
        value = self.info(f"choices.{name}") or self.info(name)
        return str(value) if isinstance(value, str | int) else ""

    def group(self, *names: str) -> dict[str, object]:
        """Fields inside these mappings of ``run_info``, flattened to dotted names."""
        out: dict[str, object] = {}
        for name in names:
            value = self.run_info.get(name)
            if isinstance(value, Mapping):
                out |= flatten(value)
        return out


def flatten(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested mappings as dotted names; short lists become text."""
    out: dict[str, object] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            out |= flatten(value, f"{name}.") if value else {name: "none"}
        elif isinstance(value, list | tuple):
            shown = [str(v) for v in value[:20]]
            out[name] = ", ".join(shown) + (f" … ({len(value)} in all)" if len(value) > 20 else "") if value else "none"
        else:
            out[name] = value
    return out


def quantity(name: str, value: object) -> str:
    """A value with the unit its name ends in: ``train_s`` -> ``6 min 12 s``, ``rss_bytes`` -> ``1.20 GiB``."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if not math.isfinite(value):
        return "–"
    if name.endswith(("_per_s", "_per_second")):
        return f"{value:,.1f} /s"
    if name.endswith(("_s", "_seconds", "seconds", "_sec")):
        return duration(float(value))
    if name.endswith("_bytes"):
        return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:,.0f} MiB"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """``0.8 s``, ``42 s``, ``6 min 12 s``, ``2 h 03 min``."""
    if abs(seconds) < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
