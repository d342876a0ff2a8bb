"""Coordinate and marker tokens in a tokenizer: adding them, and looking their ids up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from coordvlm.coords.vocab import CoordVocab
from coordvlm.utils.errors import ContractError

END_OF_TURN = "<|im_end|>"
IMAGE_PAD = "<|image_pad|>"


def add_coord_tokens(tokenizer: PreTrainedTokenizerBase, *, num_bins: int, coord_token: str, markers: Sequence[str]) -> None:
    """Add ``coord_token.format(k=0..K-1)`` and the markers as plain (not special) added tokens; those present stay.

    Not special, so that ``skip_special_tokens`` cannot swallow a coordinate; not normalised and not stripped, so that they
    survive a round trip unchanged.
    """
    texts = [coord_token.format(k=k) for k in range(num_bins)] + list(markers)
    known = tokenizer.get_added_vocab()
    fresh = [AddedToken(t, special=False, normalized=False, lstrip=False, rstrip=False, single_word=False) for t in texts if t not in known]
    tokenizer.add_tokens(fresh)


def coord_vocab(tokenizer: PreTrainedTokenizerBase, *, num_bins: int, coord_token: str, markers: Sequence[str]) -> CoordVocab:
    """Look every id up; fails unless each text is exactly one token with an id of its own."""

    def lookup(text: str) -> int:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) != 1:
            raise ContractError(f"{text!r} must be one token of the tokenizer, it is {len(ids)}: {ids[:8]}")
        return int(ids[0])

    coord_ids = np.asarray([lookup(coord_token.format(k=k)) for k in range(num_bins)], dtype=np.int64)
    if len(np.unique(coord_ids)) != num_bins:
        raise ContractError(f"the tokenizer gives {len(np.unique(coord_ids))} distinct ids to {num_bins} coordinate tokens")
    pad_id = tokenizer.pad_token_id
    return CoordVocab(
        coord_ids=coord_ids,
        marker_ids={m: lookup(m) for m in markers},
        end_id=lookup(END_OF_TURN),
        pad_id=lookup(END_OF_TURN) if pad_id is None else int(pad_id),
        image_id=lookup(IMAGE_PAD),
        num_ids=len(tokenizer) if (top := max(tokenizer.get_vocab().values())) < len(tokenizer) else top + 1,
    )
