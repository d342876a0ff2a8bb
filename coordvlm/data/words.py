"""What the words of a phrase say about place and colour: which phrases survive a mirrored or a cropped image, and how sides are swapped.

Word lists cannot understand a phrase. Where they cannot tell, the image is left as it is, and the phrase is counted. The lists are English.
"""

from __future__ import annotations

import re
from functools import lru_cache

_WORD_START, _WORD_END = r"(?<![^\W_])", r"(?![^\W_])"


def _any(words: str) -> str:
    return "(?:" + "|".join(re.escape(w).replace(r"\ ", r"\s+") for w in sorted(words.split(","), key=len, reverse=True)) + ")"


def _whole(pattern: str) -> re.Pattern[str]:
    return re.compile(f"{_WORD_START}(?:{pattern}){_WORD_END}", re.IGNORECASE)


#: A side, also as part of a compound: leftmost, lefthand, left-hand, right-handed, topleft. Group 1 is the side.
_SIDE = _whole(
    "(?:top|bottom|upper|lower|far|back|front|mid|middle|center|centre)?(left|right)(?:most|hand|handed|side|ward|wards|ish|est)?"
)
#: Words that hold "left" or "right" and name no side.
_NO_SIDE = _whole(
    "(?:[a-z]*bright[a-z]*|a?fright[a-z]*|alright|upright[a-z]*|outright|downright|forthright|birthright|copyright[a-z]*|"
    "[a-z]*wright|rights?ful[a-z]*|righteous[a-z]*|rights|cleft|leftovers?)"
)
_HOLDS_SIDE = re.compile(r"[^\W_]*(?:left|right)[^\W_]*", re.IGNORECASE)

#: "left" and "right" that are a side whatever follows: "man on right behind the bar", "top left in front".
_CLEAR = _whole(
    r"(?:on|to|from|at|in|towards?)\s+(?:(?:the|his|her|its|their|your|my|our|far|very|extreme)\s+)*(?:left|right)(?!\s+angles?)|"
    r"(?:far|top|bottom|upper|lower|front|middle|center|centre|mid|second|third)[\s-]+(?:left|right)"
)
#: Uses of "left" and "right" that (may) mean something else than a side. "left of" and "right of" are sides, except in "what is left of".
_UNCLEAR = _whole(
    r"right[\s-]+" + _any(
        "behind,next,there,here,in,on,at,by,near,under,underneath,below,beneath,above,over,beside,besides,before,after,between,against,"
        "around,across,along,inside,outside,through,into,onto,to,where,when,now,away,back,up,angle,angles,way,of way,of-way,side up,as,off"
    )
    + r"|(?:all|that'?s)\s+right|(?:just|is|are|was|were|sitting|standing)\s+right(?!\s+(?:of|side|hand|most)|[\s.]*$|-)"
    + r"|left[\s-]+" + _any("over,overs,behind,alone,out,open,on,in,at,to,by,for,unattended,empty,uneaten")
    + r"|" + _any("has,have,had,having,is,are,was,were,be,been,being,just,got,what's,whats") + r"\s+left(?!\s+(?:of|side|hand|most)|-)"
    + r"|what(?:\s+is|\s+was|'?s)\s+left"
)
#: Short or misspelt sides, clock faces and compass points: a mirror changes them, and they are not swapped.
_OTHER_SIDES = _whole(
    r"lft|lef|rgt|rght|righ|rigth|rite|rt|l|r|lefty|leftie|righty|clockwise|(?:counter|anti)-?clockwise|o'?\s?clock|"
    r"(?:north|south)?-?(?:east|west)(?:ern|most)?|port|starboard|portside|\d{1,2}:\d{2}"
)
#: A mirror turns writing round, so a phrase that quotes some no longer fits.
_WRITING = re.compile(
    _WORD_START
    + r"(?:says?|saying|reads|written|writing|words?|letters?|lettering|numbers?|numbered|numerals?|text|logos?|initials|digits?)"
    + _WORD_END + r"|#\s*\d|[\"“”]",
    re.IGNORECASE,
)
#: Places in the frame, and places relative to other things: a crop makes the first wrong and may cut the others' landmark away.
POSITION = _whole(
    "left|right|leftmost|rightmost|topmost|bottommost|lefthand|righthand|top|bottom|upper|lower|uppermost|lowermost|"
    "middle|mid|center|centre|central|corner|edge|side|half|background|foreground|back|front|far|farthest|furthest|"
    "first|second|third|fourth|fifth|sixth|last|[0-9]+(?:st|nd|rd|th)|end|row|column|north|south|east|west|lft|rt|"
    "(?:top|bottom|upper|lower|far|back|front|mid|middle|center|centre)-?(?:left|right)"
)
RELATION = _whole(
    "behind|beside|besides|next|near|nearer|nearest|close|closer|closest|by|under|underneath|below|beneath|above|over|between|among|"
    "across|opposite|against|facing|towards?|away|around|along|inside|outside|left\\s+of|right\\s+of|front\\s+of|touching|overlapping"
)
COLOUR = _whole(
    "red|green|blue|yellow|orange|purple|violet|pink|brown|black|white|gr[ae]y|beige|tan|maroon|teal|turquoise|cyan|magenta|gold|golden|"
    "silver|cream|navy|blond|blonde|brunette|redhead|reddish|bluish|greenish|yellowish|brownish|gr[ae]yish|whitish|colou?r(?:ed|ful)?|"
    "dark|light|bright"
)
#: Sizes, patterns, materials and shapes. With ``COLOUR`` they make up the attributes of a phrase.
QUALITY = _whole(
    "small|smaller|smallest|little|tiny|large|larger|largest|big|bigger|biggest|huge|giant|tall|taller|tallest|short|shorter|shortest|"
    "long|longer|longest|wide|narrow|thin|fat|thick|old|older|young|younger|new|"
    "striped|stripes|stripey|plaid|checkered|spotted|dotted|polka|floral|plain|"
    "wooden|metal|metallic|plastic|glass|leather|stone|brick|round|square|rectangular|triangular|circular|oval|curved|straight|"
    "open|closed|empty|full|bald|bearded|dirty|clean|broken"
)

#: Why a phrase and its image are not mirrored.
MIRROR_FAULTS = ("ambiguous_side", "unknown_side", "writing")


@lru_cache(maxsize=65536)
def mirror_fault(phrase: str) -> str | None:
    """Why a phrase cannot be kept true of the mirrored image, or None if ``mirrored`` can.

    ``ambiguous_side``: left or right may not be a side (right behind, left over, has left, all right).
    ``unknown_side``: a side that is not swapped (lft, lefty, 3 o'clock, west).
    ``writing``: the phrase quotes writing, which a mirror turns round.
    """
    if _WRITING.search(phrase):
        return "writing"
    if _UNCLEAR.search(_CLEAR.sub("there", phrase)):
        return "ambiguous_side"
    held = (m.group() for m in _HOLDS_SIDE.finditer(phrase))
    if _OTHER_SIDES.search(phrase) or any(not _SIDE.fullmatch(w) and not _NO_SIDE.fullmatch(w) for w in held):
        return "unknown_side"
    return None


def mirrored(phrase: str) -> str:
    """The phrase with left and right exchanged, in any compound of ``leftmost`` kind; capitals stay where they were.

    Raises:
        ValueError: ``mirror_fault`` says that it cannot be.
    """
    if fault := mirror_fault(phrase):
        raise ValueError(f"{phrase!r} cannot be mirrored: {fault}")
    return _SIDE.sub(_exchange, phrase)


def _exchange(match: re.Match[str]) -> str:
    whole, side = match.group(), match.group(1)
    other = "right" if side.lower() == "left" else "left"
    if side.isupper():
        other = other.upper()
    elif side[0].isupper():
        other = other.capitalize()
    at = match.start(1) - match.start()
    return whole[:at] + other + whole[at + len(side) :]


def names_side(text: str) -> bool:
    """Whether a text says left or right of something, in any spelling known here."""
    return bool(_SIDE.search(text) or _OTHER_SIDES.search(text))


@lru_cache(maxsize=65536)
def names_place(phrase: str) -> bool:
    """Whether a phrase says where its thing is, in the frame or relative to another thing."""
    return bool(POSITION.search(phrase) or RELATION.search(phrase))


@lru_cache(maxsize=65536)
def names_colour(text: str) -> bool:
    return bool(COLOUR.search(text))


def count_words(phrase: str) -> int:
    return len(phrase.split())


def count_attributes(phrase: str) -> int:
    """Words of colour, size, pattern, material and shape."""
    return len(COLOUR.findall(phrase)) + len(QUALITY.findall(phrase))


def count_relations(phrase: str) -> int:
    """Words of place; those that are both (``left of``) count as often as there are words."""
    spans = {m.span() for pattern in (POSITION, RELATION) for m in pattern.finditer(phrase)}
    words = [m.span() for m in re.finditer(r"\S+", phrase)]
    return sum(any(a < end and start < b for a, b in spans) for start, end in words)
