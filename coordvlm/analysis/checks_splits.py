"""Whether an image that is scored was also trained on: by file, by COCO's image number, by content, by looks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from coordvlm.analysis.checks import CheckSettings, Tally
from coordvlm.analysis.checks_view import SplitView
from coordvlm.analysis.image_facts import ImageFacts, near_pairs
from coordvlm.data.image_keys import coco_image_id
from coordvlm.reports.audit_data import Finding, Level


def check_splits(
    views: Sequence[SplitView], facts: Mapping[str, ImageFacts], groups: Sequence[Sequence[tuple[str, int]]], settings: CheckSettings
) -> list[Finding]:
    """All pairs of splits one of which is trained, and of those that one source scores. What is made up is apart by construction.

    Args:
        facts: by split. groups: (split, position) of files that hold the same bytes.
    """
    found: list[Finding] = []
    for a, b in combinations(sorted((v for v in views if not v.generated), key=lambda v: not v.trains), 2):
        if a.trains != b.trains or (a.member == b.member and not a.trains):
            found += _pair(a, b, facts, groups, settings)
    return found


def _pair(
    a: SplitView, b: SplitView, facts: Mapping[str, ImageFacts], groups: Sequence[Sequence[tuple[str, int]]], settings: CheckSettings
) -> list[Finding]:
    pair = f"{a.name}/{b.name}"
    leak = Level.FAIL if a.trains else Level.WARN
    said = "" if a.trains else "; both are scored, so results on them are not independent"
    content = _by_content(a.name, b.name, groups)
    path = _common(a, b, _path)
    number = _common(a, b, _number)
    known = set(content) | set(path) | set(number)
    names = {i: j for i, j in _common(a, b, _base_name).items() if i not in known}
    unread = {i: j for i, j in names.items() if facts[a.name].num_bytes[i] < 0 or facts[b.name].num_bytes[j] < 0}
    looks = near_pairs(facts[b.name], facts[a.name], bits=settings.near_bits, grey=settings.near_grey)
    near = {i: j for i, j in looks if i not in known}

    tally = Tally(topic="splits", split=pair, settings=settings, of=len(b.image_ids), place=b.image_place)

    def finding(check: str, hits: Mapping[int, int], rule: str, level: Level, tally: Tally = tally) -> Finding:
        return tally(check, sorted(hits), rule, level, value=lambda i: f"as {a.image_place(hits[i])}")

    rule, looked_at = "an image must not be in two splits: ", [len(facts[v.name].decoded) for v in (a, b)]
    out = [
        finding("same_file", path, f"{rule}the same file{said}", leak),
        finding("same_coco_image", number, f"{rule}COCO's number in the file name{said}", leak),
        finding("same_content", content, f"{rule}the same bytes{said}", leak),
        finding("looks_alike", near, f"of {looked_at[0]:,} and {looked_at[1]:,} images looked at: nearly the same picture, scaled, "
                "saved again, or a moment later", Level.WARN, replace(tally, of=looked_at[1])),
    ]
    if unread:
        out.append(finding("same_name", unread, f"{rule}the same name, and no file to tell them apart{said}", leak))
    elif names:
        out.append(finding("same_name", names, "the same file name in other folders; the contents differ", Level.NOTE))
    return out


def _by_content(a: str, b: str, groups: Sequence[Sequence[tuple[str, int]]]) -> dict[int, int]:
    """Position in b -> a position in a with the same bytes."""
    found: dict[int, int] = {}
    for group in groups:
        first = next((i for name, i in group if name == a), None)
        if first is not None:
            found |= {i: first for name, i in group if name == b}
    return found


def _common(a: SplitView, b: SplitView, key: Callable[[SplitView, int], object]) -> dict[int, int]:
    """Position in b -> the first position in a with the same key; None is no key."""
    keys = {k: i for i in reversed(range(len(a.files))) if (k := key(a, i)) is not None}
    return {j: keys[k] for j in range(len(b.files)) if (k := key(b, j)) is not None and k in keys}


def _path(view: SplitView, index: int) -> object:
    file = view.files[index]
    return None if file is None else str(file)


def _number(view: SplitView, index: int) -> object:
    name = view.image_name(index)
    return None if name is None else coco_image_id(name)


def _base_name(view: SplitView, index: int) -> object:
    file = view.files[index]
    return None if file is None else file.name.casefold()


