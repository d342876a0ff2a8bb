"""Coordinate and marker tokens in a tokenizer: adding them, and looking their ids up."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from coordvlm.coords.vocab import CoordVocab
from coordvlm.utils.errors import ConfigError, ContractError

END_OF_TURN = "<|im_end|>"
IMAGE_PAD = "<|image_pad|>"


def add_coord_tokens(tokenizer: PreTrainedTokenizerBase, *, num_bins: int, coord_token: str, markers: Sequence[str]) -> frozenset[str]:
    """Add ``coord_token.format(k=0..K-1)`` and the markers as plain (not special) added tokens; those present stay.

    Not special, so that ``skip_special_tokens`` cannot swallow a coordinate; not normalised and not stripped, so that they
    survive a round trip unchanged.

    Returns:
        Those that the tokenizer had before: a base model's own markers, or all of an exported model.
    """
    texts = [coord_token.format(k=k) for k in range(num_bins)] + list(markers)
    known = tokenizer.get_vocab()
    fresh = [AddedToken(t, special=False, normalized=False, lstrip=False, rstrip=False, single_word=False) for t in texts if t not in known]
    tokenizer.add_tokens(fresh)
    return frozenset(texts) & set(known)


def coord_vocab(
    tokenizer: PreTrainedTokenizerBase,
    *,
    num_bins: int,
    coord_token: str,
    markers: Sequence[str],
    existing: Collection[str] = (),
    init: str = "",
    num_rows: int = 0,
    image_token: str | None = IMAGE_PAD,
) -> CoordVocab:
    """Look every id up; fails unless each text is exactly one token with an id of its own.

    Args:
        existing: what ``add_coord_tokens`` returned. A marker among them that has a row in the base table keeps that row.
        init: ``model.rows.init``. Coordinate tokens that exist already are only taken over when it is ``existing``: their rows mean
            something, and nothing says that it is this grid.
        num_rows: rows of the base table.
        image_token: what stands for an image in the ids; None: padding does (where images are known by their positions alone).
    """

    def lookup(text: str) -> int:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) != 1:
            raise ContractError(f"{text!r} must be one token of the tokenizer, it is {len(ids)}: {ids[:8]}")
        return int(ids[0])

    texts = [coord_token.format(k=k) for k in range(num_bins)]
    old = [t for t in texts if t in existing]
    if old and init != "existing":
        raise ConfigError(
            f"the tokenizer already has {len(old)} of the {num_bins} coordinate tokens ({old[0]} is id {lookup(old[0])}): start from their "
            "rows with model.rows.init=existing (an exported model), or name others with sequence.coord_token"
        )
    if init == "existing" and len(old) < num_bins:
        raise ConfigError(f"model.rows.init=existing, but the tokenizer has {len(old)} of the {num_bins} coordinate tokens {coord_token!r}")
    coord_ids = np.asarray([lookup(t) for t in texts], dtype=np.int64)
    if len(np.unique(coord_ids)) != num_bins:
        raise ContractError(f"the tokenizer gives {len(np.unique(coord_ids))} distinct ids to {num_bins} coordinate tokens")
    if init == "existing" and num_bins and coord_ids.max() >= num_rows:
        raise ConfigError(f"model.rows.init=existing, but the table has {num_rows} rows and a coordinate token is id {coord_ids.max()}")
    pad_id = tokenizer.pad_token_id
    padding = lookup(END_OF_TURN) if pad_id is None else int(pad_id)
    marker_ids = {m: lookup(m) for m in markers}
    return CoordVocab(
        coord_ids=coord_ids,
        marker_ids=marker_ids,
        end_id=lookup(END_OF_TURN),
        pad_id=padding,
        image_id=padding if image_token is None else lookup(image_token),
        num_ids=len(tokenizer) if (top := max(tokenizer.get_vocab().values())) < len(tokenizer) else top + 1,
        new_markers=tuple(m for m in markers if init == "existing" or m not in existing or marker_ids[m] >= num_rows),
    )
