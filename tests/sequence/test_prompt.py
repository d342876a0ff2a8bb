from __future__ import annotations

import copy

import numpy as np
import pytest

from coordvlm.sequence.prompt import PromptBuilder
from coordvlm.utils.errors import ConfigError
from tests.tiny import Tiny, tiny

T = tiny()
CLASSES = " Classes: {names}."


def builder(t: Tiny = T, **changes: object) -> PromptBuilder:
    return PromptBuilder(t.tokenizer, t.vocab.image_id, **{"text": "Where is it?", "class_list_text": CLASSES, **changes})


def with_template(template: str | None) -> Tiny:
    tokenizer = copy.deepcopy(T.tokenizer)
    tokenizer.chat_template = template
    return Tiny(tokenizer, T.vocab, T.backbone, T.encoder, T.grid)


@pytest.mark.parametrize("num", [1, 6, 24])
def test_ids_are_the_tokenised_chat_with_the_placeholder_repeated(num: int) -> None:
    chat = "<|im_start|>user\n<|vision_start|>" + "<|image_pad|>" * num + "<|vision_end|>Where is it?<|im_end|>\n<|im_start|>assistant\n"
    want = T.tokenizer(chat, add_special_tokens=False)["input_ids"]
    got = builder().ids(num)
    assert got.dtype == np.int64
    assert got.tolist() == want


def test_the_class_list_follows_the_question_absent_classes_included() -> None:
    names = ("dog", "red circle", "naïve {brace}")
    assert builder().prompt_text(names) == "Where is it? Classes: dog, red circle, naïve {brace}."
    text = T.tokenizer.decode(builder().ids(2, names))
    assert "Where is it? Classes: dog, red circle, naïve {brace}.<|im_end|>" in text
    assert builder().prompt_text(()) == builder().prompt_text(None) == "Where is it?"


def test_a_prompt_seen_before_is_not_changed_by_who_used_it() -> None:
    b = builder()
    first = b.ids(3)
    first[:] = -1
    assert (b.ids(3) >= 0).all()
    assert (b.ids(5) == T.vocab.image_id).sum() == 5


@pytest.mark.parametrize(("template", "number"), [("{{ 'no picture' }}", 0), ("{{ '<|image_pad|><|image_pad|>' }}", 2)])
def test_a_template_without_exactly_one_image_is_refused(template: str, number: int) -> None:
    with pytest.raises(ConfigError, match=f"exactly one image token into the prompt, it put {number}"):
        builder(with_template(template)).ids(4)


def test_a_tokenizer_without_chat_template_is_refused() -> None:
    with pytest.raises(ConfigError, match="no chat template"):
        builder(with_template(None))


def test_a_class_list_pattern_without_names_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"class_list_text must contain \{names\}"):
        builder(class_list_text=" Classes.")


def asking(t: Tiny = T) -> PromptBuilder:
    return builder(t, ground_text="Locate: {phrase}. Answer {now}.")


def test_a_phrase_is_asked_for_in_its_place_braces_and_all() -> None:
    assert asking().prompt_text(None, "the {red} cat") == "Locate: the {red} cat. Answer {now}."
    assert asking().prompt_text(("dog",), "a cat") == "Locate: a cat. Answer {now}."
    assert asking().prompt_text() == "Where is it?"
    want = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Locate: a cat. Answer {now}.<|im_end|>\n<|im_start|>assistant\n"
    assert asking().ids(1, phrase="a cat").tolist() == T.tokenizer(want, add_special_tokens=False)["input_ids"]


SPELT = [
    "<|im_end|>", "a <|image_pad|> b", "<|coord_12|><|coord_13|>", "<obj_start>cat<obj_end>", "<<|im_end|>|im_end|>",
    "<|im_<|im_end|>end|>", "<|im_start|>", "<|image_pad|>", "<|vision_start|><|image_pad|>",
]


@pytest.mark.parametrize("phrase", SPELT)
def test_a_token_typed_into_a_phrase_stays_text(phrase: str) -> None:
    plain, typed = asking().ids(4, phrase="cat"), asking().ids(4, phrase=phrase)
    added = np.asarray(list(T.tokenizer.get_added_vocab().values()))
    assert np.isin(typed, added).sum() == np.isin(plain, added).sum(), "no token more than the template's own"
    assert f"Locate: {phrase}. Answer" in T.tokenizer.decode(typed, skip_special_tokens=False)
    assert np.flatnonzero(typed == T.vocab.image_id).tolist() == np.flatnonzero(plain == T.vocab.image_id).tolist(), "the image's place"


def test_a_phrase_that_is_the_whole_prompt_cannot_pass_for_the_template() -> None:
    b = builder(ground_text="{phrase}")
    text = T.tokenizer.decode(b.ids(1, phrase="<|im_start|>"), skip_special_tokens=False)
    plain, typed = b.ids(1, phrase="cat"), b.ids(1, phrase="<|im_start|>")
    start = T.tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert np.flatnonzero(typed == start)[0] == np.flatnonzero(plain == start)[0] == 0
    assert (typed == start).sum() == (plain == start).sum()
    assert "<|vision_end|><|im_start|><|im_end|>" in text


def test_a_token_typed_into_a_class_name_stays_text() -> None:
    added = np.asarray(list(T.tokenizer.get_added_vocab().values()))
    typed = builder().ids(4, ("cat", "<|coord_1|>"))
    assert np.isin(typed, added).sum() == np.isin(builder().ids(4, ("cat",)), added).sum()
    assert "Classes: cat, <|coord_1|>." in T.tokenizer.decode(typed, skip_special_tokens=False)


def test_a_phrase_needs_a_prompt_with_a_place_for_it() -> None:
    with pytest.raises(ConfigError, match="task=ground"):
        builder().ids(3, phrase="a cat")
    for text in ("Locate it.", "{phrase} {phrase}"):
        with pytest.raises(ConfigError, match=r"must contain \{phrase\} once"):
            builder(ground_text=text)
