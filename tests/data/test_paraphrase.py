from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coordvlm.contracts import Sample
from coordvlm.data.paraphrase import Paraphrases
from coordvlm.utils.errors import ConfigError, DataError

WORDS = {"man on left": ["guy at the left", "left person"], "red cup": ["cup that is red"]}


def write(folder: Path, content: object, name: str = "words.json") -> str:
    path = folder / name
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8")
    return str(path)


def lines(folder: Path, *rows: object) -> str:
    return write(folder, "\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows), "words.jsonl")


def sample(phrase: str | None) -> Sample:
    return Sample(0, Image.new("RGB", (1, 1)), 1, 1, (), phrase=phrase)


def never(_: Sample) -> Image.Image:
    raise AssertionError("no pixel is needed")


def test_both_layouts_say_the_same(tmp_path: Path) -> None:
    rows = [{"phrase": k, "paraphrases": v} for k, v in WORDS.items()]
    assert Paraphrases(file=write(tmp_path, WORDS), share=1.0).of == Paraphrases(file=lines(tmp_path, *rows, ""), share=1.0).of


def test_paraphrases_are_drawn_alike_and_as_often_as_asked(tmp_path: Path) -> None:
    paraphrases, rng = Paraphrases(file=write(tmp_path, WORDS), share=0.4), np.random.default_rng(0)
    drawn = Counter(paraphrases(sample("man on left "), rng, never).phrase for _ in range(3000))
    assert set(drawn) == {"man on left ", *WORDS["man on left"]}
    for text, expected in (("guy at the left", 600), ("left person", 600), ("man on left ", 1800)):
        assert abs(drawn[text] - expected) < 4 * np.sqrt(expected)
    changed = next(s for s in (paraphrases(sample("red cup"), rng, never) for _ in range(50)) if s.phrase != "red cup")
    assert changed.meta["paraphrase_of"] == "red cup"


def test_other_phrases_and_detection_are_left_alone(tmp_path: Path) -> None:
    paraphrases, rng = Paraphrases(file=write(tmp_path, WORDS), share=1.0), np.random.default_rng(0)
    for phrase in ("Red cup", None):
        plain = sample(phrase)
        assert paraphrases(plain, rng, never) is plain
    assert paraphrases.unknown(["red cup", "a dog"]) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, r"words\.json: .* at least one phrase"),
        ("{", r"words\.json: .* valid JSON"),
        ([], r"words\.json: .* JSON object: got 'list'"),
        ({"a": []}, r"words\.json, phrase 'a': .* at least one paraphrase: got \[\]"),
        ({"a": "b"}, r"phrase 'a': .* list of at least one paraphrase: got 'b'"),
        ({"a": ["b", " "]}, r"phrase 'a': .* not blank: got ' '"),
        ({"a": [3]}, r"phrase 'a': .* must be text .*: got 3"),
        ({" ": ["b"]}, r"not blank"),
        ('{"a": ["b"], "a": ["c"]}', r"a key must occur once: got 'a'"),
        ({"a": ["b"], "a ": ["c"]}, r"one list of paraphrases: got 'a'"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Paraphrases(file=write(tmp_path, content), share=0.5)


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    good = {"phrase": "a", "paraphrases": ["b"]}
    with pytest.raises(DataError, match=r"words\.jsonl, line 2: .* keys phrase and paraphrases: got \['paraphrase'\]"):
        Paraphrases(file=lines(tmp_path, good, {"paraphrase": "b"}), share=0.5)
    with pytest.raises(DataError, match=r"line 3: .* one list of paraphrases: got 'a'"):
        Paraphrases(file=lines(tmp_path, good, {"phrase": "c", "paraphrases": ["b"]}, good), share=0.5)
    with pytest.raises(DataError, match=r"missing\.json: .* readable"):
        Paraphrases(file=str(tmp_path / "missing.json"), share=0.5)
    with pytest.raises(ConfigError, match=r"paraphrase\.share .* got 2"):
        Paraphrases(file=write(tmp_path, WORDS), share=2)


def test_line_separators_inside_a_phrase_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "words.jsonl"
    path.write_text("\ufeff" + json.dumps({"phrase": "a\u2028b\x85c", "paraphrases": ["d"]}, ensure_ascii=False) + "\r\n", encoding="utf-8")
    assert Paraphrases(file=str(path), share=0.5).of == {"a\u2028b\x85c": ("d",)}
    (tmp_path / "words.json").write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(DataError, match=r"words\.json: paraphrases must be valid JSON"):
        Paraphrases(file=str(tmp_path / "words.json"), share=0.5)
