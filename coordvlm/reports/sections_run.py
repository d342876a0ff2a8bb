"""The course of the run: losses and scores over steps, data, time, versions, and the whole record."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from coordvlm.reports import plots, tables
from coordvlm.reports.page import Child, Markup, definitions, fold, missing, section, table, tag
from coordvlm.reports.summary import Curve, RunSummary, flatten, quantity
from coordvlm.reports.trains import as_table

#: Panels of one kind on a page; more are named instead.
_MAX_PANELS = 18
_PHASE = re.compile(r"^(train|val|valid|validation)[/_]")
_SUFFIX = re.compile(r"_(step|epoch)$")
#: Columns of the CSV log that are no curve.
_SKIP = frozenset({"epoch", "step", "time"})
_OPTIMISER = re.compile(r"(^|[/_-])(lr|learning_rate|grad_norm|images_per_s|weight_decay|momentum)([/_-]|$)")


def split_name(name: str) -> tuple[str, str]:
    """(phase, quantity): ``val/coord_loss`` -> ``("val", "coord_loss")``; the phase is "" when the name has none."""
    found = _PHASE.match(name)
    if not found:
        return "", name
    return "train" if found[1] == "train" else "val", name[found.end() :]


def _panels(curves: Mapping[str, Curve]) -> tuple[dict[str, dict[str, plots.Points]], list[str]]:
    """quantity -> phase -> finite points; and the names that hold not one number."""
    panels: dict[str, dict[str, plots.Points]] = {}
    empty = []
    for name, (steps, values) in curves.items():
        if name in _SKIP:
            continue
        points = plots.finite_curve(steps, values)
        if not len(points[0]):
            empty.append(name)
            continue
        phase, quantity_name = split_name(name)
        lines = panels.setdefault(_SUFFIX.sub("", quantity_name), {})
        key = phase or "value"
        lines[key if key not in lines else name] = points
    return panels, empty


def kind(name: str) -> str:
    """``score`` (a metric of the evaluation), ``optimiser``, ``probe`` (teacher-forced diagnostics) or ``loss``."""
    last = name.split("/")[-1]
    if tables.describe(last)[1]:
        return "score"
    if _OPTIMISER.search(name):
        return "optimiser"
    if "loss" in name:
        return "loss"
    return "probe" if "/" in name else "loss"


def course(run: RunSummary) -> Markup:
    """Loss per term, AP on the selection subset, and what else was logged, over steps."""
    title = "Training"
    panels, empty = _panels(run.curves)
    if not panels:
        why = "There is no log of losses: nothing was trained, or it was not kept."
        why = "The log has columns but not one finite value." if empty else why
        return section("training", title, [missing(why), as_table(run.info("trains"))])
    groups: dict[str, list[str]] = {"loss": [], "score": [], "optimiser": [], "probe": []}
    for name in panels:
        groups[kind(name)].append(name)
    order = {name: i for i, name in enumerate((*tables.MAIN, *tables.METRICS))}
    groups["score"].sort(key=lambda n: order.get(n.split("/")[-1], len(order)))
    groups["loss"].sort(key=lambda n: "total" not in n)
    zero = [name for name in groups["loss"] if name.endswith("_loss") and not any(y.any() for _, y in panels[name].values())]
    shown = [name for name in groups["loss"] if name not in zero]  # the recipe has no such part
    parts: list[Child] = [tag("h3", "Loss per term"), _grid(shown, panels) or missing("No loss was logged.")]
    if zero:
        parts.append(missing(f"0 throughout, so not drawn: {', '.join(sorted(zero))}."))
    scores = _grid(groups["score"], panels, limit=6) or missing("No decoded score was logged during training.")
    parts += [tag("h3", "Score over steps"), scores]
    for name, words in (("optimiser", "Optimiser"), ("probe", "Diagnostics (teacher-forced: they explain, they do not rank)")):
        if groups[name]:
            parts.append(fold(f"{words}: {len(groups[name])}", _grid(groups[name], panels)))
    parts.append(as_table(run.info("trains")))
    if empty:
        parts.append(missing(f"Logged without a finite value: {', '.join(sorted(empty))}."))
    note = "As logged, by name. Long curves are means over stretches with the range as a band; axes may be logarithmic."
    return section("training", title, parts, note=note)


def _grid(names: list[str], panels: Mapping[str, Mapping[str, plots.Points]], *, limit: int = _MAX_PANELS) -> Child:
    if not names:
        return None
    figures = []
    for name in names[:limit]:
        lines = dict(sorted(panels[name].items(), key=lambda item: (item[0] != "train", item[0] != "val", item[0])))
        series = {"train": 1, "val": 2}
        legend = {key: series.get(key, min(i, len(plots.SERIES))) for i, key in enumerate(lines, 3)}
        last = ", ".join(f"{key} {lines[key][1][-1]:.4g}" for key in lines)
        svg = plots.curves(lines, colours=legend, alt=f"{name} over steps")
        figures.append(plots.panel(name, svg, legend=legend, note=f"last: {last}"))
    more = missing(f"{len(names) - limit} more in the CSV log: {', '.join(names[limit:])}.") if len(names) > limit else None
    return [tag("div", figures, class_="plots"), more]


def data(run: RunSummary) -> Markup:
    """What was dropped, clipped or skipped, and hashes of what was read."""
    truth = run.truth
    facts: list[tuple[Child, Child]] = []
    if truth is not None:
        facts = [
            (f"evaluated {'clips' if run.clips else 'phrases' if run.grounding else 'images'}", f"{len(truth.image_ids):,}"),
            ("annotations", f"{len(truth.ann_ids):,}"),
            ("of them crowds", f"{int(truth.ann_iscrowd.sum()):,}"), ("categories", f"{len(truth.category_names):,}"),
            ("truth digest", tag("code", truth.digest())),
        ]
    parts: list[Child] = []
    kinds = (("Dropped, clipped, skipped", "dropped", "Nothing was recorded as dropped or clipped."),
             ("Files and hashes", "data", "Hashes of the data were not recorded."))
    for title, name, otherwise in kinds:
        values = run.group(name)
        rows = [(k, tag("code", v) if isinstance(v, str) else quantity(k, v)) for k, v in values.items()]
        parts.append(tag("div", tag("h3", title), table(("what", "value"), rows) if rows else missing(otherwise)))
    note = "Targets may be dropped or clipped for training, and are counted; evaluation reads the untouched truth."
    return section("data", "Data", definitions(facts), tag("div", parts, class_="columns"), note=note)


def timing(run: RunSummary) -> Markup:
    """Seconds of each stage, throughput, memory, and the load they were measured under."""
    rows: list[tuple[Child, Child]] = []
    for name, value in run.group("timings").items():
        plain = name.endswith("_per_s") or not isinstance(value, int | float)
        rows.append((name.replace("_", " "), quantity(name if plain else f"{name}_seconds", value)))
    seconds = [p.timing["seconds"] for p in run.predictions if math.isfinite(p.timing.get("seconds", math.nan))]
    if sum(seconds) > 0:
        rows.append((f"decoded {'clips' if run.clips else 'images'} per second", f"{len(seconds) / sum(seconds):,.1f}"))
    peaks = run.group("peak_memory")
    memory = [(f"peak {k.removesuffix('_bytes').replace('_', ' ')}", quantity(k, v)) for k, v in peaks.items()]
    machine = run.group("hardware")
    wanted = ("load_average", "load_average_end", "cpu_usable", "processor", "gpus")
    load = [(name.replace("_", " "), machine[name]) for name in wanted if name in machine]
    if not rows and not memory:
        return section("timing", "Time and memory", missing("Times and memory were not recorded."), definitions(load))
    note = "Wall time; what else the machine was doing shows in the load."
    return section("timing", "Time and memory", definitions([*rows, *memory, *load]), note=note)


def record(run: RunSummary) -> Markup:
    """Versions, and run.json in full."""
    versions = {k: v for k, v in run.group("versions").items() if v is not None}
    rows = [(k, tag("code", quantity(k, v) if not isinstance(v, float) else v)) for k, v in flatten(run.run_info).items()]
    every = table(("field", "value"), rows, text_columns=(0, 1))
    return section(
        "record", "Versions and record", definitions(versions.items()) if versions else missing("Versions were not recorded."),
        fold(f"run.json: {len(rows)} fields", every) if rows else missing("run.json is empty."),
    )
