"""Emitted tokens -> records. A broken record never takes its neighbours with it; everything is counted by status."""

from __future__ import annotations

import math

import numpy as np
from transformers import PreTrainedTokenizerBase

from coordvlm.contracts import Decoded, Prediction, Record, SlotReadout
from coordvlm.coords.grid import Grid
from coordvlm.coords.vocab import CoordVocab
from coordvlm.sequence.none import as_grounding
from coordvlm.sequence.records import READOUTS, SCORES, box_px, check_readout, check_score, judge, score_of, token_slots

__all__ = ["READOUTS", "SCORES", "ObjectsParser"]


class ObjectsParser:
    """Parser of the ``objects`` format.

    A record starts at a start marker and ends at its end marker, the next start marker, end of turn or the last token. Statuses:
    ``ok``; ``repaired`` (complete but for a missing end marker); ``bad_arity`` (not exactly four coordinates);
    ``not_a_coordinate`` (text between or after the coordinates); ``missing_desc``; ``degenerate`` (no area by the chosen
    read-out). Tokens outside records set the flag ``stray_text``; an answer without end of turn ``truncated``; one without any
    record although it is not empty ``no_output``. The answer to a phrase needs no description, and may be ``none``.

    Args:
        score: ``geom_desc`` (mean probability near the four bins times the description's probability), ``geom``, ``desc`` or ``one``.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab: CoordVocab, grid: Grid, *, start: str, end: str, score: str) -> None:
        check_score(score)
        self.tokenizer, self.vocab, self.grid, self.score = tokenizer, vocab, grid, score
        self.start_id, self.close_id = vocab.marker_ids[start], vocab.marker_ids[end]
        self._text: dict[tuple[int, ...], str] = {}

    def parse(self, decoded: Decoded, *, size: tuple[int, int], readout: str, phrase: str | None = None) -> Prediction:
        """Records of one answer.

        Args:
            size: (width, height) of the source image, to which boxes are scaled. phrase: what was asked for; None in detection.
        """
        check_readout(readout)
        ids = decoded.token_ids
        records: list[Record] = []
        flags = {"truncated"} if decoded.truncated else set()
        t, n = 0, len(ids)
        while t < n:
            if ids[t] == self.start_id:
                stop, closed = t + 1, False
                while stop < n and ids[stop] not in (self.start_id, self.vocab.end_id):
                    stop += 1
                    if ids[stop - 1] == self.close_id:
                        closed = True
                        break
                records.append(self._record(decoded, t, stop, closed, size, readout, needs_desc=phrase is None))
                t = stop
            else:
                if ids[t] != self.vocab.end_id:
                    flags.add("stray_text")
                t += 1
        if not records and (decoded.truncated or "stray_text" in flags):
            flags.add("no_output")
        prediction = Prediction(
            sample_id=decoded.sample_id,
            size=size,
            records=tuple(records),
            raw_text=self._decode(tuple(ids.tolist())),
            token_ids=tuple(ids.tolist()),
            flags=frozenset(flags),
            timing={"seconds": decoded.seconds, "new_tokens": float(n)},
        )
        return prediction if phrase is None else as_grounding(prediction)

    def _decode(self, ids: tuple[int, ...]) -> str:
        if ids not in self._text:
            if len(self._text) > 4096:
                self._text.clear()
            self._text[ids] = str(self.tokenizer.decode(list(ids), skip_special_tokens=False))
        return self._text[ids]

    def _record(
        self, d: Decoded, start: int, stop: int, closed: bool, size: tuple[int, int], readout: str, *, needs_desc: bool
    ) -> Record:
        body = slice(start + 1, stop - 1 if closed else stop)
        is_coord = d.bin[body] >= 0
        at = np.flatnonzero(is_coord) + body.start
        first = int(at[0]) if len(at) else body.stop
        desc_ids = d.token_ids[body.start : first]
        desc = self._decode(tuple(desc_ids.tolist()))
        if len(at) != 4:
            status = "bad_arity"
        elif not is_coord[first - body.start :].all():
            status = "not_a_coordinate"
        elif needs_desc and not desc.strip():
            status = "missing_desc"
        else:
            status = "ok" if closed else "repaired"
        slots: tuple[SlotReadout, ...] = ()
        box: tuple[float, float, float, float] | None = None
        empty = 0.0 if needs_desc else 1.0
        parts: dict[str, float] = {"desc": math.exp(float(d.logprob[body.start : first].mean())) if len(desc_ids) else empty}
        if len(at) == 4:
            slots = token_slots(d, at, self.grid)
            box = box_px(slots, readout, size)
            status = judge(status, box, inside=True)
            parts["geom"] = float(d.mass[at].mean())
        return Record(
            desc=desc.strip(),
            box_xyxy_px=box,
            score=score_of(parts, self.score),
            status=status,
            score_parts=parts,
            slots=slots,
            token_span=(start, stop),
        )
