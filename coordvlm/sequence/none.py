"""The answer that a phrase names nothing in the image."""

from __future__ import annotations

import re
from dataclasses import replace

from coordvlm.contracts import TARGET, Prediction
from coordvlm.sequence.lenient_json import END_TOKENS

#: What is taught. It is written the same in every format.
NONE = "none"
#: Other ways in which models say it, lower case, without punctuation and fences.
_SPELLINGS = {
    NONE, "null", "nothing", "no", "not found", "not present", "not visible", "no object", "no objects", "no match", "no target",
    "there is none", "there are none",
}
_NOISE = re.compile(rf"```\w*|{'|'.join(map(re.escape, END_TOKENS))}|[\s\[\]{{}}().,:;!\"'`]+")
_KEYS = {"objects", "bbox_2d"}
_EMPTY = re.compile(r"\[\s*\]|\{\s*\}")


def says_none(text: str) -> bool:
    """Whether a whole answer says that there is nothing: ``none`` and its like, or an empty list; an empty answer says nothing at all."""
    words = _NOISE.sub(" ", text).strip().lower()
    return words in _SPELLINGS or (words in {"", *_KEYS} and _EMPTY.search(text) is not None)


def as_grounding(prediction: Prediction) -> Prediction:
    """The answer to a phrase: its things are called ``TARGET`` whatever it calls them, and ``says_none`` is told from text that strays."""
    records = tuple(replace(r, desc=TARGET) for r in prediction.records)
    if not records and says_none(prediction.raw_text):
        return replace(prediction, flags=(prediction.flags - {"no_output", "stray_text"}) | {"says_none"})
    return replace(prediction, records=records)
