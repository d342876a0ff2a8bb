from __future__ import annotations

from coordvlm.data.seeding import keyed_generator


def test_a_stream_is_fixed_for_ever():
    assert keyed_generator(0, "order", 1).integers(0, 1000, 4).tolist() == [254, 30, 263, 716]


def test_different_keys_have_different_streams():
    keys = [(0, "a", 1), (0, "a", 2), (1, "a", 1), (0, "a", "1"), (0, "a1"), (11, "a"), (1, 1, "a"), (0,)]
    assert len({keyed_generator(*key).bytes(16) for key in keys}) == len(keys)
    assert keyed_generator(0, "a", 1).bytes(16) == keyed_generator(0, "a", 1).bytes(16)
