from __future__ import annotations

import numpy as np
import pytest
from tokenizers import AddedToken

from coordvlm.coords.vocab import CoordVocab
from coordvlm.models.tiny import tiny_tokenizer
from coordvlm.models.tokens import add_coord_tokens, coord_vocab
from coordvlm.utils.errors import ConfigError, ContractError
from tests.tiny import COORD_TOKEN, MARKERS

SETTINGS = {"num_bins": 1000, "coord_token": COORD_TOKEN, "markers": MARKERS}


def added(**changes: object) -> tuple[object, CoordVocab]:
    tokenizer = tiny_tokenizer(600)
    add_coord_tokens(tokenizer, **{**SETTINGS, **changes})
    return tokenizer, coord_vocab(tokenizer, **{**SETTINGS, **changes})


def test_every_bin_and_marker_has_an_id_of_its_own() -> None:
    tokenizer, v = added()
    assert len(np.unique(v.new_ids)) == len(v.new_ids) == 1002
    assert tokenizer.convert_ids_to_tokens(v.coord_ids[[0, 7, 999]].tolist()) == ["<|coord_0|>", "<|coord_7|>", "<|coord_999|>"]
    assert list(v.marker_ids) == list(MARKERS)
    assert v.num_ids == len(tokenizer) == int(v.new_ids.max()) + 1
    assert tokenizer.convert_ids_to_tokens([v.end_id, v.image_id, v.pad_id]) == ["<|im_end|>", "<|image_pad|>", "<|endoftext|>"]


def test_bins_and_ids_are_inverse_and_others_have_none() -> None:
    _, v = added()
    assert v.bins(v.coord_ids).tolist() == list(range(1000))
    assert v.bins(np.array([v.end_id, *v.marker_ids.values(), -1, 10**6])).tolist() == [-1] * 5


def test_adding_twice_adds_nothing() -> None:
    tokenizer, v = added()
    before = len(tokenizer)
    add_coord_tokens(tokenizer, **SETTINGS)
    assert len(tokenizer) == before
    assert np.array_equal(coord_vocab(tokenizer, **SETTINGS).new_ids, v.new_ids)


def test_a_marker_that_the_model_already_has_keeps_its_id() -> None:
    own = ("<|object_ref_start|>", "<|box_end|>")
    fresh = tiny_tokenizer(600)
    tokenizer, v = added(markers=own)
    assert [v.marker_ids[m] for m in own] == fresh.convert_tokens_to_ids(list(own))
    assert len(tokenizer) == len(fresh) + 1000


def test_coordinates_and_new_markers_are_no_special_tokens() -> None:
    tokenizer, _ = added()
    text = "<obj_start>dog<|coord_1|><|coord_999|><obj_end>"
    ids = tokenizer.encode(text + "<|im_end|>", add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_they_are_found_inside_words_and_take_no_spaces_with_them() -> None:
    tokenizer, v = added()
    ids = tokenizer.encode("a <|coord_5|> b<|coord_6|>c", add_special_tokens=False)
    assert v.bins(np.asarray(ids))[v.bins(np.asarray(ids)) >= 0].tolist() == [5, 6]
    assert tokenizer.decode(ids) == "a <|coord_5|> b<|coord_6|>c"


def test_a_tokenizer_that_splits_a_coordinate_is_refused() -> None:
    with pytest.raises(ContractError, match=r"'<\|coord_0\|>' must be one token of the tokenizer, it is \d+"):
        coord_vocab(tiny_tokenizer(600), **SETTINGS)


def test_a_token_text_without_its_number_is_refused() -> None:
    tokenizer = tiny_tokenizer(600)
    tokenizer.add_tokens([AddedToken("<|coord|>", special=False)])
    with pytest.raises(ContractError, match="1 distinct ids to 1000 coordinate tokens"):
        coord_vocab(tokenizer, num_bins=1000, coord_token="<|coord|>", markers=MARKERS)


def test_a_marker_that_is_a_coordinate_is_refused() -> None:
    with pytest.raises(ContractError, match="coordinate and marker tokens must have distinct ids"):
        added(markers=("<obj_start>", "<|coord_3|>"))


def vocab_of(tokenizer: object, **changes: object) -> CoordVocab:
    settings = {**SETTINGS, **changes}
    lookup = {k: settings.pop(k) for k in ("init", "num_rows") if k in settings}
    return coord_vocab(tokenizer, **settings, existing=add_coord_tokens(tokenizer, **settings), **lookup)


def test_a_base_models_own_marker_keeps_its_row_and_a_new_one_gets_one() -> None:
    v = vocab_of(tiny_tokenizer(600), markers=("<|box_start|>", "<obj_end>"), num_rows=700)
    assert v.new_markers == ("<obj_end>",)
    assert v.new_ids.tolist() == [*v.coord_ids.tolist(), v.marker_ids["<obj_end>"]]


def test_a_marker_beyond_the_table_needs_a_row_although_the_tokenizer_knows_it() -> None:
    tokenizer = tiny_tokenizer(600)
    rows = len(tokenizer)
    tokenizer.add_tokens(["<obj_start>"])
    assert vocab_of(tokenizer, num_rows=rows).new_markers == MARKERS
    assert vocab_of(tokenizer_with("<obj_start>"), num_rows=rows + 1).new_markers == ("<obj_end>",)


def tokenizer_with(*tokens: str) -> object:
    tokenizer = tiny_tokenizer(600)
    tokenizer.add_tokens(list(tokens))
    return tokenizer


def test_coordinate_tokens_that_exist_are_not_taken_over_silently() -> None:
    some = tokenizer_with("<|coord_5|>", "<|coord_6|>")
    with pytest.raises(ConfigError, match=r"already has 2 of the 1000 coordinate tokens \(<\|coord_5\|> is id \d+\).*init=existing"):
        vocab_of(some, init="fourier", num_rows=2000)


def test_an_exported_model_is_trained_on_from_its_rows() -> None:
    exported = tokenizer_with(*(COORD_TOKEN.format(k=k) for k in range(1000)), *MARKERS)
    v = vocab_of(exported, init="existing", num_rows=2000)
    assert v.new_markers == MARKERS
    with pytest.raises(ConfigError, match="the table has 700 rows and a coordinate token is id"):
        vocab_of(exported, init="existing", num_rows=700)
    with pytest.raises(ConfigError, match="the tokenizer has 1 of the 1000"):
        vocab_of(tokenizer_with("<|coord_5|>"), init="existing", num_rows=2000)


def test_digits_need_no_token() -> None:
    fresh = tiny_tokenizer(600)
    before = len(fresh)
    v = vocab_of(fresh, num_bins=0, coord_token=None, markers=("<|box_start|>",), num_rows=700)
    assert len(fresh) == before
    assert (v.num_bins, len(v.new_ids)) == (0, 0)
    assert v.bins(np.arange(before)).max() == -1
