"""Command-line overrides: free text that Hydra's grammar must not touch, and the nearest names to a misspelt one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

#: Keys whose value is text or a path: commas, quotes, ``=``, brackets and numbers in it mean nothing.
FREE_TEXT = ("phrase", "phrases", "run", "resume", "init", "base", "images", "out", "notes", "data.root", "model.path")
#: Of these, the ones in which ``null`` is a word like any other.
NEVER_NULL = frozenset({"phrase", "notes"})

_OVERRIDE = re.compile(r"(?P<prefix>\+{0,2})(?P<key>[^=\s]+)=(?P<value>.*)", re.DOTALL)
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)


def quote_free_text(args: Sequence[str], keys: Iterable[str] = FREE_TEXT) -> list[str]:
    """Quote the values of free-text keys so that they arrive character by character, under ``--multirun`` too.

    A value that is already one quoted string is left to Hydra; ``null`` stays null where a key may be unset.

    >>> quote_free_text(["phrase=a, b", "seed=1,2", "run=null"])
    ["phrase='a, b'", 'seed=1,2', 'run=null']
    """
    names = frozenset(keys)
    return [_quote(arg, names) for arg in args]


def _quote(arg: str, names: frozenset[str]) -> str:
    from hydra.core.override_parser.types import Quote, QuotedString

    match = _OVERRIDE.fullmatch(arg)
    if match is None or match["key"] not in names:
        return arg
    key, value = match["key"], match["value"]
    if _QUOTED.fullmatch(value) or (value == "null" and key not in NEVER_NULL):
        return arg
    # Hydra unquotes first, OmegaConf then looks for "${": both layers are escaped, in the opposite order.
    return f"{match['prefix']}{key}={QuotedString(escape_interpolation(value), Quote.single).with_quotes()}"


def escape_interpolation(text: str) -> str:
    """The string that OmegaConf reads as ``text``, even where ``${`` is in it."""
    return re.sub(r"(\\*)\$\{", lambda m: 2 * m[1] + r"\${", text)


def resolved(tree: Any) -> Any:
    """A resolved configuration as plain containers that OmegaConf can load again: text with ``${`` in it stays text."""
    if isinstance(tree, Mapping):
        return {key: resolved(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [resolved(value) for value in tree]
    return escape_interpolation(tree) if isinstance(tree, str) else tree


def flatten_keys(tree: object, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a nested mapping, parents included."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            name = f"{prefix}.{key}" if prefix else str(key)
            yield name
            yield from flatten_keys(value, name)


def nearest(name: str, candidates: Iterable[str], n: int = 3, cutoff: float = 0.6) -> list[str]:
    """The names a user may have meant, best first: similar as a whole, or similar in the last part (``lr`` finds ``optim.lr``)."""
    wanted, wanted_last = name.lower(), name.lower().rsplit(".", 1)[-1]
    scored = []
    for candidate in dict.fromkeys(candidates):
        low = candidate.lower()
        last = low.rsplit(".", 1)[-1]
        score = max(_ratio(wanted, low), 0.95 * _ratio(wanted_last, last))
        if len(wanted_last) >= 3 and last.startswith(wanted_last):
            score = max(score, 0.75)
        same_parent = low.rsplit(".", 1)[:-1] == wanted.rsplit(".", 1)[:-1]
        if score >= (cutoff if same_parent else cutoff + 0.1):
            scored.append((-(score + 0.1 * same_parent), candidate))
    scored.sort()
    return [candidate for score, candidate in scored[:n] if score <= scored[0][0] + 0.25]


def _ratio(a: str, b: str) -> float:
    matcher = difflib.SequenceMatcher(None, a, b, autojunk=False)
    return matcher.ratio() if matcher.real_quick_ratio() > 0.5 else 0.0


def hint(names: Sequence[str]) -> str:
    """``; nearest: a, b`` or nothing."""
    return f"; nearest: {', '.join(names)}" if names else ""
