"""An audit as a self-contained page: the same tables, all the places, and how sizes, classes and words spread."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from coordvlm.reports.audit_data import TOPICS, Audit, Finding, Histogram, Level
from coordvlm.reports.audit_table import rows, splits_of, verdict, words
from coordvlm.reports.page import Markup, document, fold, join, section, table, tag, write

_BAR = 32


def write_page(path: Path, audit: Audit, *, title: str, command: str) -> Path:
    """Write the page; an unwritable place is an ``OutputError``."""
    topics = [(topic, heading) for topic, heading in TOPICS.items() if any(f.topic == topic for f in audit.findings)]
    parts = [_topic(topic, heading, [f for f in audit.findings if f.topic == topic]) for topic, heading in topics]
    spread = [section("spread", "How they spread", [_histogram(h) for h in audit.histograms])] if audit.histograms else []
    head = join(
        tag("h1", f"Audit of {title}"),
        tag("p", tag("strong", audit.level.key), f": {verdict(audit)}"),
        table(["split", "looked at"], list(audit.looked_at.items()), text_columns=(0, 1)),
        tag("p", tag("code", command), class_="note"),
    )
    contents = [*topics, *([("spread", "How they spread")] if spread else [])]
    return write(path, document(f"Audit of {title}", join(head, parts, spread), contents=contents))


def _topic(topic: str, heading: str, findings: Sequence[Finding]) -> Markup:
    splits = splits_of(findings)
    body = []
    for row in rows(findings):
        cells = [row.by_split[split].shown if split in row.by_split else "" for split in splits]
        level = row.level.key if row.level is Level.OK else tag("strong", row.level.key, style="white-space: nowrap")
        body.append([level, words(row.check), *cells, row.worst.rule])
    shown = table(["level", "check", *splits, "what should hold"], body, text_columns=(0, 1, len(splits) + 2))
    named = sorted((f for f in findings if f.level > Level.OK and f.examples), key=lambda f: -f.level)
    return section(topic, heading, shown, [_places(f) for f in named])


def _places(finding: Finding) -> Markup:
    title = f"{finding.level.key}: {words(finding.check)} in {finding.split}, {len(finding.examples)} of {finding.shown}"
    return fold(title, table(["where", "value"], [[e.where, finding.value_text(e)] for e in finding.examples], text_columns=(0, 1)))


def _histogram(histogram: Histogram) -> Markup:
    most = max(histogram.counts, default=0) or 1
    pairs = zip(histogram.labels, histogram.counts, strict=True)
    body = [[label, f"{count:,}", "█" * round(_BAR * count / most)] for label, count in pairs]
    return fold(f"{histogram.title}: {histogram.split}", table(["", "number", ""], body, text_columns=(0, 2)))
