"""Checks of phrases: whether they can teach anything, and what is typed into them.

Shapes: P phrases.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from coordvlm.analysis.checks import CheckSettings, Tally, percent, stated
from coordvlm.analysis.checks_view import PhraseView, SplitView
from coordvlm.data.phrase_checks import (
    ENOUGH_REPEATS,
    PLACEHOLDER_LIMIT,
    TOP_SHARE_LIMIT,
    UNIQUE_RATIO_LIMIT,
    is_placeholder,
    normalise,
    phrase_statistics,
)
from coordvlm.reports.audit_data import Example, Finding, Histogram, Level

#: Phrases longer than this are no phrases of RefCOCO's kind: two of its 57,000 evaluation phrases are.
_LONG, _SHORT = 150, 2
#: What chat templates and coordinate formats write; typed into a phrase it is text to us and may not be to another program.
_SPECIAL = re.compile(
    r"<\|[^|<>]{1,40}\|>|</?(?:s|image|img|box|ref|obj_start|obj_end|bos|eos|pad|unk|coord_\d+|loc\d+)>|\[/?(?:INST|IMG|CLS|SEP|PAD)\]"
)
#: An instruction before the phrase, as prompts have it.
_PROMPT = re.compile(
    r"(?:locate|find|detect|ground|segment|box|point (?:to|at))\s*:.+"
    r"|(?:where (?:is|are)|locate|find|detect|point (?:to|at)|show me)\s.+|.+\?\s*$",
    re.IGNORECASE,
)
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
_WORDS = (1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30)


def special_tokens(text: str) -> list[str]:
    """Special tokens typed into a text."""
    return _SPECIAL.findall(text)


def odd_characters(text: str) -> list[str]:
    """Characters nobody sees: control, direction, surrogates, unassigned. A joiner inside an emoji is not odd."""
    if text.isascii() and text.isprintable():
        return []
    return [f"U+{ord(c):04X}" for c in text if unicodedata.category(c) in _HIDDEN and c != "\u200d"]


def check_phrases(view: SplitView, settings: CheckSettings) -> list[Finding]:
    """All checks of the phrases of a split; nothing where there are none."""
    phrases = view.phrases
    if phrases is None:
        return []
    if not len(phrases.texts):
        return [Finding("phrases", "count", view.name, Level.FAIL, 0, "0", "a split must hold phrases")]
    tally = Tally(
        topic="phrases", split=view.name, settings=settings, of=len(phrases.texts), place=phrases.place,
        value=lambda i: _short(phrases.texts[i]),
    )
    return [*_repetition(view, phrases, tally), *_writing(phrases, tally), *_ambiguous(view, phrases, tally), _lengths(view, phrases)]


def _repetition(view: SplitView, phrases: PhraseView, tally: Tally) -> list[Finding]:
    found = phrase_statistics(phrases.texts)
    few, often = found.unique_ratio < UNIQUE_RATIO_LIMIT, found.top_share > TOP_SHARE_LIMIT
    counts = found.count >= ENOUGH_REPEATS and not view.generated  # a grammar repeats itself, and a handful says nothing
    said = " (phrases made by a grammar repeat by nature)" if view.generated else ""
    limit = Level.FAIL if counts else Level.NOTE
    top_level = limit if found.top_count >= ENOUGH_REPEATS or view.generated else Level.NOTE
    odd = np.flatnonzero([is_placeholder(text) for text in phrases.texts])
    top = next((i for i, text in enumerate(phrases.texts) if normalise(text) == found.top_phrase), 0)
    return [
        Finding("phrases", "unique", view.name, limit if few else Level.OK, found.unique_ratio, percent(found.unique_ratio),
                f"at least {percent(UNIQUE_RATIO_LIMIT)} of the phrases must be different{said}", details={"count": found.count}),
        Finding("phrases", "top", view.name, top_level if often else Level.OK, found.top_share, percent(found.top_share),
                f"the most frequent phrase must not be above {percent(TOP_SHARE_LIMIT)}{said}",
                (Example(phrases.place(top), f"{found.top_phrase!r}, {found.top_count} times"),) if often else (),
                {"phrase": found.top_phrase, "times": found.top_count}),
        tally("placeholder", odd, f"placeholders and blanks must not be above {percent(PLACEHOLDER_LIMIT)}", Level.NOTE,
              worse=(PLACEHOLDER_LIMIT, Level.FAIL), details={"most_frequent": dict(found.placeholders)}),
    ]


def _writing(phrases: PhraseView, tally: Tally) -> list[Finding]:
    texts = phrases.texts

    def check(name: str, test: Callable[[str], object], rule: str, level: Level, worse: tuple[float, Level] | None = None) -> Finding:
        hits = np.flatnonzero(np.fromiter((bool(test(text)) for text in texts), dtype=bool, count=len(texts)))
        return tally(name, hits, rule, level, worse=worse)

    return [
        check("blank", lambda text: not text.strip(), "a phrase must say something", Level.FAIL),
        check("prompt", _PROMPT.match, "a phrase should name a thing, not be a question or repeat the prompt's words", Level.NOTE,
              (0.05, Level.WARN)),
        check("special_tokens", special_tokens, "special tokens typed into a phrase are kept as text here; other programs may read them",
              Level.WARN),
        check("odd_characters", odd_characters, "a phrase should hold no control or direction characters", Level.WARN),
        check("spacing", lambda text: text != " ".join(text.split()), "outer, double or unusual spaces make two phrases of one", Level.NOTE,
              (0.5, Level.WARN)),
        check("long", lambda text: len(text) > _LONG, f"more than {_LONG} characters: a caption, or several phrases in one?", Level.NOTE,
              (0.1, Level.WARN)),
        check("short", lambda text: 0 < len(text.strip()) <= _SHORT, f"at most {_SHORT} characters", Level.NOTE, (0.05, Level.WARN)),
    ]


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def _ambiguous(view: SplitView, phrases: PhraseView, tally: Tally) -> list[Finding]:
    """One phrase for several boxes of an image, and the same phrase for the same box again."""
    numbers: dict[str, int] = {}
    text = np.fromiter((numbers.setdefault(normalise(t), len(numbers)) for t in phrases.texts), dtype=np.int64, count=len(phrases.texts))
    box = np.where(np.isnan(phrases.xyxy), -1.0, phrases.xyxy)
    same = np.unique(np.column_stack([phrases.image, text]), axis=0, return_inverse=True)[1].reshape(-1)
    rows, first = np.unique(np.column_stack([same.astype(np.float64), box]), axis=0, return_index=True)
    several = np.bincount(rows[:, 0].astype(np.int64), minlength=same.max() + 1) > 1
    ambiguous = _last_of_each(np.flatnonzero(several[same]), same)
    repeated = np.setdiff1d(np.arange(len(text)), first)
    negative = phrases.negative
    return [
        tally("several_boxes", ambiguous, "a phrase should name one box of an image; these name several", Level.NOTE,
              worse=(0.01, Level.WARN)),
        tally("repeated", repeated, "the same phrase for the same box of the same image again",
              Level.OK if view.generated else Level.NOTE, worse=(0.5, Level.WARN)),
        stated("phrases", "negatives", view.name, float(negative.mean()), percent(float(negative.mean())),
               "phrases that name nothing in their image; the answer is none", count=int(negative.sum())),
    ]


def _last_of_each(hits: NDArray[np.int64], group: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64: of the hits of each group the last one, ascending."""
    return np.asarray(sorted({int(group[h]): int(h) for h in hits}.values()), dtype=np.int64)


def _lengths(view: SplitView, phrases: PhraseView) -> Finding:
    words = np.fromiter((len(t.split()) for t in phrases.texts), dtype=np.int64, count=len(phrases.texts))
    return stated("phrases", "words", view.name, float(words.mean()), f"{np.median(words):.0f}, most {words.max()}",
                  "words per phrase: the median and the most; the value is the mean")


def length_histogram(view: SplitView) -> Histogram | None:
    """Phrases by number of words, None where there are none."""
    if view.phrases is None or not len(view.phrases.texts):
        return None
    words = [len(t.split()) for t in view.phrases.texts]
    counts = np.histogram(words, bins=[*_WORDS, np.inf])[0]
    labels = [str(a) if b == a + 1 else f"{a}-{b - 1}" for a, b in pairwise(_WORDS)] + [f"{_WORDS[-1]} or more"]
    return Histogram("Words per phrase", view.name, tuple(labels), tuple(counts.tolist()))
