"""The page of a comparison, first half: verdicts, metrics, differences, the course of training."""

from __future__ import annotations

import math
from collections.abc import Sequence

from coordvlm.contracts import Interval
from coordvlm.reports import compare_plots as figures
from coordvlm.reports import compare_words as words
from coordvlm.reports.compare_data import Comparison, GroupResult, PairResult
from coordvlm.reports.page import Child, Markup, definitions, fold, join, missing, section, table, tag
from coordvlm.reports.plots import panel
from coordvlm.reports.summary import duration
from coordvlm.reports.tables import arrow, describe, rows

_MAX_PANELS = 18


def ordered(c: Comparison) -> list[GroupResult]:
    """Groups by the deciding metric, the best first; undefined ones last."""
    sign = describe(c.metric)[1] or 1

    def key(group: GroupResult) -> float:
        value = group.estimates[c.metric].value
        return -sign * value if math.isfinite(value) else math.inf

    return sorted(c.groups, key=key)


def by_weight(c: Comparison) -> list[PairResult]:
    """Pairs in the deciding metric: those that differ first, the smallest p value first."""
    return sorted(c.of(c.metric), key=lambda p: (not p.differs(c.level), p.p_holm if math.isfinite(p.p_holm) else 2.0, p.p))


def headline(c: Comparison) -> Markup:
    """What was compared on what."""
    seeds = sorted({len(g.seeds) for g in c.groups})
    facts = definitions([
        ("decided by", c.metric), ("groups", str(len(c.groups))), ("runs", str(len(c.runs))),
        ("seeds per group", " – ".join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))),
        ("test images" if c.foveation is None else "test clips", f"{c.num_images:,}"),
        ("split", c.protocol.get("split")), ("read-out", c.readout), ("compared with", c.baseline or "each other"),
        ("evaluation protocol", tag("code", c.protocol_hash) if c.protocol_hash else _no_protocol(c)),
    ])
    names = ", ".join(g.short for g in ordered(c))
    return join(tag("h1", f"Comparison: {names}"), tag("pre", c.command) if c.command else None, facts)


def _no_protocol(c: Comparison) -> str:
    own = c.counting or c.foveation is not None
    return "equal but for the read-out, which a recipe trains" if own else "read again from stored predictions"


def verdicts(c: Comparison) -> Markup:
    """One sentence per pair, then what to know before believing them."""
    items = []
    for pair in by_weight(c):
        kind, word = ("good", "differs") if pair.differs(c.level) else ("", "not shown")
        items.append(tag("li", tag("span", word, class_=f"pill {kind} mark"), words.verdict(c, pair)))
    lead = tag("p", tag("b", found)) if (found := words.lead(c)) else None
    listed: Child = tag("ul", items[:20], class_="checks", style="grid-template-columns:1fr")
    listed = listed if items else missing("One recipe: there is no other to compare it with.")
    more = fold(f"{len(items) - 20} more pairs", tag("ul", items[20:], class_="checks")) if len(items) > 20 else None
    known: Child = None
    if c.notes:
        known = tag("div", tag("strong", "Before you believe it"), tag("ul", [tag("li", n) for n in c.notes]), class_="alert warn")
    note = (
        f"Intervals hold {c.coverage * 100:g} % and count two kinds of chance: another draw of test images (paired, all runs share them) "
        f"and another seed. “Differs” means p < {c.level:.2g} after Holm's correction over the {len(c.group_pairs())} pairs of a metric. "
        "Where no difference is shown there may still be one, smaller than the one that would have been seen."
    )
    return join(section("verdict", "Verdict", lead, listed, more, note=note if items else None), known)


def metrics(c: Comparison) -> Markup:
    """Mean and spread over seeds with the interval below, best group first."""
    groups = ordered(c)
    head = ["", "", *(join(g.short, tag("br"), f"{len(g.seeds)} seed{'s' if len(g.seeds) > 1 else ''}") for g in groups)]
    body = [[tag("b", m) if m == c.metric else m, _unit(m), *(_cell(g, m) for g in groups)] for m in c.metrics]
    every = [
        (tag("s", r.name) if r.struck else r.name, _unit(r.name), r.meaning, *(_cell(g, r.name) for g in groups))
        for r in rows({m: Interval(0.0) for m in dict.fromkeys(k for g in groups for k in g.estimates)})
    ]
    unit = "images" if c.foveation is None else "clips"
    spread = "mean ± standard deviation over seeds" if max(len(g.seeds) for g in groups) > 1 else "one seed each"
    return section(
        "metrics", "Metrics", table(head, body, text_columns=(0, 1)),
        fold("Every metric", table(("metric", "", "meaning", *(g.short for g in groups)), every, text_columns=(0, 1, 2))),
        note=f"{spread.capitalize()}; below it the {c.coverage * 100:g} % interval over seeds and {unit}. {c.metric} decides.",
    )


def _unit(metric: str) -> str:
    """``% ↑``: unit, and which way is better."""
    factor, unit = words.scale(metric)
    return f"{'%' if factor == 100 else unit} {arrow(describe(metric)[1])}".strip()


def _cell(group: GroupResult, metric: str) -> Child:
    found = group.estimates.get(metric)
    if found is None:
        return "–"
    ends = words.span(metric, found.low, found.high)
    return join(words.estimate(metric, found), tag("br"), tag("span", ends, class_="note")) if ends else words.estimate(metric, found)


def differences(c: Comparison) -> Markup:
    """Forest plot of the deciding metric, then tables per metric."""
    svg = missing("No interval.")
    if any(math.isfinite(p.low) for p in c.of(c.metric)):
        svg = figures.forest(by_weight(c)[:30], c.level, alt=f"Differences in {c.metric} with intervals")
    legend = "Blue: differs after correction over all pairs. Grey: not shown."
    tables = [tag("h3", words.title(c.metric)), _pair_table(c, by_weight(c))]
    tables += [fold(words.title(m), _pair_table(c, c.of(m))) for m in c.metrics if m != c.metric]
    note = (
        "First minus second group. p: two-sided, of no difference; Holm: corrected over the pairs of this metric. "
        f"Would be seen: the true difference that these seeds and images show with {c.power * 100:g} % power at the strictest step of "
        "the correction. Images: share of the variance that more test images would reduce; the rest needs more seeds."
    )
    return section("differences", "Paired differences", panel(f"{c.metric}, all pairs", svg, note=legend), *tables, note=note)


def _pair_table(c: Comparison, pairs: Sequence[PairResult]) -> Markup:
    body = []
    for p in pairs:
        share = f"{p.image_share:.0%}" if math.isfinite(p.image_share) else "–"
        value = words.amount(p.metric, p.value, signed=True, unit=False)
        body.append((
            f"{p.first} − {p.second}", tag("b", value) if p.differs(c.level) else value, words.span(p.metric, p.low, p.high) or "–",
            _p(p.p), _p(p.p_holm), words.amount(p.metric, p.detectable, unit=False), share, f"{p.seeds[0]} / {p.seeds[1]}",
        ))
    head = ("pair", "difference", f"{c.coverage * 100:g} % interval", "p", "p (Holm)", "would be seen", "images", "seeds")
    return table(head, body)


def _p(value: float) -> str:
    return "–" if not math.isfinite(value) else f"{value:.3f}" if value >= 0.001 else "< 0.001"


def course(c: Comparison) -> Markup:
    """Curves over steps and wall time, steps to a level, snapshots."""
    title = "The way there"
    if not c.curve:
        return section("course", title, missing("No validated score was logged by all runs, so there are no curves."))
    legend = figures.legend([g.short for g in c.groups])
    drawn = [panel(f"{c.curve} over steps", figures.curves(c, c.curve, over="steps"))]
    if all(math.isfinite(float(g.curves[c.curve].seconds[-1])) for g in c.groups if c.curve in g.curves):
        exact = None if c.exact_time else "Training time spread evenly over steps; the logs have no clock."
        drawn.append(panel(f"{c.curve} over wall time", figures.curves(c, c.curve, over="seconds"), note=exact))
    others = [k for k in dict.fromkeys(k for g in c.groups for k in g.curves) if k != c.curve]
    probes = [k for k in others if "coord_probe/" in k]
    folded = (("Other validated scores", [k for k in others if k not in probes]), ("Teacher-forced diagnostics", probes))
    more = [fold(name, legend, _panels(c, keys), _hidden(keys)) for name, keys in folded if keys]
    note = "Mean over seeds on validation data, range over seeds as a band. Diagnostics explain; they do not rank."
    return section(
        "course", title, legend, tag("div", drawn, class_="plots"), _reach(c), _snapshots(c), *more, note=note
    )


def _panels(c: Comparison, columns: Sequence[str]) -> Markup:
    return tag("div", [panel(k, figures.curves(c, k, over="steps")) for k in columns[:_MAX_PANELS]], class_="plots")


def _hidden(keys: Sequence[str]) -> Child:
    return missing(f"Not drawn: {', '.join(keys[_MAX_PANELS:])}.") if len(keys) > _MAX_PANELS else None


def _reach(c: Comparison) -> Child:
    wanted = next(([r.level for r in g.reach] for g in c.groups if g.reach), [])
    if not wanted:
        return None
    metric = c.curve.split("/")[-1]
    at_least = "≤" if describe(metric)[1] < 0 else "≥"
    head = ["group", *(f"{c.curve} {at_least} {words.amount(metric, level, unit=False)}" for level in wanted)]
    body = []
    for group in (g for g in ordered(c) if g.reach):
        cells: list[Child] = []
        for r in group.reach:
            if not r.reached:
                cells.append("never")
                continue
            seeds = f" ({r.reached}/{len(group.seeds)})" if r.reached < len(group.seeds) else ""
            time = f" · {duration(r.seconds)}" if math.isfinite(r.seconds) else ""
            cells.append(f"{r.steps:,.0f}{time}{seeds}")
        body.append([group.short, *cells])
    note = "Median over seeds of the first validation at the level, with its wall time; (n/m): only n of m seeds got there."
    return tag("div", tag("h3", "Steps to reach a level"), table(head, body), tag("p", note, class_="note"))


def _snapshots(c: Comparison) -> Child:
    steps = next((list(g.snapshots) for g in c.groups if g.snapshots), [])
    if not steps:
        return tag("div", tag("h3", "At common steps"), missing("The runs were not validated at any common step."))
    metric = c.curve.split("/")[-1]
    body = [[g.short, *(words.estimate(metric, g.snapshots[s]) for s in steps)] for g in ordered(c) if g.snapshots]
    return tag("div", tag("h3", f"{c.curve} at common steps"), table(["group", *(f"{s:,}" for s in steps)], body))
