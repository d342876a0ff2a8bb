"""All checks of a data set, split by split and between splits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from coordvlm.analysis.checks import CheckSettings
from coordvlm.analysis.checks_boxes import check_boxes, size_histogram
from coordvlm.analysis.checks_classes import check_classes, check_classes_between, class_histogram
from coordvlm.analysis.checks_images import check_images, chosen_images
from coordvlm.analysis.checks_phrases import check_phrases, length_histogram
from coordvlm.analysis.checks_read import view_split
from coordvlm.analysis.checks_splits import check_splits
from coordvlm.analysis.checks_view import SplitView
from coordvlm.analysis.image_facts import read_facts, same_content
from coordvlm.data.source import SPLITS, DataSource
from coordvlm.reports.audit_data import Audit, Example, Finding, Histogram, Level
from coordvlm.utils.errors import ConfigError, DataError

Timer = Callable[[str], Any]


def views_of(source: DataSource, settings: CheckSettings, *, on_error: str) -> tuple[list[SplitView], list[Finding]]:
    """Every split once, and what could not be read. One that stands in for another is not looked at again.

    Args:
        source: opened so that as much as possible of what is broken is still in it.
        on_error: what the configuration would do in training; ``raise`` makes broken training targets failures.
    """
    views: list[SplitView] = []
    findings: list[Finding] = []
    for name in getattr(source, "splits", SPLITS):
        try:
            if source.split(name).name not in {v.name for v in views}:
                views += view_split(source, name, strict=on_error == "raise", num_samples=settings.num_samples)
        except ConfigError:
            continue  # not configured
        except DataError as error:
            findings.append(refusal(error, name))
    stands_in = [note for note in getattr(source, "notes", ()) if "stands in" in note]
    return views, [*findings, *(Finding("source", "stands_in", "test", Level.NOTE, 1, "1", note) for note in stands_in)]


def audit_views(views: Sequence[SplitView], settings: CheckSettings, *, before: Sequence[Finding], timer: Timer) -> Audit:
    """Every check.

    Args:
        before: findings of opening the data. timer: section name -> context manager.
    """
    findings = list(before)
    with timer("check"):
        for view in views:
            findings += [*check_phrases(view, settings), *check_boxes(view, settings), *check_classes(view, settings)]
        findings += check_classes_between(views)
    with timer("images"):
        facts = {v.name: read_facts(v, chosen_images(v, settings), max_pixels=settings.max_pixels) for v in views}
        places = [(v.name, i) for v in views for i in range(len(v.files))]
        groups = [[places[k] for k in group] for group in same_content([file for v in views for file in v.contents])]
        for view in views:
            mine = [[i for name, i in group if name == view.name] for group in groups]
            findings += check_images(view, facts[view.name], [g for g in mine if len(g) > 1], settings)
        findings += check_splits(views, facts, groups, settings)
    histograms: list[Histogram] = []
    for view in views:
        words = length_histogram(view)
        histograms += [words or class_histogram(view), size_histogram(view)]
    return Audit({v.name: v.looked_at for v in views}, findings, histograms)


def refusal(error: DataError, split: str) -> Finding:
    """What could not be opened at all."""
    value = None if error.value is ... else error.value
    return Finding("source", "refused", split, Level.FAIL, 1, "1", error.rule, (Example(error.where, value),))

