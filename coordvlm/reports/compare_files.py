"""A comparison as Markdown, for notes and pull requests, and as CSV with full precision, for anything else."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from coordvlm.reports import compare_words as words
from coordvlm.reports.compare_data import Comparison
from coordvlm.reports.compare_sections import by_weight, ordered
from coordvlm.reports.page import visible
from coordvlm.utils.files import atomic_write_text


def write_comparison_files(folder: Path, c: Comparison) -> list[Path]:
    """``compare.md`` and the CSV files, of clips also ``foveation.json``; each replaces an earlier one as a whole."""
    texts = {
        "compare.md": markdown(c), "runs.csv": runs_csv(c), "groups.csv": groups_csv(c), "pairs.csv": pairs_csv(c),
        "curves.csv": curves_csv(c), "readouts.csv": readouts_csv(c), "left_out.csv": _csv(("folder", "reason"), c.left_out),
    }
    if c.foveation is not None:
        texts["foveation.json"] = json.dumps(c.foveation.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    for name, text in texts.items():
        atomic_write_text(folder / name, text)
    return [folder / name for name in texts]


def markdown(c: Comparison) -> str:
    """Verdicts, notes, metric table, differences in the deciding metric, read-outs, runs left out."""
    unit = "images" if c.foveation is None else "clips"
    lines = [f"# Comparison: {_text(', '.join(g.short for g in ordered(c)))}", ""]
    if c.command:
        lines += [f"    {visible(c.command)}", ""]
    lines += [f"{len(c.runs)} runs, {c.num_images:,} {_text(c.protocol.get('split', ''))} {unit}, read-out {_text(c.readout)}.", ""]
    lines += [f"**{_text(words.lead(c))}**", ""] if words.lead(c) else []
    if c.foveation is not None:
        lines += ["Does looking pay?", "", *(f"- {_text(v.words)}" for v in c.foveation.verdicts), ""]
        lines += ["Recipes against each other:", ""] if c.pairs else []
    lines += [f"- {_text(words.verdict(c, pair))}" for pair in by_weight(c)]
    if c.notes:
        lines += ["", "Before you believe it:", "", *(f"- {_text(note)}" for note in c.notes)]
    lines += ["", f"Mean ± standard deviation over seeds, {c.coverage * 100:g} % interval of the mean over seeds and {unit}.", ""]
    lines += _table(("group", "seeds", *map(words.title, c.metrics)), [
        (g.short, len(g.seeds), *(_estimate(c, g.short, m) for m in c.metrics)) for g in ordered(c)
    ])
    lines += ["", f"Differences in {words.title(c.metric)}, first minus second; p corrected over the pairs (Holm).", ""] if c.pairs else []
    lines += [] if not c.pairs else _table(("pair", "difference", "interval", "p", "p (Holm)", f"seen with {c.power * 100:g} %"), [
        (f"{p.first} − {p.second}", words.amount(p.metric, p.value, signed=True, unit=False), words.span(p.metric, p.low, p.high) or "–",
         f"{p.p:.4f}", f"{p.p_holm:.4f}", words.amount(p.metric, p.detectable, unit=False))
        for p in by_weight(c)
    ])
    readouts = [(g.short, r, *(words.estimate(m, e) for m, e in row.items())) for g in ordered(c) for r, row in g.readouts.items()]
    first = next((row for g in c.groups for row in g.readouts.values()), None)
    if readouts and first:
        lines += ["", "Read-outs of the same decode.", "", *_table(("group", "read-out", *map(words.title, first)), readouts)]
    if c.left_out:
        lines += ["", "Left out:", "", *(f"- {_text(folder)}: {_text(reason)}" for folder, reason in c.left_out)]
    return "\n".join(lines) + "\n"


def _estimate(c: Comparison, group: str, metric: str) -> str:
    found = next(g for g in c.groups if g.short == group).estimates.get(metric)
    return "–" if found is None else f"{words.estimate(metric, found)} {words.span(metric, found.low, found.high)}".strip()


def _table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> list[str]:
    out = [f"| {' | '.join(map(_text, head))} |", f"|---|{'--:|' * (len(head) - 1)}"]
    return out + [f"| {' | '.join(map(_text, row))} |" for row in rows]


def _text(value: object) -> str:
    return " ".join(visible(value).split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def runs_csv(c: Comparison) -> str:
    """One row per run with every metric."""
    names = list(dict.fromkeys(m for r in c.runs for m in r.values))
    rows = [(r.group, r.seed, r.name, r.folder, r.started, r.commit, *(r.values.get(m, math.nan) for m in names)) for r in c.runs]
    return _csv(("group", "seed", "run", "folder", "started", "commit", *names), rows)


def groups_csv(c: Comparison) -> str:
    """One row per group and metric."""
    rows = [(g.short, g.name, len(g.seeds), m, e.value, e.spread, e.low, e.high) for g in ordered(c) for m, e in g.estimates.items()]
    return _csv(("group", "full_name", "seeds", "metric", "mean", "sd_over_seeds", "low", "high"), rows)


def pairs_csv(c: Comparison) -> str:
    """One row per pair and metric, in the metric's own unit (shares in [0, 1])."""
    rows = [
        (p.first, p.second, p.metric, p.value, p.low, p.high, p.p, p.p_holm, p.se, p.df, p.detectable, p.image_share, *p.seeds)
        for p in c.pairs
    ]
    head = ("first", "second", "metric", "difference", "low", "high", "p", "p_holm", "se", "df", "detectable", "image_share")
    return _csv((*head, "seeds_first", "seeds_second"), rows)


def curves_csv(c: Comparison) -> str:
    """One row per group, column of the log and step."""
    rows = [
        (g.short, name, int(step), seconds, mean, low, high)
        for g in c.groups for name, b in g.curves.items()
        for step, seconds, mean, low, high in zip(*(x.tolist() for x in (b.steps, b.seconds, b.mean, b.low, b.high)), strict=True)
    ]
    return _csv(("group", "column", "steps", "seconds", "mean", "low", "high"), rows)


def readouts_csv(c: Comparison) -> str:
    """One row per group, read-out and metric."""
    rows = [(g.short, r, m, e.value, e.spread) for g in ordered(c) for r, row in g.readouts.items() for m, e in row.items()]
    return _csv(("group", "readout", "metric", "mean", "sd_over_seeds"), rows)


def _csv(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        writer.writerow(["" if isinstance(v, float) and math.isnan(v) else repr(v) if isinstance(v, float) else v for v in row])
    return out.getvalue()
