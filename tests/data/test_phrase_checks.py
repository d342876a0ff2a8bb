from __future__ import annotations

import json

import pytest

from coordvlm.data.phrase_checks import PhraseStatistics, is_placeholder, phrase_statistics, refuse_placeholders
from coordvlm.utils.errors import DataError
from tests.data_root import peer_data

QUESTION = "Please carefully observe the area circled in the image and come up with a caption for the area."


def test_counts_of_a_small_list() -> None:
    found = phrase_statistics(["Left  dog", "left dog", "cat", "object", "", "?"])
    assert found == PhraseStatistics(
        count=6, unique_ratio=5 / 6, top_phrase="left dog", top_share=2 / 6, placeholder_share=0.5,
        placeholders=(("object", 1), ("", 1), ("?", 1)), top_count=2,
    )
    assert len(found.problems) == 1
    assert "50.0% are placeholders like 'object'" in found.problems[0]


def test_no_phrases_are_no_problem_here() -> None:
    assert phrase_statistics([]).problems == ()
    assert phrase_statistics([]).count == 0


@pytest.mark.parametrize("phrase", [
    QUESTION, "What is in the image?", "Describe the region.", "Locate the object.", "<phrase>", "{caption}", "[TEXT]", "N/A", "null",
    "object_3", "Phrase 12", "  ", "--", "Provide the bounding box coordinates of the region this sentence describes", "lorem ipsum dolor",
])
def test_forms_that_nobody_filled_in(phrase: str) -> None:
    assert is_placeholder(phrase)


@pytest.mark.parametrize("phrase", [
    "left", "8", "none", "person", "object on the left", "black box", "area with grass", "what the man holds", "(left) dog", "target sign",
    "woman pleased with her cake", "text on the cake", "class picture third from left", "describing woman", "label reading coke",
])
def test_phrases_that_name_something(phrase: str) -> None:
    assert not is_placeholder(phrase)


def test_published_phrases_pass() -> None:
    folder = peer_data() / "refcoco_sample"
    for name in ("with_images", "sample_1200"):
        phrases = [json.loads(line)["phrase"] for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        found = phrase_statistics(phrases)
        assert found.problems == ()
        assert found.placeholder_share == 0


def test_limits() -> None:
    names = [f"dog {i}" for i in range(95)]
    assert phrase_statistics(names + ["cat"] * 5).problems == ()
    assert "'cat' is 5.9% of 101 phrases" in phrase_statistics(names + ["cat"] * 6).problems[0]
    few = [f"dog {i % 15}" for i in range(100)]
    assert "15.0% of 100 phrases are different" in "".join(phrase_statistics(few).problems)


def test_a_refusal_names_field_share_and_a_better_field() -> None:
    message = r"f\.jsonl: .*field 'question' do not: 'please carefully.*100\.0% of 8 .*use data\.source\.text_field=a"
    better = ["data.source.text_field=a"]
    with pytest.raises(DataError, match=message):
        refuse_placeholders([QUESTION] * 8, field="field 'question'", where="f.jsonl", allowed=False, better=lambda: better)
    with pytest.raises(DataError, match="no other field would do"):
        refuse_placeholders([QUESTION] * 2, field="x", where="f.jsonl", allowed=False, better=list)
    assert refuse_placeholders([QUESTION] * 8, field="x", where="f", allowed=True, better=list).top_count == 8
