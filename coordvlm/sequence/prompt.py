"""Prompt ids: the chat template with the image expanded and the generation prompt added, tokenised once per prompt text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from coordvlm.utils.errors import ConfigError

#: Prompt texts whose ids are kept.
_CACHED = 4096
#: Shows where a text comes to stand in the chat: searching for the text itself would find the template's own tokens.
_STAND_IN = "\ue000\ue001\ue000"


class ChatPrompt:
    """Turns one user turn with one image into ids; what the turn says is the subclass's.

    What comes from the data is text and nothing else: where it spells a control, marker or coordinate token (``<|im_end|>``), its
    characters are kept and tokenised in parts, so that no such token arises.

    Args:
        tokenizer: with a chat template.
        image_id: id of the image placeholder.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, image_id: int) -> None:
        if not tokenizer.chat_template:
            raise ConfigError(
                "the tokenizer has no chat template; Qwen-VL folders carry one in chat_template.jinja or tokenizer_config.json"
            )
        self.tokenizer, self.image_id = tokenizer, image_id
        self._cache: dict[tuple[str, str, str], tuple[NDArray[np.int64], int]] = {}

    def _expanded(self, num_image_tokens: int, before: str, given: str, after: str) -> NDArray[np.int64]:
        """int64[p]; the image placeholder repeated ``num_image_tokens`` times.

        Args:
            before, given, after: the user's text: ours, what comes from the data, ours.
        """
        key = (before, given, after)
        if key not in self._cache:
            if len(self._cache) >= _CACHED:
                self._cache.clear()
            self._cache[key] = self._tokenise(before, given, after)
        ids, at = self._cache[key]
        return np.concatenate([ids[:at], np.full(num_image_tokens, self.image_id, dtype=np.int64), ids[at + 1 :]])

    def _rendered(self, text: str) -> str:
        """The chat as the template writes it, up to where the model begins."""
        raise NotImplementedError

    def _chat(self, *content: dict[str, str], add_generation_prompt: bool) -> str:
        """One user turn."""
        message = {"role": "user", "content": list(content)}
        return str(self.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=add_generation_prompt))

    @cached_property
    def _reserved(self) -> re.Pattern[str]:
        """Every token that is more than text; the longest first."""
        names = sorted(self.tokenizer.get_added_vocab(), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names)) or "(?!)")

    def _tokenise(self, before: str, given: str, after: str) -> tuple[NDArray[np.int64], int]:
        rendered = self._rendered(before + given + after)
        edges = [0, *self._edges(rendered, before, given, after), len(rendered)]
        ids = np.asarray(
            [i for a, b in pairwise(edges) for i in self.tokenizer.encode(rendered[a:b], add_special_tokens=False)], dtype=np.int64
        )
        at = np.flatnonzero(ids == self.image_id)
        if len(at) != 1:
            raise ConfigError(f"the chat template must put exactly one image token into the prompt, it put {len(at)}: {rendered[:200]!r}")
        return ids, int(at[0])

    def _edges(self, rendered: str, before: str, given: str, after: str) -> list[int]:
        """Where to cut ``rendered``: within the reserved tokens that ``given`` spells, and not within the template's own."""
        if not (cuts := self._cuts(given)):
            return []
        template = self._rendered(before + _STAND_IN + after)
        if _STAND_IN not in template or template.replace(_STAND_IN, given) != rendered:  # a template that strips is not guessed at
            raise ConfigError(f"the chat template changes the text {given!r}, which spells a control token: it cannot be kept as text")
        start = template.index(_STAND_IN)
        return [start + c for c in cuts]

    def _cuts(self, given: str) -> list[int]:
        """Positions in ``given``, one inside each reserved token it spells: parts between them spell none."""
        cuts, at = [], 0
        while match := self._reserved.search(given, at):
            cuts.append(at := match.start() + 1)
        return cuts


class PromptBuilder(ChatPrompt):
    """Builds prompt ids for one image and one text.

    Args:
        tokenizer, image_id: see ``ChatPrompt``.
        text: the prompt without a phrase (part of the contract).
        class_list_text: pattern with ``{names}``, appended when the sample carries a class list.
        ground_text: pattern with ``{phrase}``, asked instead of ``text`` when the sample carries a phrase; None refuses phrases.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, image_id: int, *, text: str, class_list_text: str, ground_text: str | None = None
    ) -> None:
        super().__init__(tokenizer, image_id)
        if "{names}" not in class_list_text:
            raise ConfigError(f"sequence.class_list_text must contain {{names}}, got {class_list_text!r}")
        if ground_text is not None and ground_text.count("{phrase}") != 1:
            raise ConfigError(f"the prompt of task=ground must contain {{phrase}} once, got {ground_text!r}")
        self.text, self.class_list_text, self.ground_text = text, class_list_text, ground_text

    def prompt_text(self, class_list: Sequence[str] | None = None, phrase: str | None = None) -> str:
        """The user's text, phrase and class list included."""
        return "".join(self._parts(class_list, phrase))

    def ids(self, num_image_tokens: int, class_list: Sequence[str] | None = None, phrase: str | None = None) -> NDArray[np.int64]:
        """int64[p]; the image placeholder repeated ``num_image_tokens`` times."""
        return self._expanded(num_image_tokens, *self._parts(class_list, phrase))

    def _rendered(self, text: str) -> str:
        return self._chat({"type": "image"}, {"type": "text", "text": text}, add_generation_prompt=True)

    def _parts(self, class_list: Sequence[str] | None, phrase: str | None) -> tuple[str, str, str]:
        """The user's text: ours, what comes from the data, ours."""
        if phrase is not None:
            if self.ground_text is None:
                raise ConfigError("the data has phrases, but this prompt has no place for one: task=ground asks for what a phrase names")
            before, after = self.ground_text.split("{phrase}")
            return before, phrase, after
        if not class_list:
            return self.text, "", ""
        before, after = self.class_list_text.split("{names}", 1)
        return self.text + before, ", ".join(class_list), after
