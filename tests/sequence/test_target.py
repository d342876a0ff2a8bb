from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coordvlm.contracts import COORD, END, MARKER, TEXT, Object, Sample
from coordvlm.coords.grid import Grid
from coordvlm.sequence.order import order_objects
from coordvlm.sequence.target import ObjectsTarget, index_target
from coordvlm.utils.errors import ConfigError, DataError
from tests.tiny import COORD_TOKEN, MARKERS, random_sample, tiny

T = tiny()
Box = tuple[float, float, float, float]


def target(**changes: object) -> ObjectsTarget:
    settings = {"order": "scan", "max_objects": 30, "on_too_many": "drop", "start": MARKERS[0], "end": MARKERS[1], "seed": 0, **changes}
    grid = settings.pop("grid", T.grid)
    return ObjectsTarget(T.tokenizer, T.vocab, grid, **settings)


def sample(boxes: Sequence[Box], descs: Sequence[str] | None = None, *, size: tuple[int, int] = (100, 50), id: int = 7) -> Sample:
    objects = [
        Object(desc=d, box_xyxy_px=b, annotation_id=10 + i)
        for i, (b, d) in enumerate(zip(boxes, descs or ["dog"] * len(boxes), strict=True))
    ]
    return Sample(id=id, image=Path("unused"), width=size[0], height=size[1], objects=tuple(objects))


def test_two_objects_by_hand() -> None:
    s = sample([(50, 25, 100, 50), (0, 5, 10, 20)], ["red circle", "dog"])
    a = target().build(s, epoch=0)
    # 999 * (0, .1, .1, .4) = 0, 99.9, 99.9, 399.6; 999 * (.5, .5, 1, 1) = 499.5 -> 500 (half up), 999
    text = (
        "<obj_start>dog<|coord_0|><|coord_100|><|coord_100|><|coord_400|><obj_end>"
        "<obj_start>red circle<|coord_500|><|coord_500|><|coord_999|><|coord_999|><obj_end><|im_end|>"
    )
    assert target().text(a) == text
    assert a.ids.tolist() == T.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert a.slot_bin.tolist() == [0, 100, 100, 400, 500, 500, 999, 999]
    np.testing.assert_allclose(a.slot_value, [0, 0.1, 0.1, 0.4, 0.5, 0.5, 1, 1], atol=1e-7)
    assert a.slot_axis.tolist() == [0, 1, 2, 3] * 2
    assert a.slot_object.tolist() == [0] * 4 + [1] * 4
    assert a.box_prev.tolist() == [-1, -1]
    assert [o.annotation_id for o in a.objects] == [11, 10]
    dog, circle = (len(T.tokenizer.encode(x)) for x in ("dog", "red circle"))
    one = [MARKER, *[TEXT] * dog, *[COORD] * 4, MARKER]
    assert a.kind.tolist() == [*one, MARKER, *[TEXT] * circle, *[COORD] * 4, MARKER, END]


@pytest.mark.parametrize(
    "desc", ["naïve 猫 🐈", "Platelets", "a, b: [c] {d}", " leading", "trailing ", "tab\tnewline\n", "12 34", "\u3000x"]
)
def test_the_whole_text_tokenises_to_the_joined_ids(desc: str) -> None:
    """Nothing merges across the borders of description, coordinates and markers, and decoding loses nothing."""
    a = target().build(sample([(1, 2, 30, 40), (5, 6, 70, 48)], [desc, "dog"]), epoch=0)
    text = target().text(a)
    assert T.tokenizer(text, add_special_tokens=False)["input_ids"] == a.ids.tolist()
    assert f"<obj_start>{desc}<|coord_" in text


def test_every_marker_and_coordinate_survives_the_round_trip() -> None:
    text = "".join(COORD_TOKEN.format(k=k) for k in range(1000)) + "".join(MARKERS)
    ids = T.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == T.vocab.new_ids.tolist()
    assert T.tokenizer.decode(ids, skip_special_tokens=False) == text


def test_scan_reads_rows_and_breaks_ties_by_x1_x2_y2_then_index() -> None:
    boxes = [(5, 9, 9, 12), (3, 2, 9, 6), (3, 2, 8, 9), (3, 2, 8, 7), (3, 2, 8, 7), (0, 2.001, 1, 3), (90, 1, 99, 2)]
    ordered = order_objects(list(sample(boxes).objects), "scan", (0, 0, 1))
    assert [o.annotation_id - 10 for o in ordered] == [6, 3, 4, 2, 1, 5, 0]


def test_scan_orders_unquantised_values() -> None:
    """Two boxes in the same bin of y1, the lower one further left."""
    a = target().build(sample([(10, 10.001, 20, 20), (50, 10.0, 60, 20)]), epoch=0)
    assert a.slot_bin[1] == a.slot_bin[5]
    assert [o.annotation_id for o in a.objects] == [11, 10]


def test_size_puts_the_largest_first_and_keeps_file_order_at_ties() -> None:
    boxes = [(0, 0, 2, 2), (0, 0, 9, 9), (0, 0, 4, 1), (0, 0, 3, 3)]
    assert [o.annotation_id - 10 for o in order_objects(list(sample(boxes).objects), "size", (0, 0, 1))] == [1, 3, 0, 2]


def test_random_order_is_a_function_of_seed_epoch_and_id() -> None:
    objects = list(sample([(i, i, i + 5, i + 5) for i in range(12)]).objects)

    def order(seed: int, epoch: int, sample_id: object) -> tuple[int | None, ...]:
        return tuple(o.annotation_id for o in order_objects(objects, "random", (seed, epoch, sample_id)))

    assert order(0, 0, 7) == order(0, 0, 7)
    keys = [(0, 0, 7), (1, 0, 7), (0, 1, 7), (0, 0, 8), (0, 0, "7")]
    assert len({order(*k) for k in keys}) == len(keys)
    assert all(set(order(*k)) == set(range(10, 22)) for k in keys)
    built = [target(order="random").build(random_sample(3, 8, (64, 64)), epoch=e).slot_bin.tolist() for e in (0, 0, 1)]
    assert built[0] == built[1] != built[2]


def test_objects_beyond_the_limit_are_left_out_and_counted() -> None:
    s = sample([(i, 30 - i, i + 5, 40) for i in range(5)])
    a = target(max_objects=3, on_too_many="truncate").build(s, epoch=0)
    assert [o.annotation_id for o in a.objects] == [14, 13, 12]  # the first in the order of the answer
    assert a.num_dropped == 2
    assert a.ids[-1] == T.vocab.end_id
    assert len(a.slot_bin) == 12
    assert target(max_objects=5).build(s, epoch=0).num_dropped == 0


def test_an_image_with_too_many_objects_is_kept_only_by_truncate() -> None:
    s = sample([(i, i, i + 5, i + 5) for i in range(5)])
    assert not target(max_objects=4, on_too_many="drop").keeps(s)
    assert target(max_objects=5, on_too_many="drop").keeps(s)
    assert target(max_objects=4, on_too_many="truncate").keeps(s)


@pytest.mark.parametrize("desc", ["", "  \n"])
def test_an_empty_description_is_refused_by_annotation(desc: str) -> None:
    with pytest.raises(DataError, match="image 7, annotation 11: a description must not be empty"):
        target().build(sample([(1, 1, 5, 5), (2, 2, 6, 6)], ["dog", desc]), epoch=0)


@pytest.mark.parametrize("token", [*MARKERS, "<|coord_0|>", "<|coord_999|>", "<|im_end|>", "<|image_pad|>", "<|endoftext|>", "<|box_end|>"])
def test_a_description_that_says_a_control_token_is_refused_by_annotation(token: str) -> None:
    with pytest.raises(DataError, match="image 7, annotation 10: a description must not contain") as caught:
        target().build(sample([(1, 1, 5, 5)], [f"a dog {token}"]), epoch=0)
    assert token in str(caught.value)


def test_a_box_inside_one_bin_is_widened_and_its_value_is_not() -> None:
    a = target().build(sample([(50, 20, 50.02, 30), (99.99, 40, 100, 50)]), epoch=0)
    assert a.slot_bin[[0, 2]].tolist() == [500, 501]
    assert a.slot_bin[[4, 6]].tolist() == [998, 999]
    np.testing.assert_allclose(a.slot_value[[0, 2, 4, 6]], [0.5, 0.5002, 0.9999, 1.0], atol=1e-6)


def test_the_grid_decides_the_bins() -> None:
    a = target(grid=Grid("k1000", 1000, 1000)).build(sample([(50, 5, 100, 50)]), epoch=0)
    assert a.slot_bin.tolist() == [500, 100, 999, 999]


def test_box_prev_is_the_object_just_before_with_the_same_words() -> None:
    s = sample([(1, y, 9, y + 3) for y in (1, 2, 3, 4, 5)], ["dog", "dog", "cat", "dog", "dog"])
    assert target().build(s, epoch=0).box_prev.tolist() == [-1, 0, -1, -1, 3]


def test_an_image_without_objects_is_answered_with_the_end_of_turn() -> None:
    a = target().build(sample([]), epoch=0)
    assert a.ids.tolist() == [T.vocab.end_id]
    assert a.kind.tolist() == [END]
    assert a.slot_bin.shape == a.box_prev.shape == (0,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"order": "scam"}, "sequence.order must be one of scan, random, size, got 'scam'"),
     ({"on_too_many": "keep"}, "sequence.on_too_many must be one of"),
     ({"max_objects": 0}, "sequence.max_objects must be at least 1, got 0")],
)  # fmt: skip
def test_wrong_settings_are_refused_by_name(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        target(**changes)


# ------------------------------------------------------------------------------------------------------------- index_target
def test_the_index_of_full_sequences_agrees_with_the_collator() -> None:
    batch = T.batch(seed=2, counts=(3, 0, 7), sides=((48, 32), (32, 32), (32, 64)))
    width = batch.input_ids.shape[1]
    rows, bins, axes, boxes = [], [], [], []
    for b, ids in enumerate(batch.input_ids.numpy()):
        found = index_target(ids, T.vocab, start=MARKERS[0], end=MARKERS[1])
        rows += (found["slot_pos"] - 1 + b * width).tolist()
        bins += found["slot_bin"].tolist()
        axes += found["slot_axis"].tolist()
        boxes += [b] * len(found["object_span"])
        assert found["slot_object"].tolist() == np.repeat(np.arange(len(found["object_span"])), 4).tolist()
    assert rows == batch.slot_row.tolist()
    assert bins == batch.slot_bin.tolist()
    assert axes == batch.slot_axis.tolist()
    assert boxes == batch.box_sample.tolist()


def test_the_index_of_an_answer_alone_gives_spans_and_descriptions() -> None:
    image = Image.new("RGB", (32, 32))
    s = Sample(1, image, 32, 32, (Object("red circle", (1, 2, 9, 9)), Object("dog", (3, 4, 9, 9))))
    a = target().build(s, epoch=0)
    found = index_target(a.ids, T.vocab, start=MARKERS[0], end=MARKERS[1])
    assert found["slot_pos"].tolist() == np.flatnonzero(a.kind == COORD).tolist()
    said = [T.tokenizer.decode(a.ids[low:high]) for low, high in found["desc_span"]]
    assert said == ["red circle", "dog"]
    (low0, high0), (low1, high1) = found["object_span"].tolist()
    assert (low0, high0, high1) == (0, low1, len(a.ids) - 1)
    assert a.ids[[low0, low1]].tolist() == [T.vocab.marker_ids[MARKERS[0]]] * 2


@pytest.mark.parametrize(
    "broken",
    ["<obj_start>dog<|coord_1|><|coord_2|><|coord_3|><obj_end>",
     "<obj_start>dog<|coord_1|><|coord_2|><|coord_3|><|coord_4|><|coord_5|><obj_end>",
     "<obj_start>dog<|coord_1|><|coord_2|> and <|coord_3|><|coord_4|><obj_end>",
     "<obj_start>dog<|coord_1|><|coord_2|><|coord_3|><|coord_4|>.<obj_end>",
     "<obj_start><|coord_1|><|coord_2|><|coord_3|><|coord_4|><obj_end>",
     "<obj_start>dog<|coord_1|><|coord_2|><|coord_3|><|coord_4|>",
     "dog<|coord_1|><|coord_2|><|coord_3|><|coord_4|><obj_end>",
     "<obj_start><obj_end>", "<obj_end>", "<|coord_7|>", ""],
)  # fmt: skip
def test_a_broken_object_is_passed_over_and_its_neighbours_are_not(broken: str) -> None:
    good = "<obj_start>dog<|coord_{}|><|coord_20|><|coord_30|><|coord_40|><obj_end>"
    text = good.format(11) + broken + good.format(12) + "<|im_end|>"
    found = index_target(np.asarray(T.tokenizer(text, add_special_tokens=False)["input_ids"]), T.vocab, start=MARKERS[0], end=MARKERS[1])
    assert found["slot_bin"].tolist() == [11, 20, 30, 40, 12, 20, 30, 40]
    assert found["slot_object"].tolist() == [0] * 4 + [1] * 4


def test_nothing_to_find_gives_empty_arrays_of_the_right_shape() -> None:
    found = index_target(np.zeros(0, dtype=np.int64), T.vocab, start=MARKERS[0], end=MARKERS[1])
    assert {k: v.shape for k, v in found.items()} == {
        "slot_pos": (0,), "slot_bin": (0,), "slot_axis": (0,), "slot_object": (0,), "object_span": (0, 2), "desc_span": (0, 2),
    }  # fmt: skip
