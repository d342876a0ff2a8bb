from __future__ import annotations

import numpy as np
import pytest
import torch

from coordvlm.contracts import Decoded
from coordvlm.sequence.grammar import ObjectsGrammar
from coordvlm.sequence.parse import ObjectsParser
from tests.tiny import MARKERS, tiny

# columns: 0-2 words, 3 blank, 4 end of turn, 5 image, 6 pad, 7.. ten bins, 17 start, 18 end
WORD, BLANK, EOT, IMAGE, PAD, COORD, START, CLOSE, NUM = 0, 3, 4, 5, 6, 7, 17, 18, 19
COORDS = set(range(COORD, COORD + 10))


def grammar() -> ObjectsGrammar:
    return ObjectsGrammar(
        num_columns=NUM,
        coord_columns=range(COORD, COORD + 10),
        start=START,
        end=CLOSE,
        end_of_turn=EOT,
        forbidden=[IMAGE, PAD],
        blank=[BLANK],
    )


def allowed_after(*columns: int) -> set[int]:
    g = grammar()
    state = g.start(1, "cpu")
    for c in columns:
        assert bool(g.allowed(state)[0, c]), f"column {c} is not allowed in this walk"
        state = g.advance(state, torch.tensor([c]))
    return set(torch.nonzero(g.allowed(state)[0]).flatten().tolist())


def bins(*k: int) -> list[int]:
    return [COORD + x for x in k]


def test_a_walk_through_one_record_and_out() -> None:
    text = {0, 1, 2, BLANK}
    assert allowed_after() == {START, EOT}
    assert allowed_after(START) == {0, 1, 2}
    assert allowed_after(START, WORD) == text | COORDS
    assert allowed_after(START, WORD, BLANK, WORD) == text | COORDS
    assert allowed_after(START, WORD, *bins(3)) == COORDS
    assert allowed_after(START, WORD, *bins(3, 4, 5, 6)) == {CLOSE}
    assert allowed_after(START, WORD, *bins(3, 4, 5, 6), CLOSE) == {START, EOT}
    assert allowed_after(EOT) == {EOT}
    assert allowed_after(EOT, EOT) == {EOT}


def test_corners_are_ordered_on_each_axis() -> None:
    assert allowed_after(START, WORD, *bins(3, 8)) == set(bins(*range(3, 10)))  # x2 >= x1, whatever y1
    assert allowed_after(START, WORD, *bins(3, 8, 5)) == set(bins(8, 9))  # y2 >= y1, whatever x2
    assert allowed_after(START, WORD, *bins(9, 9)) == set(bins(9))
    again = (START, WORD, *bins(9, 9, 9, 9), CLOSE, START, WORD)
    assert allowed_after(*again, *bins(2, 1)) == set(bins(*range(2, 10)))  # nothing is left of the record before


@pytest.mark.parametrize("walk", [(), (START,), (START, WORD), (START, WORD, COORD), (START, WORD, *[COORD] * 4), (EOT,)])
def test_forbidden_columns_may_come_nowhere(walk: tuple[int, ...]) -> None:
    assert not allowed_after(*walk) & {IMAGE, PAD}


def test_a_description_does_not_begin_blank() -> None:
    assert BLANK not in allowed_after(START)
    assert BLANK in allowed_after(START, WORD)


def test_rows_are_independent() -> None:
    g = grammar()
    state = g.start(3, "cpu")
    for columns in ([START, START, EOT], [0, 1, EOT], [COORD + 5, 2, EOT], [COORD + 1, COORD + 9, EOT]):
        state = g.advance(state, torch.tensor(columns))
    allowed = [set(torch.nonzero(row).flatten().tolist()) for row in g.allowed(state)]
    assert allowed == [set(bins(5, 6, 7, 8, 9)), COORDS, {EOT}]


def test_asking_does_not_change_the_tables() -> None:
    g = grammar()
    before = g.masks.clone()
    state = g.advance(g.advance(g.start(1, "cpu"), torch.tensor([START])), torch.tensor([WORD]))
    for c in bins(7, 7):
        state = g.advance(state, torch.tensor([c]))
    assert int(g.allowed(state).sum()) == 3
    assert torch.equal(g.masks, before)


def test_bins_that_are_scattered_are_refused() -> None:
    with pytest.raises(ValueError, match="contiguous and in bin order"):
        ObjectsGrammar(num_columns=NUM, coord_columns=[8, 7], start=START, end=CLOSE, end_of_turn=EOT, forbidden=[])


def test_random_walks_end_in_whole_records() -> None:
    """64 walks that choose uniformly among what is allowed: every record parses, none is worse than degenerate."""
    t = tiny()
    rows = t.backbone.rows

    def column(token_id: int) -> int:
        return int(rows.columns(torch.tensor(token_id)))

    added = set(t.tokenizer.get_added_vocab().values()) - set(t.vocab.new_ids.tolist())
    base = [i for i in range(len(t.tokenizer)) if i < rows.num_base]
    g = ObjectsGrammar(
        num_columns=t.backbone.num_columns,
        coord_columns=range(rows.num_base, rows.num_base + 1000),
        start=column(t.vocab.marker_ids[MARKERS[0]]),
        end=column(t.vocab.marker_ids[MARKERS[1]]),
        end_of_turn=column(t.vocab.end_id),
        forbidden=[*added, *rows.shadow.nonzero().flatten().tolist()],
        blank=[i for i in base if not t.tokenizer.decode([i]).strip()],
    )
    generator = torch.Generator().manual_seed(0)
    state = g.start(64, "cpu")
    steps = []
    for _ in range(120):
        steps.append(torch.multinomial(g.allowed(state).float(), 1, generator=generator).squeeze(1))
        state = g.advance(state, steps[-1])
    parser = ObjectsParser(t.tokenizer, t.vocab, t.grid, start=MARKERS[0], end=MARKERS[1], score="one")
    finished, statuses = 0, []
    for columns in torch.stack(steps, 1):
        ids = rows.token_ids(columns).numpy()
        ends = np.flatnonzero(ids == t.vocab.end_id)
        truncated = not len(ends)
        ids = ids if truncated else ids[: ends[0] + 1]
        zero = np.zeros(len(ids), np.float32)
        p = parser.parse(Decoded(0, ids, zero, t.vocab.bins(ids), zero, zero, zero, truncated, 0.0), size=(999, 999), readout="argmax")
        finished += not truncated
        statuses += [r.status for r in (p.records[:-1] if truncated else p.records)]
        assert "stray_text" not in p.flags
    assert set(statuses) <= {"ok", "degenerate"}
    assert finished > 32
    assert statuses.count("ok") > 32
