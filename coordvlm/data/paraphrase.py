"""Other words for a phrase, from a file, chosen at random while training."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from coordvlm.contracts import Sample
from coordvlm.data.transforms import Open, in_range
from coordvlm.utils.errors import DataError


class Paraphrases:
    """A sample's phrase replaced by one of its paraphrases. Whoever writes the file vouches that they name the same thing.

    Args:
        file: ``.json``, one object ``{"man on left": ["guy at the left", ...], ...}``; or ``.jsonl``, one
            ``{"phrase": "man on left", "paraphrases": ["guy at the left", ...]}`` per line. Keys are matched exactly, without outer blanks.
        share: probability that a phrase with paraphrases is replaced; each is as likely.
    Raises:
        DataError: unreadable, no phrase at all, a phrase twice, an empty list, or a paraphrase that is blank or no text.
    """

    def __init__(self, *, file: str, share: float) -> None:
        in_range("paraphrase.share", share)
        self.file, self.share = Path(file), share
        self.of: dict[str, tuple[str, ...]] = {}
        for where, phrase, others in _entries(self.file):
            if phrase in self.of:
                raise DataError("a phrase must have one list of paraphrases", where=where, value=phrase)
            self.of[phrase] = others
        if not self.of:
            raise DataError("a paraphrase file must have at least one phrase", where=self.file)

    def unknown(self, phrases: Iterable[str]) -> int:
        """How many phrases of the file are none of ``phrases``, so that their paraphrases are never used."""
        return len(self.of.keys() - {p.strip() for p in phrases})

    def __call__(self, sample: Sample, rng: np.random.Generator, opened: Open) -> Sample:
        others = self.of.get(sample.phrase.strip(), ()) if sample.phrase is not None else ()
        if not others or rng.random() >= self.share:
            return sample
        return replace(sample, phrase=others[int(rng.integers(len(others)))], meta={**sample.meta, "paraphrase_of": sample.phrase})


def _entries(path: Path) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(where, phrase, paraphrases) in file order."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("the paraphrase file must be readable as UTF-8", where=path, value=str(error)) from error
    if path.suffix != ".jsonl":
        for phrase, others in _parsed(text, str(path)).items():
            where = f"{path}, phrase {phrase!r}"
            yield where, _text(phrase, where), _texts(others, where)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            row = _parsed(line, where)
            if set(row) != {"phrase", "paraphrases"}:
                raise DataError("a line must have exactly the keys phrase and paraphrases", where=where, value=sorted(row))
            yield where, _text(row["phrase"], where), _texts(row["paraphrases"], where)


def _parsed(text: str, where: str) -> Mapping[str, object]:
    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        row = dict(pairs)
        if len(row) < len(pairs):
            keys = [key for key, _ in pairs]
            raise DataError("a key must occur once", where=where, value=next(k for k in keys if keys.count(k) > 1))
        return row

    try:
        row = json.loads(text, object_pairs_hook=once)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError("paraphrases must be valid JSON", where=where, value=str(error)) from error
    if not isinstance(row, dict):
        raise DataError("paraphrases must be a JSON object", where=where, value=type(row).__name__)
    return row


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError("a phrase must be text that is not blank", where=where, value=value)
    return value.strip()


def _texts(values: object, where: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not values:
        raise DataError("a phrase must have a list of at least one paraphrase", where=where, value=values)
    return tuple(_text(v, where) for v in values)
