"""The parser of the text formats: emitted tokens -> characters -> raw records -> records, with the tokens behind each of them."""

from __future__ import annotations

import math

import numpy as np
from transformers import PreTrainedTokenizerBase

from coordvlm.contracts import Decoded, Prediction, Record, SlotReadout
from coordvlm.coords.grid import Digits, Grid
from coordvlm.coords.vocab import CoordVocab
from coordvlm.sequence.none import as_grounding
from coordvlm.sequence.raw_record import RawRecord, style_of
from coordvlm.sequence.records import Box, box_px, check_readout, check_score, in_range, judge, number_slots, score_of, token_slots
from coordvlm.sequence.text_parse import read_records
from coordvlm.sequence.token_text import TokenBytes, TokenText, shown
from coordvlm.utils.errors import ConfigError


class TextParser:
    """Parser of ``json_coord``, ``json_digits``, ``qwen2_box`` and ``json_unit``; see ``read_records`` for what it forgives.

    A coordinate token has all read-outs of its step. A number in digits is what is written, by every read-out; its probability is the
    product over its tokens, and ``geom`` the mean over the four numbers.

    Args:
        coords: a ``Grid`` for coordinate tokens, ``Digits`` for digits.
        coord_token: pattern of the coordinate tokens with ``{k}``.
        score: ``geom_desc``, ``geom``, ``desc`` or ``one``. A record that needs no description and has none counts as sure of it.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, vocab: CoordVocab, coords: Grid | Digits, *, style: str, coord_token: str, score: str
    ) -> None:
        check_score(score)
        self.style = style_of(style)
        if (self.style.kind == "coord") != isinstance(coords, Grid):
            wanted = "coordinate tokens: coords must be k999 or k1000" if self.style.kind == "coord" else "digits: coords must be in digits"
            raise ConfigError(f"sequence={style} writes {wanted}, got {coords.name}")
        self.vocab, self.coords, self.coord_token, self.score = vocab, coords, coord_token, score
        self.token_bytes = TokenBytes(tokenizer)

    def parse(self, decoded: Decoded, *, size: tuple[int, int], readout: str, phrase: str | None = None) -> Prediction:
        """Records of one answer.

        Args:
            size: (width, height) of the source image, to which boxes are scaled. phrase: what was asked for; None in detection.
        """
        check_readout(readout)
        where = self.token_bytes.text(decoded.token_ids)
        needs_desc = self.style.needs_desc and phrase is None
        raw = read_records(where.text, style=self.style.name, coord_token=self.coord_token, needs_desc=needs_desc)
        records = tuple(self._record(decoded, where, r, size, readout, needs_desc=needs_desc) for r in raw.items)
        flags = set(raw.flags) - {"truncated"}
        if decoded.truncated:
            flags.add("truncated")
            if not records:
                flags.add("no_output")
        prediction = Prediction(
            sample_id=decoded.sample_id,
            size=size,
            records=records,
            raw_text=shown(where.text),
            token_ids=tuple(decoded.token_ids.tolist()),
            flags=frozenset(flags),
            timing={"seconds": decoded.seconds, "new_tokens": float(len(decoded.token_ids))},
        )
        return prediction if phrase is None else as_grounding(prediction)

    def _record(
        self, d: Decoded, where: TokenText, raw: RawRecord, size: tuple[int, int], readout: str, *, needs_desc: bool
    ) -> Record:
        status = raw.status
        box: Box | None = None
        slots: tuple[SlotReadout, ...] = ()
        first, last = where.tokens(raw.desc_span)
        empty = 0.0 if needs_desc else 1.0
        parts = {"desc": math.exp(float(d.logprob[first:last].mean())) if raw.desc and first < last else empty}
        spans = [where.tokens(s) for s in raw.value_spans]
        if len(spans) == 4 and not raw.is_point and raw.status not in ("bad_arity", "not_a_coordinate", "bad_json"):
            if self.style.kind == "coord":
                if all(b - a == 1 and d.bin[a] >= 0 for a, b in spans):
                    at = [a for a, _ in spans]
                    slots = token_slots(d, at, self._grid)
                    parts["geom"] = float(d.mass[at].mean())
                else:
                    status = "not_a_coordinate"  # spelt in letters
                inside = True
            else:
                slots = number_slots(raw.values, self.coords, d.model_size)
                parts["geom"] = float(np.mean([math.exp(float(d.logprob[a:b].sum())) for a, b in spans]))
                inside = in_range(raw.values, self.coords, d.model_size)
                status = status if inside or status == "missing_desc" else "out_of_range"
            if slots:
                box = box_px(slots, readout, size)
                status = judge(status, box, inside=inside)
        return Record(
            desc=raw.desc,
            box_xyxy_px=box,
            score=score_of(parts, self.score),
            status=status,
            score_parts=parts,
            slots=slots,
            token_span=where.tokens(raw.span),
        )

    @property
    def _grid(self) -> Grid:
        assert isinstance(self.coords, Grid)
        return self.coords
