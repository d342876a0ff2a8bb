from __future__ import annotations

import itertools
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordvlm.models.tiny import tiny_tokenizer
from coordvlm.models.tokens import add_coord_tokens
from coordvlm.sequence.token_text import TokenBytes, TokenText, byte_alphabet, shown
from coordvlm.utils.errors import ConfigError
from tests.sequence.texts import COORD_TOKEN

TOKENIZER = tiny_tokenizer(600)
add_coord_tokens(TOKENIZER, num_bins=1000, coord_token=COORD_TOKEN, markers=("<é marker>",))
BYTES = TokenBytes(TOKENIZER)


def read(ids: list[int]) -> TokenText:
    return BYTES.text(np.asarray(ids, dtype=np.int64))


def encode(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False))


def test_the_alphabet_is_that_of_the_library() -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    table = byte_alphabet()
    assert sorted(table) == sorted(ByteLevel.alphabet())
    assert sorted(table.values()) == list(range(256))
    assert (table["Ġ"], table["Ċ"]) == (ord(" "), ord("\n"))


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20))
def test_text_comes_back_and_tokens_share_its_characters(text: str) -> None:
    ids = encode(text)
    where = read(ids)
    assert where.text == text
    assert where.char_bytes[-1] == where.token_bytes[-1] == len(text.encode())
    for start, end in itertools.combinations(range(len(text) + 1), 2):
        first, last = where.tokens((start, end))
        low, high = len(text[:start].encode()), len(text[:end].encode())
        want = [t for t in range(len(ids)) if where.token_bytes[t] < high and where.token_bytes[t + 1] > low]
        assert list(range(first, last)) == want


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, len(TOKENIZER) - 1) | st.integers(0, 300), max_size=20))
def test_any_ids_read_as_the_tokenizer_decodes_them(ids: list[int]) -> None:
    where = read(ids)
    marker = TOKENIZER.convert_tokens_to_ids("<é marker>")
    if marker not in ids:  # the library writes the bytes that its letters stand for, which is no text
        assert shown(where.text) == TOKENIZER.decode(ids, skip_special_tokens=False)
    shown(where.text).encode()
    assert len(where.char_bytes) == len(where.text) + 1
    assert where.char_bytes[-1] == where.token_bytes[-1]


def test_a_token_may_be_a_part_of_a_character() -> None:
    ids = encode("犬dog")
    where = read(ids)
    assert len(encode("犬")) == 3
    assert where.tokens((0, 1)) == (0, 3)
    cut = read(ids[1:])  # its first byte is missing
    assert shown(cut.text) == "\ufffd\ufffddog"
    first, last = cut.tokens((2, 5))
    assert TOKENIZER.decode(ids[1:][first:last]) == "dog"


def test_added_tokens_are_whole() -> None:
    where = read(encode("a<|coord_12|><é marker><|im_end|>"))
    assert where.text == "a<|coord_12|><é marker><|im_end|>"
    at = where.text.index("<|coord_12|>")
    assert where.tokens((at, at + 12)) == (1, 2)


def test_ids_without_a_token_have_no_text() -> None:
    rng = Random(0)
    ids = encode("dog")
    for odd in (len(TOKENIZER), len(TOKENIZER) + 5000, -1):
        ids.insert(rng.randrange(len(ids)), odd)
    where = read(ids)
    assert where.text == "dog"
    first, last = where.tokens((0, 3))
    assert {ids[t] for t in range(first, last)} >= set(encode("dog"))
    assert where.tokens((1, 1)) == (0, 0)


def test_another_kind_of_tokenizer_is_refused() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"dog": 0, "[UNK]": 1}, unk_token="[UNK]")))
    with pytest.raises(ConfigError, match="byte-level BPE"):
        TokenBytes(words)
