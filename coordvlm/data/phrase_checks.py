"""Whether phrases can teach anything: how often they repeat, and whether they are a form that somebody forgot to fill in.

A column of one constant question trains without an error, and the model learns to ignore the phrase. So the figures here decide.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from coordvlm.utils.errors import DataError

#: Share of the most frequent phrase, ratio of different phrases, and share of placeholders at which phrases are refused (SPEC 6).
TOP_SHARE_LIMIT = 0.05
UNIQUE_RATIO_LIMIT = 0.2
PLACEHOLDER_LIMIT = 0.01
#: Fewer repetitions than this say nothing: of 46 real phrases on three images one occurs four times, which is 9 %.
ENOUGH_REPEATS = 5
#: So many placeholders are named in the statistics.
_NAMED = 10

_PLACE = r"(image|picture|photo|region|area|scene|box|bounding box|objects?)s?"
#: What matches one of these, as a whole phrase, lower case and with single spaces, names no thing: instructions, questions about the
#: picture, templates that were not filled in, and words for "nothing was written here".
PLACEHOLDER_PATTERNS: tuple[re.Pattern[str], ...] = tuple(re.compile(p) for p in (
    r"(please|kindly)\b.*\b(observe|look at|describe|provide|give|generate|write|come up|locate|find|detect|answer|identify|caption)\b.*",
    r".*\bcome up with an? (caption|description|phrase|question|expression)\b.*",
    r".*\b(area|region|object|part) (that is )?(circled|outlined|highlighted|marked) in the (image|picture|photo)\b.*",
    rf"(describe|caption|annotate) (all |the |this |that |these |each )*{_PLACE}\b.*",
    rf"(what|which)( object| thing)? (is|are|do you see)( shown| visible| there)? (in|inside) (the|this) {_PLACE} ?\??",
    r"(locate|find|detect|ground|point to) (all |the |this |these )*(objects?|regions?|area|target|phrase|referring expression)[ .:!?]*",
    r"(provide|give|return|output|predict)\b.*\b(bounding box(es)?|coordinates|bbox|caption|description)\b.*",
    r"<[\w |./-]*>|\[[\w |./-]*\]|\{+[\w |./-]*\}+",
    r"(n/?a|nan|null|nil|undefined|unknown|todo|tbd|fixme|xxx+|placeholder|dummy|lorem ipsum.*|empty|no (caption|phrase|description))\.?",
    r"(object|region|phrase|caption|expression|sentence|referring expression|target|query|question|answer|text|label|class)[ _-]?\d*",
    r"[\W_]+",
))
_ANY_PATTERN = re.compile("|".join(f"(?:{pattern.pattern})" for pattern in PLACEHOLDER_PATTERNS))


@dataclass(frozen=True)
class PhraseStatistics:
    """How phrases repeat. Upper and lower case and spacing do not count.

    Args:
        count: phrases, blank ones included.
        unique_ratio: different phrases per phrase, in (0, 1]; 1 where there are none.
        top_phrase, top_count, top_share: the most frequent one (the first of several), how often and in which share; "", 0, 0 where
            there are none.
        placeholder_share: share of phrases that match ``PLACEHOLDER_PATTERNS`` or are blank.
        placeholders: the most frequent of these, at most ten, with their counts.
    """

    count: int
    unique_ratio: float
    top_phrase: str
    top_share: float
    placeholder_share: float
    placeholders: tuple[tuple[str, int], ...]
    top_count: int

    @property
    def problems(self) -> tuple[str, ...]:
        """What of it is above a limit, in words with figures; empty: nothing."""
        found = []
        if self.top_count >= ENOUGH_REPEATS and self.top_share > TOP_SHARE_LIMIT:
            found.append(f"{self.top_phrase!r} is {self.top_share:.1%} of {self.count} phrases (limit {TOP_SHARE_LIMIT:.0%})")
        if self.count >= ENOUGH_REPEATS and self.unique_ratio < UNIQUE_RATIO_LIMIT:
            found.append(f"{self.unique_ratio:.1%} of {self.count} phrases are different (at least {UNIQUE_RATIO_LIMIT:.0%})")
        if self.placeholder_share > PLACEHOLDER_LIMIT:
            example = self.placeholders[0][0]
            found.append(f"{self.placeholder_share:.1%} are placeholders like {example!r} (limit {PLACEHOLDER_LIMIT:.0%})")
        return tuple(found)


def normalise(phrase: str) -> str:
    """Lower case, single spaces, none at the ends: what decides whether two phrases are the same."""
    return " ".join(phrase.split()).casefold()


def is_placeholder(phrase: str) -> bool:
    """Whether a phrase is blank or matches one of ``PLACEHOLDER_PATTERNS`` as a whole."""
    text = normalise(phrase)
    return not text or _ANY_PATTERN.fullmatch(text) is not None


def phrase_statistics(phrases: Iterable[str]) -> PhraseStatistics:
    """Of all phrases of a split. 140,000 take about a tenth of a second."""
    counts = Counter(map(normalise, phrases))
    total = counts.total()
    if not total:
        return PhraseStatistics(0, 1.0, "", 0.0, 0.0, (), 0)
    top, often = counts.most_common(1)[0]
    odd = Counter({phrase: n for phrase, n in counts.items() if is_placeholder(phrase)})
    return PhraseStatistics(
        total, len(counts) / total, top, often / total, odd.total() / total, tuple(odd.most_common(_NAMED)), often
    )


def refuse_placeholders(
    phrases: Sequence[str], *, field: str, where: object, allowed: bool, better: Callable[[], Sequence[str]]
) -> PhraseStatistics:
    """The statistics of a column of phrases that a source is about to use.

    Args:
        field: how the column was chosen, for messages. allowed: ``data.source.allow_placeholder``.
        better: names of other columns that would do; called only for the message.
    Raises:
        DataError: the phrases say too little and that is not allowed.
    """
    found = phrase_statistics(phrases)
    if found.problems and not allowed:
        fields = better()
        advice = f"use {' or '.join(fields)}" if fields else "no other field would do"
        raise DataError(
            f"phrases must tell objects apart, and those of {field} do not: {'; '.join(found.problems)}. A model would learn to ignore the "
            f"phrase; {advice}, or data.source.allow_placeholder=true if they are meant",
            where=where, value=found.top_phrase,
        )
    return found
