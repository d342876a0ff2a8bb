"""The question of counting as ids: category and number of marks in words, the image, then ``<x> <y> <done>``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from coordvlm.sequence.count_question import CountTexts
from coordvlm.sequence.prompt import ChatPrompt
from coordvlm.utils.errors import ConfigError


class CountPrompt(ChatPrompt):
    """Builds prompt ids of one step of a count.

    The three tokens end the user turn, and the ids end with them: attention is causal, so nothing behind ``<done>`` could change the
    states that are read there.

    Args:
        tokenizer, image_id: see ``ChatPrompt``. The category is text and nothing else.
        texts: the question by number of marks.
        ask_tokens: ``<x> <y> <done>``, each one token of the tokenizer. ask_ids: their ids.
        text_first: the words stand before the image, so that the image's tokens can already attend to the category; else behind it.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, image_id: int, *, texts: CountTexts, ask_tokens: Sequence[str], ask_ids: Sequence[int],
        text_first: bool,
    ) -> None:
        super().__init__(tokenizer, image_id)
        self.texts, self.text_first = texts, text_first
        self._ask, self._ask_ids = "".join(ask_tokens), np.asarray(ask_ids, dtype=np.int64)

    def prompt_text(self, category: str, k: int = 0) -> str:
        """The words of the question."""
        before, after = self.texts.parts(k)
        return before + category + after

    def ids(self, num_image_tokens: int, category: str, k: int) -> NDArray[np.int64]:
        """int64[p]; the last three are ``<x> <y> <done>``."""
        before, after = self.texts.parts(k)
        return self._expanded(num_image_tokens, before, category, after)

    def _rendered(self, text: str) -> str:
        words, image = {"type": "text", "text": text}, {"type": "image"}
        asked = {"type": "text", "text": self._ask}
        content = (words, image, asked) if self.text_first else (image, words, asked)
        chat = self._chat(*content, add_generation_prompt=False)
        end = chat.rfind(self._ask)
        if end < 0:
            raise ConfigError(f"the chat template must keep {self._ask} at the end of the user's turn, it wrote {chat[-200:]!r}")
        return chat[: end + len(self._ask)]

    def _tokenise(self, before: str, given: str, after: str) -> tuple[NDArray[np.int64], int]:
        ids, at = super()._tokenise(before, given, after)
        if not np.array_equal(ids[-3:], self._ask_ids) or int(np.isin(ids, self._ask_ids).sum()) != 3:
            asked = before + given + after
            raise ConfigError(f"the prompt of counting must end with {self._ask}, and have these tokens nowhere else: {asked!r}")
        return ids, at
