"""What an audit of a data set found: filled in by ``analysis``, shown by ``audit_table`` and ``audit_page``, written as audit.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

#: Topics in the order they are shown, with their headings.
TOPICS: Mapping[str, str] = {
    "source": "Opening the data", "phrases": "Phrases", "boxes": "Boxes", "classes": "Classes", "images": "Images",
    "splits": "Between splits",
}
#: Topics whose values are words of the data.
_QUOTED = ("phrases", "classes", "source")


class Level(IntEnum):
    """How bad it is. Only ``FAIL`` makes the command's exit status 1."""

    OK = 0
    NOTE = 1
    WARN = 2
    FAIL = 3

    @property
    def key(self) -> str:
        return self.name.lower()


@dataclass(frozen=True)
class Example:
    """One place that a finding counts. ``where``: file, line or id. ``value``: what stands there, None if the place says it all."""

    where: str
    value: object = None


@dataclass(frozen=True)
class Finding:
    """The outcome of one check on one split, or on a pair of splits.

    Args:
        topic: one of ``TOPICS``. check: its name. split: ``train``, or ``train/val``.
        value: a count, a share or a ratio. shown: the same as text.
        rule: what should hold, or what the number says.
        examples: some of the places. details: numbers behind it, for the JSON file.
    """

    topic: str
    check: str
    split: str
    level: Level
    value: float
    shown: str
    rule: str
    examples: tuple[Example, ...] = ()
    details: Mapping[str, object] = field(default_factory=dict)

    def value_text(self, example: Example) -> str:
        """What stands at a place: words of the data in quotes, ours without."""
        if example.value is None:
            return ""
        if isinstance(example.value, list) and all(isinstance(v, float) for v in example.value):
            return f"[{', '.join(f'{v:.7g}' for v in example.value)}]"
        return str(example.value) if isinstance(example.value, str) and self.topic not in _QUOTED else repr(example.value)


@dataclass(frozen=True)
class Histogram:
    """Counts of something in a split. labels, counts: n of each."""

    title: str
    split: str
    labels: tuple[str, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Audit:
    """All findings. ``looked_at``: split -> what was looked at, in words."""

    looked_at: Mapping[str, str]
    findings: Sequence[Finding]
    histograms: Sequence[Histogram] = ()

    @property
    def level(self) -> Level:
        return max((f.level for f in self.findings), default=Level.OK)

    @property
    def counts(self) -> Mapping[str, int]:
        """Level -> how many findings, the worst first."""
        found = Counter(f.level for f in self.findings)
        return {level.key: found[level] for level in sorted(Level, reverse=True)}

    def as_plain(self) -> dict[str, object]:
        """For audit.json."""
        return {
            "level": self.level.key,
            "counts": dict(self.counts),
            "looked_at": dict(self.looked_at),
            "findings": [
                {
                    "topic": f.topic, "check": f.check, "split": f.split, "level": f.level.key, "value": f.value, "shown": f.shown,
                    "rule": f.rule, "examples": [{"where": e.where, "value": e.value} for e in f.examples], "details": dict(f.details),
                }
                for f in self.findings
            ],
            "histograms": [
                {"title": h.title, "split": h.split, "labels": list(h.labels), "counts": list(h.counts)} for h in self.histograms
            ],
        }
