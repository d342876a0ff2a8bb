"""The top of the run page: what was run and how it ended, the main numbers, every metric, the contract."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime

from coordvlm.contracts import Contract
from coordvlm.reports import base_beside, tables
from coordvlm.reports.page import Child, Markup, definitions, fold, join, missing, section, table, tag
from coordvlm.reports.summary import RunSummary, flatten, quantity

#: Fewer images than this make a bootstrap over images a formality.
_FEW_IMAGES = 10
_STATUS = {
    "finished": ("good", "finished"), "running": ("warn", "running"), "interrupted": ("bad", "interrupted"),
    "failed": ("bad", "failed"), "dead": ("bad", "died"),
}


def headline(run: RunSummary) -> Markup:
    """Title, status, where it came from; an unfinished run is announced before anything else."""
    kind, word = _STATUS.get(run.status, ("warn", run.status))
    recipe, model, source = (run.choice(name) for name in ("loss", "model", "data"))
    title = run.choice("experiment") or " · ".join(filter(None, (recipe, model, source)))
    commit = run.info("git.commit")
    state = join(tag("code", str(commit)[:12]), " with uncommitted changes" if run.info("git.dirty") else "") if commit else None
    seconds = run.run_info.get("seconds")
    facts = definitions([
        ("experiment", run.choice("experiment")), ("loss", recipe), ("model", model),
        ("evaluated", run.info("evaluated.what", "evaluated.run")), ("data", source), ("measured on", run.split),
        ("checkpoint chosen on", run.selected_on), ("read-out", run.readout), ("seed", run.info("seed")), ("commit", state),
        ("started", _moment(run.info("started"))), ("ended", _moment(run.info("ended"))),
        ("wall time", quantity("seconds", seconds) if seconds is not None else None), ("host", run.info("hostname")),
    ])
    shown = run.info("command_line", "command")
    return join(
        _alert(run),
        base_beside.headline(run.base),
        tag("h1", title or "Run", " ", tag("span", word, class_=f"pill {kind}")),
        tag("pre", shown) if shown else missing("The command is not recorded."),
        facts,
    )


def _moment(value: object) -> str | None:
    """An ISO time to the second, with its offset; anything else as it is."""
    try:
        return None if value is None else datetime.fromisoformat(str(value)).isoformat(" ", timespec="seconds")
    except ValueError:
        return str(value)


def _alert(run: RunSummary) -> Child:
    text = _reason(run.info("error", "reason"))
    if run.status == "interrupted":
        return _box("bad", "This run was interrupted", "What follows describes the state at that moment, not a finished training.", text)
    if run.status == "failed":
        return _box("bad", "This run failed", "Numbers below, if any, come from before the failure.", text)
    if run.status == "dead":
        return _box("bad", "This run died", "Its process is gone and left no word; numbers below, if any, are intermediate.", text)
    if run.status == "running":
        return _box("warn", "This run had not finished when the page was written", "Numbers are intermediate.", text)
    if run.status not in _STATUS:
        return _box("warn", f"How this run ended is not known (status: {run.status})", "Do not read the numbers as final.", text)
    return _box("warn", "Note", "", text) if text else None


def _reason(error: object) -> Child:
    """Type and message, with the traceback closed below."""
    if not isinstance(error, Mapping):
        return tag("pre", error) if error else None
    words = ": ".join(str(error[k]) for k in ("type", "message") if error.get(k))
    trace = error.get("traceback")
    return [tag("pre", words or str(dict(error))), fold("Traceback", tag("pre", trace)) if trace else None]


def _box(kind: str, title: str, words: str, more: Child = None) -> Markup:
    return tag("div", tag("strong", title), words, more, class_=f"alert {kind}", role="alert")


def results(run: RunSummary) -> Markup:
    """Tiles of the main metrics, then all of them; what is no evidence has no tile and is struck out."""
    if run.evaluation is None:
        return section("metrics", "Results", missing("There is no evaluation: this run ended before one, or it was switched off."))
    shown = tables.rows(run.evaluation.metrics)
    images = run.evaluation.counts.get("images")
    if images is None and run.truth is not None:
        images = len(run.truth.image_ids)
    over = f"{images:,} images" if images is not None else "the evaluated images"
    if run.grounding:
        over = f"{run.evaluation.counts.get('phrases', 0):,} phrases on {over}"
    elif run.counts:
        over = f"{run.evaluation.counts.get('samples', 0):,} samples (an image and a category) on {over}"
    elif run.clips:
        over = f"{images or 0:,} clips"
    things = "clips" if run.clips else "images"
    few = f" {images} {things} are too few for these ranges to mean much." if images is not None and images < _FEW_IMAGES else ""
    note = (
        f"On {run.split or 'an unnamed split'}, {over}, original annotations at original resolution. Ranges are 95 % bootstrap intervals "
        f"over {things}: what another draw of test {things} would change, not what another seed would.{few}"
    )
    every = table(
        ("metric", "", "value", "95 % interval", "meaning"),
        [(_name(r), tables.arrow(r.better), tag("s", r.shown) if r.struck else r.shown, r.interval, r.meaning) for r in shown],
        text_columns=(0, 1, 4), class_="wide",
    )
    main = [tile(r) for r in shown if r.main and not r.struck]
    absent = [name for name in tables.main_metrics(run.evaluation.metrics) if name not in run.evaluation.metrics]
    return section(
        "metrics", "Results", _selection(run), tag("div", main, class_="tiles") if main else None,
        missing(f"Not measured: {', '.join(absent)}.") if absent else None,
        every if shown else missing("The evaluation has no metrics."), note=note,
    )


def _selection(run: RunSummary) -> Child:
    if run.split and run.split == run.selected_on:
        return _box(
            "warn", "The checkpoint was chosen on this very split",
            f"Numbers on {run.split} are optimistic; compare models on data that chose neither.",
        )
    return None


def _name(row: tables.Row) -> Child:
    """In bold where the run is judged by it, struck out where it is no evidence."""
    return tag("s", row.name) if row.struck else tag("b", row.name) if row.main else row.name


def tile(row: tables.Row) -> Markup:
    """One metric, large, with its interval; a bar for those between 0 and 1."""
    pixels = tables.in_pixels(row.name)
    has_range = math.isfinite(row.low) and math.isfinite(row.high)
    bar: Child = None
    if not pixels and 0 <= row.value <= 1:
        low, high = (row.low, row.high) if has_range else (row.value, row.value)
        reach = tag("i", style=f"left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%")
        bar = tag("div", reach, tag("b", style=f"left:{100 * row.value:.1f}%"), class_="bar")

    def short(value: float) -> str:
        return tables.number(row.name, value) if pixels or not math.isfinite(value) else f"{value:.3f}"

    otherwise = "undefined on this data" if math.isnan(row.value) else "no interval"
    interval = f"95 %: {short(row.low)} – {short(row.high)}" if has_range else otherwise
    return tag(
        "div", tag("div", row.name, " ", tables.arrow(row.better), class_="name"),
        tag("div", short(row.value), tag("small", " px") if pixels and math.isfinite(row.value) else None, class_="value"),
        tag("div", interval, class_="range"), bar, class_="tile", title=row.meaning or None,
    )


def contract(run: RunSummary) -> Markup:
    """Everything that decides what an emitted number means, with both hashes."""
    note = "Stored with the checkpoint. Equal hash: emitted numbers mean the same. Equal protocol: the results may be compared."
    hashes: list[tuple[Child, Child]] = [("evaluation protocol", tag("code", run.protocol) if run.protocol else "not recorded")]
    if run.contract is None:
        return section("contract", "Coordinate contract", missing("No contract was handed over."), definitions(hashes), note=note)
    hashes.insert(0, ("contract", tag("code", run.contract.hash())))
    rows = [(name, tag("code", "–" if value is None else value)) for name, value in flatten(run.contract.to_dict()).items()]
    every = fold("All fields", table(("field", "value"), rows, text_columns=(0, 1)))
    words = (_clips_in_words if run.clips else _counting_in_words if run.counts else _in_words)(run.contract)
    return section(
        "contract", "Coordinate contract", definitions(hashes), tag("p", words, class_="lead"), every, note=note
    )


def _counting_in_words(c: Contract) -> Markup:
    return join(
        "A question ends with ", tag("code", " ".join(c.markers)), "; a point is answered as ", tag("code", "x' = 2 x / W − 1"),
        " in [-1, 1] (by coordinate tokens as ", tag("code", "c = x / W"), ") on extents ", tag("code", c.extents),
        "; objects are taken in ", tag("code", c.order), " order; images are resized by ", tag("code", c.resize.mode),
        f" to sides that are multiples of {c.resize.factor} px.",
    )


def _clips_in_words(c: Contract) -> Markup:
    side, frames = c.resize.size, c.details.get("num_frames")
    return join(
        "A question, a mode token (", tag("code", " | ".join(c.markers)), f"), one token for each of {frames or 'the'} frames, then the "
        "answer: words, or a place in the last frame. A coordinate ", tag("code", "c = x / W"), " in [0, 1] is written as ", _written(c),
        f"; frames are resized to {f'{side[0]} × {side[1]} px' if side else 'one size'}.",
    )


def _in_words(c: Contract) -> Markup:
    return join(
        "A coordinate ", tag("code", "c = x / W"), " in [0, 1] is written as ", _written(c), f". Boxes are {c.axes} on extents ",
        tag("code", c.extents), "; objects are written as ", tag("code", c.format), " in ", tag("code", c.order),
        " order; images are resized by ", tag("code", c.resize.mode), f" to sides that are multiples of {c.resize.factor} px.",
    )


def _written(c: Contract) -> Markup:
    """A token of its own per bin, or ordinary digits (``num_bins`` 0; ``scale`` 0: pixels of the resized image)."""
    if c.num_bins:
        rule, read = f"k = floor({c.scale} c + 0.5)", f"k / {c.scale}"
        return join(f"one of {c.num_bins:,} bins, ", tag("code", rule), ", and read as ", tag("code", read))
    if not c.scale:
        rule = "k = floor(c W' + 0.5)"
        return join("the digits of ", tag("code", rule), ", px of the resized image (W' wide), and read as ", tag("code", "k / W'"))
    if c.coords == "unit":
        return join("digits, with 4 decimals")
    return join("the digits of ", tag("code", f"k = floor({c.scale} c + 0.5)"), ", and read as ", tag("code", f"k / {c.scale}"))
