from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.data_root import peer_data
from tests.e2e import coco
from tests.e2e.commands import FAST, Ran, evaluate, finished, refusal, train

#: (folder, content of the JSON) -> None after changing them, or the text to write in place of the JSON.
Change = Callable[[Path, dict[str, Any]], str | None]


def few(*argv: str) -> tuple[str, ...]:
    return ("trainer.max_steps=2", "trainer.limit_test_batches=1.0", "data.batch_size=3", *argv)


def test_a_folder_of_ones_own_trains_and_is_evaluated(tmp_path: Path) -> None:
    data = coco.write(tmp_path / "mine", train=coco.content(), val=coco.content(3, first_id=50))
    ran = finished(tmp_path, *data, *few(), page=True)
    val = {"images": 3, "crowd": 1}
    assert ran.record["data_counts"] == {"train": {"images": 6, "crowd": 1}, "val": val, "test": val}
    assert "no test split is configured" in ran.record["data_notes"][0]
    found = ran.json("metrics.json")
    assert (found["split"], found["counts"]["images"]) == ("val", 3)
    lines = [json.loads(line) for line in (ran.run / "predictions.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [50, 51, 52]
    assert all(len(line["sha1"]) == 40 for line in lines)
    again = evaluate(tmp_path, f"run={ran.run}")
    assert again.status == 0, again.err
    assert again.record["protocol"] == ran.record["protocol"]


def broken(tmp_path: Path, change: Change, *argv: str, split: str = "train") -> Ran:
    """Train on a folder in which one thing is wrong."""
    contents = {"train": coco.content(), "val": coco.content(3, first_id=50)}
    data = coco.write(tmp_path / "mine", **contents)
    written = change(tmp_path / "mine", contents[split])
    (tmp_path / "mine" / f"{split}.json").write_text(json.dumps(contents[split]) if written is None else written)
    return train(tmp_path, *FAST, *data, *few(), *argv)


def edit(position: int = 0, **changes: object) -> Change:
    """Change an annotation."""
    return lambda root, data: data["annotations"][position].update(changes)


def edit_image(**changes: object) -> Change:
    return lambda root, data: data["images"][0].update(changes)


def cut_jpeg(root: Path, data: dict[str, Any]) -> None:
    file = root / "images" / data["images"][0]["file_name"]
    file.write_bytes(file.read_bytes()[:-200])


def remove_image(root: Path, data: dict[str, Any]) -> None:
    (root / "images" / data["images"][0]["file_name"]).unlink()


def text(content: str) -> Change:
    return lambda root, data: content


BAD: dict[str, tuple[Change, str]] = {
    "missing image": (remove_image, "000001.jpg"),
    "truncated JPEG": (cut_jpeg, "000001.jpg"),
    "zero area": (edit(bbox=[5, 5, 0, 9]), "annotation id 100 (image id 1, 000001.jpg, 64 x 48 px): bbox must not have zero area"),
    "inverted": (edit(bbox=[15, 5, -4, 9]), "bbox must not be inverted"),
    "out of frame": (edit(bbox=[60, 5, 20, 9]), "bbox must lie inside the image"),
    "NaN": (edit(bbox=[float("nan"), 5, 20, 9]), "bbox must be finite"),
    "category": (edit(category_id=99), "category_id must be one of the file's categories"),
    "duplicate": (edit(id=101), "an annotation id must be unique"),
    "size": (edit_image(width=65), "000001.jpg"),
    "outside": (edit_image(file_name="../../secret.jpg"), "an image path must stay inside"),
    "not COCO": (text('{"a": 1}'), "train.json"),
    "a list": (text("[1, 2]"), "train.json"),
    "empty": (text(""), "train.json"),
    "no annotations": (text('{"images": [], "annotations": [], "categories": []}'), "train.json"),
    "no description": (lambda root, data: data["categories"][0].update(name=" "), "a description must not be empty"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_clear_line(tmp_path: Path, what: str) -> None:
    change, message = BAD[what]
    ran = broken(tmp_path, change)
    assert message in refusal(ran)
    assert ran.record["status"] == "failed"
    assert ran.record["error"]["type"] == "DataError"


def test_bad_input_in_a_worker_process_is_one_clear_line(tmp_path: Path) -> None:
    def cut_last(root: Path, data: dict[str, Any]) -> None:
        for image in data["images"][1:]:
            file = root / "images" / image["file_name"]
            file.write_bytes(file.read_bytes()[:-150])

    message = refusal(broken(tmp_path, cut_last, "data.num_workers=1", "data.batch_size=1"))
    assert ".jpg" in message


def test_images_above_the_pixel_limit_and_long_answers_are_refused(tmp_path: Path) -> None:
    def nothing(root: Path, data: dict[str, Any]) -> None: ...

    assert "1000" in refusal(broken(tmp_path / "a", nothing, "model.max_source_pixels=1000"))
    assert "must fit into 60 tokens (model.max_length)" in refusal(broken(tmp_path / "b", nothing, "model.max_length=60"))


def test_what_cannot_be_trained_on_is_skipped_and_counted_when_asked(tmp_path: Path) -> None:
    def change(root: Path, data: dict[str, Any]) -> None:
        remove_image(root, data)
        data["annotations"][2]["bbox"] = [5, 5, 0, 9]

    ran = broken(tmp_path, change, "data.on_error=skip")
    assert ran.status == 0, ran.err
    assert ran.record["data_counts"]["train"] == {"images": 6, "crowd": 1, "zero_area": 1}
    assert ran.record["dropped"]["train"] == {"crowd": 1, "zero_area": 1}
    assert any("000001.jpg" in message for message in ran.record["skipped_images"])
    page = (ran.run / "report.html").read_text()
    assert "train.zero_area" in page


def test_an_unreadable_image_of_the_evaluation_counts_as_missed_when_skipped(tmp_path: Path) -> None:
    ran = broken(tmp_path, remove_image, "data.on_error=skip", split="val")
    assert ran.status == 0, ran.err
    assert ran.json("metrics.json")["counts"]["images"] == 3
    assert len((ran.run / "predictions.jsonl").read_text().splitlines()) == 2
    assert any("000050.jpg" in message for message in ran.record["skipped_images"])
    assert "000050.jpg" in refusal(broken(tmp_path / "strict", remove_image, split="val"))


def test_an_image_with_too_many_objects_leaves_training_only(tmp_path: Path) -> None:
    data = coco.write(tmp_path / "mine", train=coco.content(), val=coco.content(3, first_id=50))
    ran = finished(tmp_path, *data, *few(), "sequence.max_objects=1")
    assert ran.record["data_counts"]["train"] == {"images": 4, "crowd": 1, "too_many_objects": 2}
    assert ran.record["dropped"]["train"]["too_many_objects"] == 2
    assert ran.record["data_counts"]["val"]["images"] == 3
    truth = [len(json.loads(line)["truth"]) for line in (ran.run / "predictions.jsonl").read_text().splitlines()]
    assert truth == [3, 0, 1]  # the crowd included


def test_too_many_objects_can_be_cut_instead(tmp_path: Path) -> None:
    data = coco.write(tmp_path / "mine", train=coco.content(), val=coco.content(3, first_id=50))
    ran = finished(tmp_path, *data, *few(), "sequence.max_objects=1", "sequence.on_too_many=truncate")
    assert ran.record["data_counts"]["train"] == {"images": 6, "crowd": 1, "truncated_objects": 2}


def test_no_image_left_is_refused(tmp_path: Path) -> None:
    content = coco.content(1)
    data = coco.write(tmp_path / "mine", train=content, val=coco.content(3, first_id=50))
    message = refusal(train(tmp_path, *FAST, *data, "sequence.max_objects=1"))
    assert "no training image has at most 1 objects" in message


def test_grey_and_transparent_images_train(tmp_path: Path) -> None:
    data = coco.write(tmp_path / "mine", train=coco.content(3), val=coco.content(3, first_id=50))
    file = tmp_path / "mine" / "images" / "000001.jpg"
    Image.open(file).convert("L").save(file)
    finished(tmp_path, *data, *few())


def bccd(*argv: str) -> tuple[str, ...]:
    root = peer_data() / "bccd"
    files = [f"data.source.{name}.{key}" for name in ("train", "val") for key in ("json", "images")]
    values = ["train.json", "images", "val.json", "images"]
    return ("data=coco", f"data.root={root}", *(f"{k}={v}" for k, v in zip(files, values, strict=True)), *argv)


def test_real_images_take_steps_and_are_evaluated(tmp_path: Path) -> None:
    ran = finished(tmp_path, *bccd("data.on_error=skip", "trainer.max_steps=2", "data.val_images=4", "decode.max_new_tokens=20"), page=True)
    counts = ran.record["data_counts"]["train"]
    assert counts["images"] + counts.get("too_many_objects", 0) == 205
    assert ran.json("metrics.json")["counts"]["images"] == 4
    assert ran.record["data_counts"]["val"]["zero_area"] == 1
