"""Answer tokens -> text, with the exact tokens behind every stretch of characters.

In a byte-level BPE a token may end in the middle of a character, so positions are counted in bytes. Encoding the text again would
give other tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from coordvlm.utils.errors import ConfigError


def byte_alphabet() -> dict[str, int]:
    """Character -> byte of GPT-2's byte-level BPE: printable Latin-1 stands for itself, the other bytes for U+0100 and up."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    other = [b for b in range(256) if b not in set(plain)]
    return {**{chr(b): b for b in plain}, **{chr(256 + i): b for i, b in enumerate(other)}}


@dataclass(frozen=True)
class TokenText:
    """The text of n tokens.

    Args:
        text: a byte that is no part of UTF-8 is one lone surrogate (``surrogateescape``), so every character has a known length.
        token_bytes: int64[n + 1], where each token starts, in bytes, and where the last one ends.
        char_bytes: int64[len(text) + 1], the same for characters.
    """

    text: str
    token_bytes: NDArray[np.int64]
    char_bytes: NDArray[np.int64]

    def tokens(self, span: tuple[int, int]) -> tuple[int, int]:
        """[first, last) tokens that share a byte with the characters [start, end); empty for an empty span."""
        first_byte, last_byte = self.char_bytes[span[0]], self.char_bytes[span[1]]
        if first_byte == last_byte:
            return 0, 0
        first = int(np.searchsorted(self.token_bytes[1:], first_byte, side="right"))
        last = int(np.searchsorted(self.token_bytes[:-1], last_byte, side="left"))
        return first, last


class TokenBytes:
    """Bytes of token ids. Refuses a tokenizer that is not byte-level."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self._alphabet = tokenizer, byte_alphabet()
        missing = self._alphabet.keys() - tokenizer.get_vocab().keys()
        if missing:
            raise ConfigError(
                f"text formats need a byte-level BPE tokenizer (Qwen's is one); {len(missing)} of its 256 byte tokens are missing, "
                f"for example {sorted(missing)[:3]}"
            )
        self._added = {i: text.encode() for text, i in tokenizer.get_added_vocab().items()}
        self._cache: dict[int, bytes] = {}

    def __call__(self, token_id: int) -> bytes:
        """Empty for an id that no token has (a row of the padded table)."""
        if token_id not in self._cache:
            self._cache[token_id] = self._added[token_id] if token_id in self._added else self._of_bpe(token_id)
        return self._cache[token_id]

    def _of_bpe(self, token_id: int) -> bytes:
        token = self.tokenizer.convert_ids_to_tokens(token_id) if 0 <= token_id < len(self.tokenizer) else None
        if not isinstance(token, str):
            return b""
        return bytes(self._alphabet[c] for c in token) if all(c in self._alphabet for c in token) else token.encode()

    def text(self, token_ids: NDArray[np.int64]) -> TokenText:
        """int64[n] -> the text and where each token and character starts."""
        pieces = [self(t) for t in token_ids.tolist()]
        text = b"".join(pieces).decode("utf-8", "surrogateescape")
        token_bytes = np.cumsum([0, *map(len, pieces)], dtype=np.int64)
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        width = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
        width[(points >= 0xDC80) & (points <= 0xDCFF)] = 1
        return TokenText(text, token_bytes, np.concatenate(([0], np.cumsum(width))))


def shown(text: str) -> str:
    """Text with every byte that is no part of UTF-8 as U+FFFD, the way a tokenizer decodes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
