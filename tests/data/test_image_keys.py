from __future__ import annotations

from pathlib import Path

import pytest

from coordvlm.data.image_keys import coco_image_id, image_key


@pytest.mark.parametrize(("name", "number"), [
    ("COCO_train2014_000000581857.jpg", 581857), ("COCO_train2014_000000581857_16.jpg", 581857), ("000000581857.jpg", 581857),
    ("train2014/COCO_val2014_000000000009.png", 9), ("images\\000000581857.jpg", 581857), ("581857.jpg", None), ("dog.jpg", None),
    ("0000005818570.jpg", None), ("COCO_train2014_000000581857.jpg.txt.d/x.jpg", None), ("", None),
    ("202011210442_1.jpg", None), ("202011210442.jpg", None),  # a camera's clock
])
def test_coco_ids_in_names(name: str, number: int | None) -> None:
    assert coco_image_id(name) == number


def test_other_images_are_told_apart_by_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "a.jpg")
    assert image_key(tmp_path / "link.jpg") == image_key(tmp_path / "a.jpg") != image_key(tmp_path / "x" / "a.jpg")
    assert image_key(Path("x/000000000009.jpg")) == image_key(Path("y/COCO_val2014_000000000009.jpg"))
