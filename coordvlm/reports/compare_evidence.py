"""The page of a comparison, second half: pixel errors, shares of the loss, drops, read-outs, cost, pictures, protocol, runs."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from coordvlm.contracts.prediction import DROP_REASONS, KEPT
from coordvlm.reports import compare_plots as figures
from coordvlm.reports import compare_words as words
from coordvlm.reports.compare_data import Comparison, Disagreement
from coordvlm.reports.compare_sections import ordered
from coordvlm.reports.floor import floor_words
from coordvlm.reports.gallery import overlay_figure
from coordvlm.reports.page import Child, Markup, definitions, fold, join, missing, section, table, tag
from coordvlm.reports.plots import panel
from coordvlm.reports.summary import flatten, quantity
from coordvlm.reports.tables import primary, readout_columns

RADII = (2.0, 5.0, 10.0)
_LOOP = ("finished", "repeated", "step_limit", "without_prediction")
_RATES = ("duplicate_rate", "absent_class_rate", "parse_rate", "truncation_rate")


_EXTREMES = (
    "averaged over seeds; images are ordered by the gap between the best and the worst group less one standard error over seeds. Each "
    "group shows the seed with its median score on that image. These are extremes, chosen for being so: they show how recipes differ, "
    "not how much."
)
_SCORE = f"An image's score is the mean of its F1 (IoU ≥ 0.5) and the IoU of its true boxes' matches (0 where missed), {_EXTREMES}"
_COUNT_SCORE = (
    "A sample's score is the mean of the share of its single steps that are right (within 5 px of 384 and not done, or done when nothing "
    f"is left) and the F1 of the counted points, as far as they are there, {_EXTREMES}"
)


def pixel_errors(c: Comparison) -> Markup:
    """Distributions over each other, with the localisation floor."""
    title = "Pixel error"
    pooled = [g.px_error for g in c.groups if len(g.px_error)]
    if not pooled:
        what = "No single step with a target" if c.counting else "No matched boxes"
        return section("pixels", title, missing(f"{what} in any run, so there is no error to show."))
    middle = min(float(np.median(e)) for e in pooled)  # half of one group's errors are always seen
    limit = float(min(max(max(np.percentile(e, 97) for e in pooled), 6.0), max(60.0, 2 * middle)))
    patches = [g.floor.half_patch * 1.05 for g in c.groups if g.floor is not None and g.floor.half_patch < 2 * limit]
    limit = max(limit, *patches, 0.0)  # half a patch is worth a wider axis, but not one that hides the errors
    legend = figures.legend([g.short for g in c.groups])
    drawn = [
        panel("Distribution", figures.error_densities(c, limit)),
        panel("Share within", figures.error_shares(c, limit)),
    ]
    floors = {floor_words(g.floor): [h.short for h in c.groups if h.floor is g.floor] for g in c.groups
              if g.floor is not None and len(g.floor.error_px)}
    several = len(floors) > 1
    shade: list[Child] = [tag("p", f"{', '.join(names)}: " if several else None, text, class_="note") for text, names in floors.items()]
    if not floors and not c.counting:
        shade = [missing("No checkpoint tells the coordinate contract, so the localisation floor is not known.")]
    head = ["", figures.error_words(c)[0], "median", "mean", *(f"within {r:.0f} px" for r in RADII), f"beyond {limit:.0f} px"]
    body = []
    for g in ordered(c):
        if len(g.px_error):
            body.append(_error_row(g.short, g.px_error, limit))
    for text, names in floors.items():
        floor = next(g.floor for g in c.groups if g.floor is not None and floor_words(g.floor) == text)
        assert floor is not None, "its words come from it"
        name = f"floor of {', '.join(names)}" if several else "floor"
        body.append(_error_row(name, floor.error_px, limit))
    note = (
        "Distance of the answered point and its object in single steps with true marks, both sides of the image scaled to 384 px, all "
        "seeds together. A step in which everything is marked has no distance."
    ) if c.counting else (
        "Distance of predicted and true corners of boxes matched at IoU ≥ 0.5, all seeds together, in source pixels. A recipe that misses "
        f"hard boxes has none of their errors here: read it with {primary([c.metric, *c.metrics])} and pck_all."
    )
    return section("pixels", title, legend, tag("div", drawn, class_="plots"), *shade, table(head, body), note=note)


def _error_row(name: str, error: np.ndarray, limit: float) -> list[str]:
    within = [f"{np.mean(error <= r):.1%}" for r in RADII]
    return [name, f"{len(error):,}", f"{np.median(error):.2f} px", f"{error.mean():.2f} px", *within, f"{np.mean(error > limit):.1%}"]


def shares(c: Comparison) -> Markup:
    """Which part of the loss, and of the gradient, coordinates make up."""
    title = "Share of coordinates in the loss"
    drawn = [_share_table(c, name, {g.short: found for g in ordered(c) if (found := getattr(g, field))})
             for name, field in (("Loss", "loss_share"), ("Gradient norm", "grad_share"))]
    other, first, last = ("text", "text, on ", " and on boxes")
    if c.counting:
        other, first, last = ("the end", "", ", on points and on whether all is marked")
    note = (
        f"Recipes that weigh coordinates differently against {other} differ in more than their coordinate loss. Weighted parts of the "
        f"training loss on {first}coordinate tokens (slots){last}, over the whole training and, in brackets, over its last tenth. "
        "Shares of gradient norms ignore that gradients may cancel."
    )
    found = [d for d in drawn if d is not None]
    absent = None if drawn[1] is not None else missing("Gradient norms of the terms were not logged.")
    return section("shares", title, *(found or [missing("The logs hold no parts of the loss.")]), absent, note=note)


def _share_table(c: Comparison, name: str, found: Mapping[str, Mapping[str, tuple[float, float]]]) -> Child:
    if not found:
        return None
    parts = list(dict.fromkeys(p for row in found.values() for p in row))
    body = []
    for group, row in found.items():
        coordinates = [1 - sum(row[p][i] for p in row if p.startswith(("text", "done"))) for i in (0, 1)]
        cells = [f"{row[p][0]:.0%} ({row[p][1]:.0%})" if p in row else "–" for p in parts]
        body.append([group, tag("b", f"{coordinates[0]:.0%} ({coordinates[1]:.0%})"), *cells])
    return tag("div", tag("h3", name), table(("group", "all coordinates", *parts), body))


def drops(c: Comparison) -> Markup:
    """Duplicates, and what the parser dropped."""
    groups = ordered(c)
    rates = [m for m in _RATES if any(m in g.estimates for g in groups)]
    head = ["group", *(words.title(m) for m in rates)]
    body = [[g.short, *(words.estimate(m, g.estimates[m]) if m in g.estimates else "–" for m in rates)] for g in groups]
    names = [s for s in (*KEPT, *DROP_REASONS) if any(g.statuses.get(f"status_{s}") for g in groups)]
    found = {k.removeprefix("status_") for g in groups for k, n in g.statuses.items() if k.startswith("status_") and n}
    names += sorted(found - {*KEPT, *DROP_REASONS})
    flags = _LOOP if c.counting else ("no_output", "truncated", "stray_text", "without_prediction")
    rest = []
    for g in groups:
        records = max(g.statuses.get("records", 0), 1)
        images = max(g.statuses.get("images", 0), 1)
        rest.append([
            g.short, f"{g.statuses.get('records', 0):,}", *(f"{g.statuses.get(f'status_{s}', 0) / records:.2%}" for s in names),
            *(f"{g.statuses.get(f'images_{f}', 0) / images:.2%}" for f in flags),
        ])
    if c.counting:
        ends = ("said it is done", "pointed at marks", "reached the step limit", "no prediction")
        second = table(("group", "points", *names, *ends), rest)
        note = "Points of the loop by what became of them, as shares of all; how counts ended, as shares of samples. All seeds together."
        return section("drops", "What the loop did", second, note=note)
    second = table(("group", "records", *names, *(f.replace("_", " ") for f in flags)), rest)
    note = "Records by what became of them, as shares of all records; answers with a flag, as shares of all answers. All seeds together."
    return section("drops", "Duplicates and dropped records", table(head, body), tag("h3", "Parser"), tag("p", note, class_="note"), second)


def readouts(c: Comparison) -> Markup:
    """Three ways to read one decode, per group."""
    title = "Read-outs"
    groups = [g for g in ordered(c) if g.readouts]
    if not groups:
        return section("readouts", title, missing("Read-outs were not compared in these runs."))
    names = readout_columns({r: {m: e.value for m, e in row.items()} for g in groups for r, row in g.readouts.items()})
    body: list[list[Child]] = []
    for g in groups:
        for readout, row in g.readouts.items():
            label = join(readout, " ", tag("span", "used above", class_="pill")) if readout == c.readout else readout
            body.append([g.short, label, *(words.estimate(m, row[m]) if m in row else "–" for m in names)])
    note = "Mean ± standard deviation over seeds. " + (
        "A recipe has the read-outs whose heads it trains." if c.counting
        else "Same answers, other numbers read off them; readout=<name> compares everything by one."
    )
    return section("readouts", title, table(("group", "read-out", *map(words.title, names)), body, text_columns=(0, 1)), note=note)


def cost(c: Comparison) -> Markup:
    """Steps, time, tokens, memory."""
    names = list(dict.fromkeys(k for g in c.groups for k in g.cost))
    if not names:
        return section("cost", "Cost", missing("The runs recorded no cost."))
    body = [[g.short, *(quantity(n, g.cost[n]) if n in g.cost else "–" for n in names)] for g in ordered(c)]
    shown = [n.removesuffix("_bytes").replace("_seconds", " time").replace("images_per_second", "images").replace("_", " ") for n in names]
    return section("cost", "Cost", table(("group", *shown), body, class_="wide"), note="Means over seeds, as the runs recorded them.")


def pictures(c: Comparison) -> Markup:
    """The images on which groups disagree most, side by side."""
    title = "Where they disagree most"
    if not c.disagreements:
        return section("pictures", title, missing("No image separates the groups by more than its seeds do."))
    if c.counting:
        score, drawn = _COUNT_SCORE, "prediction: the count, or the worst single step where no count was taken"
    else:
        score, drawn = _SCORE, "prediction: description, score, best same-class IoU"
    keys = tag("div", tag("span", tag("i", class_="green"), "truth"),
               tag("span", tag("i", class_="red"), drawn), class_="legend")
    if c.load_image is None:
        head = ("image", "gap", *(g.short for g in c.groups))
        body = [(str(d.image_id), f"{d.gap:.2f}", *(f"{d.scores[g.short]:.2f}" for g in c.groups)) for d in c.disagreements]
        return section("pictures", title, missing(c.no_image or "The images cannot be had here."), table(head, body), note=score)
    return section("pictures", title, keys, *(_disputed(c, d) for d in c.disagreements), note=score)


def _disputed(c: Comparison, d: Disagreement) -> Markup:
    assert c.load_image is not None, "checked by the caller"
    parts = []
    for g in sorted(c.groups, key=lambda g: -d.scores[g.short]):
        heading = tag("h4", f"{g.short}: {d.scores[g.short]:.2f} (seed {d.seed[g.short]} shown)")
        parts.append(tag("div", heading, overlay_figure(d.scenes[g.short], c.load_image)))
    return join(tag("h3", f"Image {d.image_id}"), tag("div", parts, class_="gallery"))


def protocol(c: Comparison) -> Markup:
    """What was equal, and where contracts differ."""
    rows = [(k, tag("code", v)) for k, v in flatten(dict(c.protocol)).items()]
    if c.contracts:
        head = ("contract field", *(g.short for g in c.groups))
        contracts: Child = table(head, [(k, *v) for k, v in c.contracts.items()], text_columns=range(len(head)))
    else:
        contracts = tag("p", "The coordinate contracts are equal as far as checkpoints tell.", class_="note")
    return section(
        "protocol", "Protocol and contracts", tag("h3", "Coordinate contracts"), contracts,
        fold("The evaluation protocol all runs share", table(("value", ""), rows, text_columns=(0, 1))),
    )


def run_table(c: Comparison) -> Markup:
    """Every run that took part, and those that could not."""
    body = [
        (r.group, str(r.seed), words.amount(c.metric, r.values.get(c.metric, math.nan), unit=False), r.name,
         r.started[:19].replace("T", " "), tag("code", r.commit) if r.commit else "–")
        for r in c.runs
    ]
    listed = table(("group", "seed", words.title(c.metric), "run", "started", "commit"), body, text_columns=(0, 3, 4, 5))
    names = definitions([(g.short, g.name) for g in c.groups if g.short != g.name])
    if c.left_out:
        rest: Child = [tag("h3", f"Left out ({len(c.left_out)})"), table(("folder", "reason"), c.left_out, text_columns=(0, 1))]
    else:
        rest = tag("p", "No run was left out.", class_="note")
    return section("runs", "Runs", names, listed, rest)
