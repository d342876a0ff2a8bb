"""A model made to say what a test wants, through the real decoder and parser."""

from __future__ import annotations

import pytest
import torch

from coordvlm.models.backbone import Backbone


def speak(patch: pytest.MonkeyPatch, *said: int | str) -> None:
    """Every answer is ``said``, token by token: a coordinate's bin, a marker, ``end`` (of turn) or ``word`` (some text)."""
    logits, calls = Backbone.logits, []

    def scripted(self: Backbone, hidden: torch.Tensor) -> torch.Tensor:
        token = said[len(calls) % len(said)]
        calls.append(token)
        v = self.vocab
        ids = {"end": v.end_id, "word": 300, **v.marker_ids}
        wanted = int(v.coord_ids[token]) if isinstance(token, int) else ids[token]
        z = logits(self, hidden)
        z[:, int(self.rows.columns(torch.tensor(wanted)))] += 1000
        return z

    patch.setattr(Backbone, "logits", scripted)


#: A box in bins of k999, and what it is in an image of 60 x 120 px.
BINS = (100, 200, 800, 900)
BOX_60_120 = (100 / 999 * 60, 200 / 999 * 120, 800 / 999 * 60, 900 / 999 * 120)
PHRASE_ANSWER = ("<obj_start>", *BINS, "<obj_end>", "end")
OBJECT_ANSWER = ("<obj_start>", "word", *BINS, "<obj_end>", "end")
