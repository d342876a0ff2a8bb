"""Prompt ids: the chat template with the image expanded and the generation prompt added, tokenised once per prompt text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from coordvlm.utils.errors import ConfigError


class PromptBuilder:
    """Builds prompt ids for one image and one text.

    Args:
        tokenizer: with a chat template.
        image_id: id of the image placeholder.
        text: the prompt (part of the contract).
        class_list_text: pattern with ``{names}``, appended when the sample carries a class list.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, image_id: int, *, text: str, class_list_text: str) -> None:
        if not tokenizer.chat_template:
            raise ConfigError(
                "the tokenizer has no chat template; Qwen-VL folders carry one in chat_template.jinja or tokenizer_config.json"
            )
        if "{names}" not in class_list_text:
            raise ConfigError(f"sequence.class_list_text must contain {{names}}, got {class_list_text!r}")
        self.tokenizer, self.image_id, self.text, self.class_list_text = tokenizer, image_id, text, class_list_text
        self._cache: dict[str, tuple[NDArray[np.int64], int]] = {}

    def prompt_text(self, class_list: Sequence[str] | None = None) -> str:
        """The user's text, class list included."""
        return self.text if not class_list else self.text + self.class_list_text.format(names=", ".join(class_list))

    def ids(self, num_image_tokens: int, class_list: Sequence[str] | None = None) -> NDArray[np.int64]:
        """int64[p]; the image placeholder repeated ``num_image_tokens`` times."""
        text = self.prompt_text(class_list)
        if text not in self._cache:
            if len(self._cache) > 4096:
                self._cache.clear()
            self._cache[text] = self._tokenise(text)
        ids, at = self._cache[text]
        return np.concatenate([ids[:at], np.full(num_image_tokens, self.image_id, dtype=np.int64), ids[at + 1 :]])

    def _tokenise(self, text: str) -> tuple[NDArray[np.int64], int]:
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
        rendered = self.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        ids = np.asarray(self.tokenizer.encode(rendered, add_special_tokens=False), dtype=np.int64)
        at = np.flatnonzero(ids == self.image_id)
        if len(at) != 1:
            raise ConfigError(f"the chat template must put exactly one image token into the prompt, it put {len(at)}: {rendered[:200]!r}")
        return ids, int(at[0])
