from __future__ import annotations

from pathlib import Path

import pytest

from coordvlm.data.convention import BoxConvention
from coordvlm.data.records import Records, category_ids, ids_of_stems
from coordvlm.utils.errors import DataError

PIXEL = BoxConvention("pixel", "xyxy")


def records(**options: bool) -> Records:
    found = Records(Path("f"), Path("."), **{"lenient": True, "trains": True, **options})
    for i, size in enumerate([(40, 30), None, (20, 20)]):
        image = found.add_image(f"nowhere{i}.png", place=f"f:{i}", image_id=10 * i, size=size)
        assert image == i
        found.add_box(i, "dog", [1, 2, 3 + i, 4], number=0)
    return found


def test_an_image_that_is_left_out_takes_its_boxes_with_it() -> None:
    found = records()
    found.settle_sizes()
    table = found.table({"dog": 1}, PIXEL, {})
    assert table.counts == {"unreadable_image": 1}
    assert (table.image_ids.tolist(), table.ann_image.tolist(), table.ann_image_id.tolist()) == ([0, 20], [0, 1], [0, 20])
    assert (table.ann_ids.tolist(), table.ann_xyxy[:, 2].tolist()) == ([1, 3], [3, 5])
    assert [table.annotation_place(a) for a in (0, 1)] == [
        "f:0: objects[0] (nowhere0.png, 40 x 30 px)", "f:2: objects[0] (nowhere2.png, 20 x 20 px)",
    ]


def test_what_cannot_be_left_out_is_raised() -> None:
    with pytest.raises(DataError, match=r"f:1: nowhere1\.png: the image file must exist; without it the truth is unknown"):
        records(lenient=False, trains=False).settle_sizes()


def test_image_ids_from_file_names() -> None:
    assert ids_of_stems(["x/000042.jpg", "7.png"]) == [42, 7]
    for names in (["7.jpg", "007.jpg"], ["7.jpg", "a.jpg"], ["7.jpg", "²".join("ab")], ["1" * 30 + ".jpg", "2.jpg"]):
        assert ids_of_stems(names) == [1, 2]


def test_category_ids_are_alphabetical_or_given() -> None:
    found = records()
    found.add_box(0, "cat", [1, 2, 3, 4], number=1)
    found.add_box(0, " ", [1, 2, 3, 4], number=2)
    assert category_ids([found, records()], None) == {"cat": 1, "dog": 2}
    assert category_ids([found], ["zebra", "ant"]) == {"zebra": 1, "ant": 2}
