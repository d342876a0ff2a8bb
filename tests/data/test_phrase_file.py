from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordvlm.data import rows as rows_module
from coordvlm.data.images import open_image
from coordvlm.data.phrase_file import PhraseFile
from coordvlm.utils.errors import ConfigError, DataError
from tests.data.layouts import picture
from tests.data.phrase_layouts import load_rows, png, row, write_rows
from tests.data_root import peer_data

QUESTION = "Please carefully observe the area circled in the image and come up with a caption for the area."


def test_one_row(tmp_path: Path) -> None:
    write_rows(tmp_path, row("  left dog ", [2, 3, 10, 12]), "", row("cat", [20, 5, 20.5, 10], file_name="b.png", width=40, height=30))
    split = load_rows(tmp_path).split("train")
    first, second = split.sample(0, 0), split.sample(1, 0)
    assert (first.id, first.phrase, first.image) == (1, "left dog", tmp_path / "a.png")
    assert first.objects[0].box_xyxy_px == (2, 3, 12, 15)
    assert (first.width, first.height) == (40, 30)  # of the file's header
    assert second.objects[0].box_xyxy_px == (20, 5, 40, 15)  # 0.5 px clipped
    assert (second.objects[0].annotation_id, second.objects[0].category_id) == (second.id, 1)
    assert load_rows(tmp_path).dropped("train") == {"clipped": 1}
    assert str(second.meta["where"]).startswith(f"{tmp_path}/ann.jsonl:3")


def test_twelve_digits_name_an_image_of_their_folder_only(tmp_path: Path) -> None:
    names = ["a/000000000001.jpg", "b/000000000001.jpg", "202011210442_1.jpg", "202011210442_2.jpg", "000000000007.jpg"]
    for name in names:
        picture(tmp_path / name)
    write_rows(tmp_path, *(row(f"thing {n}", file_name=n) for n in [*names, "000000000007_3.jpg"]))
    source = load_rows(tmp_path)
    images = [source.split("train").sample(i, 0).image for i in range(6)]
    assert images == [tmp_path / n for n in [*names, names[-1]]]  # the last one is an expression's name of COCO's file
    shared = source.truth("train").source_image.tolist()
    assert [shared.index(i) for i in shared] == [0, 1, 2, 3, 4, 4]


@pytest.mark.parametrize("field", [
    "phrase", "expression", "expressions", "sentence", "sentences", "answer", "answers", "caption", "captions", "referring_expression",
])
def test_spellings_of_the_phrase(tmp_path: Path, field: str) -> None:
    write_rows(tmp_path, {field: "left dog", "image": "a.png", "bbox": [2, 3, 10, 12]},
               {field: ["cat", {"sent": "grey cat", "raw": "Grey cat!"}], "image": "b.png", "bbox": [2, 3, 10, 12]})
    split = load_rows(tmp_path).split("train")
    assert split.phrases() == ["left dog", "cat", "grey cat"]
    assert split.ids.tolist() == [1, 2, 3]


def test_a_list_of_phrases_shares_its_box_and_image(tmp_path: Path) -> None:
    write_rows(tmp_path, row("cat", file_name="b.png"), row(["left dog", "brown dog"]), row("dog too"))
    truth = load_rows(tmp_path).truth("train")
    assert truth.source_image.tolist() == [1, 2, 2, 2]
    assert truth.ann_xyxy_px[1:3].tolist() == [[2, 3, 12, 15]] * 2


@pytest.mark.parametrize(("name", "fields"), [
    ("a.png", {"image": "a.png"}), ("a.png", {"image_path": "a.png"}), ("a.png", {"filename": "a.png"}), ("a.png", {"img": "a.png"}),
    ("a.png", {"image": {"path": "a.png", "bytes": None}}), ("a.png", {"file_name": "a.png", "image_id": 7}),
])
def test_spellings_of_the_image(tmp_path: Path, name: str, fields: dict[str, object]) -> None:
    write_rows(tmp_path, {"phrase": "dog", "bbox": [2, 3, 10, 12], **fields})
    assert load_rows(tmp_path).split("train").sample(0, 0).image == tmp_path / name


def test_names_that_exports_give_coco_images(tmp_path: Path) -> None:
    write_rows(tmp_path, *(row(f"dog {n}", file_name=f"COCO_train2014_000000581857_{n}.jpg", width=40, height=30) for n in range(3)))
    (tmp_path / "COCO_train2014_000000581857.jpg").write_bytes(b"")
    source = load_rows(tmp_path)
    assert [source.split("train").sample(n, 0).image for n in range(3)] == [tmp_path / "COCO_train2014_000000581857.jpg"] * 3
    assert source.truth("train").source_image.tolist() == [581857] * 3


def test_rows_choose_a_split_and_patterns_choose_files(tmp_path: Path) -> None:
    write_rows(tmp_path, row("dog", set="train"), row("cat", set="val"), name="x-0.jsonl")
    write_rows(tmp_path, row("bird", set="train"), name="x-1.jsonl")
    train = load_rows(tmp_path, file="x-*.jsonl", rows={"set": "train"}).split("train")
    assert train.phrases() == ["dog", "bird"]
    assert "x-1.jsonl:1" in str(train.sample(1, 0).meta["where"])
    with pytest.raises(DataError, match=r"x-0\.jsonl: a split must have phrases.*no row with"):
        load_rows(tmp_path, file="x-*.jsonl", rows={"set": "testA"})
    with pytest.raises(DataError, match=r"a pattern must name a file at least: got 'y-\*\.jsonl'"):
        load_rows(tmp_path, file="y-*.jsonl")


# ----------------------------------------------------------------- how boxes are written
TRUE_BOXES = [(2, 3, 12, 15), (20, 15, 38, 29), (5, 10, 40, 30), (25, 2, 39, 20), (30, 20, 36, 28)]


def written(boxes: str, box_format: str) -> list[list[float]]:
    found = []
    for x1, y1, x2, y2 in TRUE_BOXES:
        numbers = np.asarray({"xyxy": [x1, y1, x2, y2], "xywh": [x1, y1, x2 - x1, y2 - y1]}[box_format], dtype=float)
        scale = {"pixel": [1.0] * 4, "norm": [1 / 40, 1 / 30] * 2, "norm1000": [25, 1000 / 30] * 2}[boxes]
        found.append((numbers * scale).tolist())
    return found


@pytest.mark.parametrize("box_format", ["xyxy", "xywh"])
@pytest.mark.parametrize("boxes", ["pixel", "norm", "norm1000"])
def test_every_declared_convention_gives_the_same_boxes(tmp_path: Path, boxes: str, box_format: str) -> None:
    write_rows(tmp_path, *(row(f"dog {n}", box) for n, box in enumerate(written(boxes, box_format))))
    truth = load_rows(tmp_path, boxes=boxes, box_format=box_format).truth("train")
    assert truth.ann_xyxy_px == pytest.approx(np.asarray(TRUE_BOXES, dtype=float))


@pytest.mark.parametrize(("true", "declared", "named"), [
    (("pixel", "xyxy"), ("pixel", "xywh"), "boxes=pixel data.source.box_format=xyxy"),
    (("pixel", "xywh"), ("pixel", "xyxy"), "boxes=pixel data.source.box_format=xywh"),
    (("norm1000", "xyxy"), ("pixel", "xyxy"), "boxes=norm1000 data.source.box_format=xyxy"),
    (("norm", "xyxy"), ("pixel", "xyxy"), "declare data.source.boxes=norm"),
    (("pixel", "xyxy"), ("norm", "xyxy"), "declare the one the file is written in (pixel"),
    (("norm", "xyxy"), ("norm", "xywh"), "boxes=norm data.source.box_format=xyxy"),
])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_contradicted_convention_names_the_one_that_fits(
    tmp_path: Path, split: str, true: tuple[str, str], declared: tuple[str, str], named: str
) -> None:
    write_rows(tmp_path, *(row(f"dog {n}", box) for n, box in enumerate(written(*true))))
    with pytest.raises(DataError) as refused:
        load_rows(tmp_path, split=split, boxes=declared[0], box_format=declared[1], on_error="skip")
    assert named in str(refused.value)
    assert "ann.jsonl:" in str(refused.value)


def test_the_declaration_is_needed_and_must_fit_the_field(tmp_path: Path) -> None:
    write_rows(tmp_path, {"phrase": "dog", "image": "a.png", "bbox_xywh": [2, 3, 10, 12], "bbox_xyxy": [2, 3, 12, 15]})
    for box_format in ("xywh", "xyxy"):
        assert load_rows(tmp_path, box_format=box_format).split("train").sample(0, 0).objects[0].box_xyxy_px == (2, 3, 12, 15)
    with pytest.raises(ConfigError, match=r"box_field=bbox_xywh says xywh and .*box_format=xyxy"):
        load_rows(tmp_path, box_format="xyxy", box_field="bbox_xywh")
    with pytest.raises(ConfigError, match="box_format must be one of"):
        load_rows(tmp_path, box_format="xywhn")


# ----------------------------------------------------------------- phrases that name nothing
def test_negatives_are_declared(tmp_path: Path) -> None:
    nothing = [row("no such cat", None), row("nor this", "none"), row("nor that", []), {"phrase": "gone", "file_name": "a.png"}]
    write_rows(tmp_path, row(), *nothing)
    source = load_rows(tmp_path, negatives="allow")
    split, truth = source.split("train"), source.truth("train")
    assert [len(split.sample(i, 0).objects) for i in range(5)] == [1, 0, 0, 0, 0]
    assert split.num_objects().tolist() == [1, 0, 0, 0, 0]
    assert (truth.ann_image_id.tolist(), len(truth.image_ids)) == ([1], 5)
    assert "train: 4 of 5 phrases name nothing in their image" in source.notes
    for at, shown in enumerate(["None", "'none'", r"\[\]", "None"]):
        write_rows(tmp_path, row(), nothing[at])
        with pytest.raises(DataError, match=rf"ann\.jsonl:2 .*must have a box .*negatives=allow.*got {shown}"):
            load_rows(tmp_path)
        assert load_rows(tmp_path, on_error="skip").dropped("train") == {"no_box": 1}
        with pytest.raises(DataError, match="without which its truth is unknown"):
            load_rows(tmp_path, split="val", on_error="skip")


def test_a_misspelt_box_field_does_not_make_everything_negative(tmp_path: Path) -> None:
    write_rows(tmp_path, {"phrase": "dog", "image": "a.png", "boks": [2, 3, 10, 12]})
    with pytest.raises(ConfigError, match=r"none of the fields bbox_xywh, .*there are phrase, image, boks"):
        load_rows(tmp_path, negatives="allow")
    with pytest.raises(ConfigError, match=r"box_field=bocks: no row of .* has it; .*nearest: boks"):
        load_rows(tmp_path, negatives="allow", box_field="bocks")


# ----------------------------------------------------------------- questions that are no phrases
def export(num: int = 12) -> list[dict[str, Any]]:
    """Rows of an export with one question for all."""
    return [
        {"question_id": str(n), "question": QUESTION, "answer": [f"dog {n}", f"the dog number {n}"], "bbox": [2.0, 3.0, 10.0, 12.0],
         "segmentation": [1.0, 2.0], "iscrowd": 0, "file_name": f"COCO_train2014_000000581857_{n}.jpg", "width": 40, "height": 30}
        for n in range(num)
    ]


def test_the_answer_is_the_phrase_where_there_is_a_question(tmp_path: Path) -> None:
    write_rows(tmp_path, *export())
    split = load_rows(tmp_path).split("train")
    assert (len(split), split.phrases()[:2]) == (24, ["dog 0", "the dog number 0"])


def test_a_constant_question_is_refused_and_naming_it_does_not_help(tmp_path: Path) -> None:
    write_rows(tmp_path, *export())
    message = r"ann\.jsonl \(split train\): .*field 'question' do not: 'please carefully .*100\.0%.*use data\.source\.text_field=answer"
    with pytest.raises(DataError, match=message):
        load_rows(tmp_path, text_field="question")
    with pytest.raises(DataError, match=message):
        load_rows(tmp_path, text_field="question", on_error="skip")
    assert len(load_rows(tmp_path, text_field="question", allow_placeholder=True).split("train")) == 12
    with pytest.raises(ConfigError, match=r"text_field=frage: no row of .* has it"):
        load_rows(tmp_path, text_field="frage")
    write_rows(tmp_path, *({k: v for k, v in r.items() if k != "answer"} for r in export()))
    with pytest.raises(ConfigError, match=r"none of the fields phrase, .*data\.source\.text_field: there are question_id, question"):
        load_rows(tmp_path)


# ----------------------------------------------------------------- bad rows
@pytest.mark.parametrize(("bad", "reason", "message"), [
    ("{", "bad_line", r":2: a line must be JSON; .*skip"), ("[1]", "bad_line", r":2: a line must be a JSON object.*\[1\]"),
    (row(" "), "empty_phrase", r":2 .*must not be blank.*got ' '"),
    (row(None), "bad_phrase", ":2 .*phrase must be text or a list of texts"), (row(7), "bad_phrase", "got 7"),
    (row("a \ud800 dog"), "bad_phrase", ":2 "),
    (row([]), "no_phrases", r":2: a row must have a phrase"),
    (row(["cat", ""]), "empty_phrase", ":2 "),
    (row(box=[1, 2, 3]), "bad_bbox", r":2 .*bbox must be 4 numbers: x1, y1, width, height.*got \[1, 2, 3\]"),
    (row(box="left"), "bad_bbox", "got 'left'"), (row(box=[1, 2, 0, 3]), "zero_area", r":2 \(a\.png, 40 x 30 px\): .*zero area"),
    (row(box=[1, 2, -3, 3]), "inverted", "must not be inverted"), (row(box=[39, 2, 5, 3]), "out_of_frame", "must lie inside"),
    (row(box=[1, 2, float("nan"), 3]), "not_finite", "finite"),
    (row(file_name=""), "bad_image", ":2: file_name must be the path of an image"),
    (row(file_name=5), "bad_image", "got 5"), (row(width=40), "bad_size", r":2: width and height .*\(40, None\)"),
    (row(file_name="gone.png"), "unreadable_image", r":2: .*gone\.png: the image file must exist"),
], ids=lambda value: value if isinstance(value, str) and "_" in value and " " not in value else "")
def test_bad_rows_are_refused_or_counted(tmp_path: Path, bad: object, reason: str, message: str) -> None:
    others: Sequence[object] = [row(f"dog {n}", file_name="b.png") for n in range(12)]
    write_rows(tmp_path, others[0], bad, *others[1:])
    with pytest.raises(DataError, match=message):
        load_rows(tmp_path)
    source = load_rows(tmp_path, on_error="skip")
    assert source.dropped("train") == {reason: 1}
    assert len(source.split("train")) == 12 + (bad == row(["cat", ""]))
    if reason in ("zero_area", "inverted", "out_of_frame"):
        assert len(load_rows(tmp_path, split="val").truth("val").ann_ids) == 13
    else:
        with pytest.raises(DataError, match="truth is unknown"):
            load_rows(tmp_path, split="val", on_error="skip")


@pytest.mark.parametrize("name", ["/etc/passwd.png", "../a.png", "x/../../a.png"])
def test_names_out_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    write_rows(tmp_path, row(file_name=name))
    with pytest.raises(DataError, match=r":1: an image path must be relative and stay inside"):
        load_rows(tmp_path, on_error="skip")


def test_files_without_phrases_are_refused(tmp_path: Path) -> None:
    for text in ("", "\n\n"):
        write_rows(tmp_path, text)
        with pytest.raises(DataError, match=r"ann\.jsonl: a split must have phrases.*no rows"):
            load_rows(tmp_path)
    with pytest.raises(DataError, match="the annotation file must exist"):
        load_rows(tmp_path, file="gone.jsonl")
    (tmp_path / "ann.jsonl").write_text(json.dumps([row(), row()]))
    with pytest.raises(DataError, match="one JSON object per line"):
        load_rows(tmp_path)
    write_rows(tmp_path, row(width=40, height=30), row("cat", width=30, height=40))
    with pytest.raises(DataError, match=r":2: an image has one size: \(40, 30\) at .*:1: got \(30, 40\)"):
        load_rows(tmp_path)
    with pytest.raises(ConfigError, match=r"splits\.train needs file and images and knows"):
        PhraseFile(root=tmp_path, splits={"train": {"file": "ann.jsonl"}}, test=None, boxes="pixel", box_format="xywh", text_field=None,
                   image_field=None, box_field=None, negatives="refuse", allow_placeholder=False, on_error="raise")


# ----------------------------------------------------------------- parquet
def test_parquet_with_images_in_it(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    given = [{**{k: v for k, v in r.items() if k not in ("width", "height")}, "image": {"bytes": png(n // 4), "path": None}} for n, r in
             enumerate(export())]
    parquet.write_table(arrow.Table.from_pylist(given), tmp_path / "val-0.parquet")
    source = load_rows(tmp_path, split="val", file="val-*.parquet")
    split = source.split("val")
    assert (len(split), len(split.table.contents)) == (24, 3)  # each image is kept once
    sample = split.sample(23, 0)
    image = open_image(sample.image, declared=(sample.width, sample.height), max_pixels=10**6)
    assert (sample.phrase, image.getpixel((0, 0)), (sample.width, sample.height)) == ("the dog number 11", (2, 0, 0), (40, 30))
    assert "val-0.parquet: row 11" in str(sample.meta["where"])
    assert len(np.unique(source.truth("val").source_image)) == 3
    assert source.check_images("val", max_pixels=10**6) == []
    given[3]["image"] = {"bytes": png(0)[:60], "path": None}
    parquet.write_table(arrow.Table.from_pylist(given), tmp_path / "val-0.parquet")
    broken = load_rows(tmp_path, split="val", file="val-*.parquet").check_images("val", max_pixels=10**6)
    assert len(broken) == 1
    assert "must be readable and complete" in str(broken[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "MAX_EMBEDDED", 100)
        with pytest.raises(DataError, match="must not have more than 100 bytes together"):
            load_rows(tmp_path, split="val", file="val-*.parquet")
    (tmp_path / "val-0.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"val-0\.parquet: the file must be parquet"):
        load_rows(tmp_path, split="val", file="val-*.parquet")


def test_parquet_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "val.parquet").write_bytes(b"")

    def missing(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr(rows_module.importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"reading .*val\.parquet needs pyarrow \(pip install pyarrow\); or write it as JSON lines"):
        load_rows(tmp_path, split="val", file="val.parquet")


# ----------------------------------------------------------------- published rows
def test_published_phrases_load() -> None:
    root = peer_data() / "refcoco_sample"
    splits: dict[str, Any] = {"train": {"file": "with_images.jsonl", "images": "images"}}
    for name in ("val", "testA", "testB"):
        splits[name] = {"file": "sample_1200.jsonl", "images": "images", "rows": {"set": f"refcoco_{name}"}}
    source = load_rows(root, splits=splits, test="testA")
    assert {name: len(source.split(name)) for name in source.splits} == {"train": 46, "val": 150, "testA": 150, "testB": 150}
    assert all(source.dropped(name) == {} for name in source.splits)
    assert source.check_images("train", max_pixels=10**7) == []
    truth = source.truth("train")
    assert np.unique(truth.source_image, return_counts=True)[1].tolist() == [2, 30, 14]
    lines = [json.loads(line) for line in (root / "with_images.jsonl").read_text().splitlines()]
    assert truth.phrases == tuple(line["phrase"].strip() for line in lines)
    assert truth.ann_xyxy_px == pytest.approx(np.asarray([line["bbox_xyxy"] for line in lines]), abs=0.011)


@pytest.mark.parametrize(("true", "declared"), [("xyxy", "xywh"), ("xywh", "xyxy")])
def test_published_boxes_read_the_other_way_are_refused(tmp_path: Path, true: str, declared: str) -> None:
    root = peer_data() / "refcoco_sample"
    lines = [json.loads(line) for line in (root / "with_images.jsonl").read_text().splitlines()]
    write_rows(tmp_path, *({**line, "box": line[f"bbox_{true}"]} for line in lines))
    with pytest.raises(DataError, match=rf"the numbers fit data\.source\.boxes=pixel data\.source\.box_format={true}"):
        load_rows(tmp_path, box_format=declared, box_field="box")
