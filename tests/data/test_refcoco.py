from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coordvlm.contracts import Object
from coordvlm.data.loader import first_samples
from coordvlm.data.refcoco import RefCoco
from coordvlm.data.source import DataSource, Split
from coordvlm.utils.errors import ConfigError, DataError
from tests.data.phrase_layouts import file_name, instances, load_unc, python2_pickle, refs, write_unc


@pytest.fixture
def source(tmp_path: Path) -> RefCoco:
    write_unc(tmp_path)
    return load_unc(tmp_path)


def test_every_sentence_is_a_sample(tmp_path: Path, source: RefCoco) -> None:
    assert isinstance(source, DataSource)
    train = source.split("train")
    assert isinstance(train, Split)
    assert {name: len(source.split(name)) for name in source.splits} == {"train": 8, "val": 4, "testA": 4, "testB": 4}
    sample = train.sample(5, 0)
    assert (sample.id, sample.phrase, sample.width, sample.height) == (5, "the dog number 1 0 1", 40, 30)
    assert sample.objects == (Object("target", (2.5, 3.0, 12.75, 15.0), category_id=1, annotation_id=5),)
    assert sample.image == tmp_path / "train2014" / file_name(581858)  # not the name with the annotation in it
    assert "ref id 102" in str(sample.meta["where"])
    assert train.ids.tolist() == list(range(8))
    assert (source.class_names, source.dropped("train")) == (("target",), {})


def test_truth_and_samples_say_the_same(source: RefCoco) -> None:
    for name in (*source.splits, "test"):
        split, truth = source.split(name), source.truth(name)
        samples = {s.id: s for s in (split.sample(i, 0) for i in range(len(split)))}
        assert truth.image_ids.tolist() == sorted(samples)
        for at, number in enumerate(truth.image_ids.tolist()):
            assert truth.phrases[at] == samples[number].phrase
            assert tuple(truth.ann_xyxy_px[at]) == samples[number].objects[0].box_xyxy_px
            assert truth.image_wh[at].tolist() == [samples[number].width, samples[number].height]
            assert file_name(truth.source_image[at]) == samples[number].meta["file_name"]


def test_test_stands_for_a_split_that_is_named(tmp_path: Path, source: RefCoco) -> None:
    assert source.split("test").name == "testA"
    assert "test stands for testA (data.source.test)" in source.notes
    val = load_unc(tmp_path, test=None)
    assert val.split("test").name == "val"
    assert "val stands in" in val.notes[-1]
    with pytest.raises(ConfigError, match=r"no split .testC.; there are train, val, testA, testB; nearest: test"):
        source.split("testC")
    with pytest.raises(ConfigError, match=r"data\.source\.test=testC cannot stand for test: no split testC"):
        load_unc(tmp_path, test="testC")


def test_digests_change_with_a_phrase(tmp_path: Path, source: RefCoco) -> None:
    other = refs()
    other[0]["sentences"][0]["sent"] += "s"
    write_unc(tmp_path, given=other)
    changed = load_unc(tmp_path).digests()
    assert {name for name, digest in source.digests().items() if changed[name] != digest} == {"train"}


def test_raw_text_and_pickles_of_python_2(tmp_path: Path) -> None:
    write_unc(tmp_path, pickled=python2_pickle(refs()))
    assert load_unc(tmp_path).split("train").sample(0, 0).phrase == "the dog number 0 0 0"
    assert load_unc(tmp_path, text="raw").split("train").sample(0, 0).phrase == "The Dog Number 0 0 0."
    odd = refs()
    odd[0]["sentences"][0]["sent"] = "caf\u00e9"
    write_unc(tmp_path, pickled=python2_pickle(odd))
    found = load_unc(tmp_path)
    assert found.split("train").sample(0, 0).phrase == "caf\u00e9"
    assert "not UTF-8 and were read as latin1" in found.notes[0]


def test_splits_by_others(tmp_path: Path) -> None:
    given = [{**ref, "split": "test" if ref["split"].startswith("test") else ref["split"]} for ref in refs()]
    write_unc(tmp_path, folder="refcocog", by="umd", given=given)
    found = load_unc(tmp_path, folder="refcocog", split_by="umd", splits={"train": {}, "val": {}, "test": {}}, test=None)
    assert (len(found.split("test")), found.split("test").name, found.notes) == (8, "test", ())
    with pytest.raises(DataError, match=r"refs\(unc\)\.p: the file with the referring expressions must exist"):
        load_unc(tmp_path, folder="refcocog")
    with pytest.raises(ConfigError, match="split_by must be one of unc, google, umd, got 'ucn'; nearest: unc"):
        load_unc(tmp_path, split_by="ucn")
    with pytest.raises(ConfigError, match=r"splits must name splits of .*got testA; there are train, val, test"):
        load_unc(tmp_path, folder="refcocog", split_by="umd", splits={"train": {}, "testA": {}})


def test_choosing_phrases(tmp_path: Path) -> None:
    write_unc(tmp_path)
    def ids(**choice: object) -> list[int]:
        return load_unc(tmp_path, splits={"train": choice, "val": {}}, test=None).split("train").ids.tolist()
    assert ids(num_images=1) == [0, 1, 2, 3]
    assert ids(image_ids=[581858], num_phrases=3) == [4, 5, 6]
    with pytest.raises(DataError, match=r"train\.image_ids must be ids of images with phrases: got \[1\]"):
        ids(image_ids=[1])
    with pytest.raises(DataError, match=r"train\.num_phrases asks for 9 phrases: got 8"):
        ids(num_phrases=9)
    with pytest.raises(ConfigError, match=r"data\.source\.splits\.train needs nothing and knows .*num_phrase'"):
        ids(num_phrase=9)


def _ref(change: Callable[[dict[str, Any]], object], at: int = 0) -> list[dict[str, Any]]:
    given = refs()
    change(given[at])
    return given


BROKEN = [
    (lambda r: r.update(ann_id=999), "unknown_annotation", r"ref id 100 \(.*ann_id must be one of .* on the same image; .*: got 999", 2),
    (lambda r: r.update(ann_id=10), "unknown_annotation", "got 10", 2),  # of another image
    (lambda r: r.update(image_id=5), "unknown_image", r"ref id 100: .*got 5", 2),
    (lambda r: r["sentences"][1].update(sent="  "), "empty_phrase", r"ref id 100 .*must not be blank.*got '  '", 1),
    (lambda r: r["sentences"][1].update(sent_id=0), "duplicate_sentence_id", r"ref id 100 .*unique in its file.*got 0", 1),
    (lambda r: r.update(sentences=[]), "no_sentences", r"ref id 100: a referring expression must have sentences", 1),
]


@pytest.mark.parametrize(("change", "reason", "message", "count"), BROKEN, ids=[b[1] for b in BROKEN])
def test_broken_references_are_refused_or_counted(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], reason: str, message: str, count: int
) -> None:
    write_unc(tmp_path, given=_ref(change))
    with pytest.raises(DataError, match=message):
        load_unc(tmp_path)
    source = load_unc(tmp_path, on_error="skip")
    assert source.dropped("train") == {reason: count}
    assert len(source.split("train")) == 8 - (2 if reason == "no_sentences" else count)
    write_unc(tmp_path, given=_ref(change, at=4))  # of val, whose truth is then unknown
    if reason != "duplicate_sentence_id":
        with pytest.raises(DataError, match=r"without (it|which) (the|its) truth is unknown"):
            load_unc(tmp_path, on_error="skip")


@pytest.mark.parametrize(("change", "message"), [
    (lambda r: r.pop("sentences"), r"\[0\], ref id 100: a referring expression must be a dict with .*'sentences': None"),
    (lambda r: r.update(image_id="581857"), "'image_id': '581857'"), (lambda r: r.update(split=None), "'split': None"),
    (lambda r: r["sentences"].append("a dog"), r"ref id 100: a sentence must be a dict .*got 'a dog'"),
    (lambda r: r["sentences"][0].pop("sent_id"), r"ref id 100: a sentence must be a dict"),
])
def test_what_is_no_reference_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    write_unc(tmp_path, given=_ref(change))
    with pytest.raises(DataError, match=message):
        load_unc(tmp_path, on_error="skip")


@pytest.mark.parametrize("given", [[], {}, "refs", [3]])
def test_what_is_no_list_of_references_is_refused(tmp_path: Path, given: object) -> None:
    write_unc(tmp_path, given=given)
    with pytest.raises(DataError, match=r"refs\(unc\)\.p"):
        load_unc(tmp_path)


def test_code_in_the_pickle_is_refused(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path / 'mark'}",)

    write_unc(tmp_path, pickled=pickle.dumps([{"ref_id": 1, "sentences": [Bomb()]}]))
    with pytest.raises(DataError, match=r"refs\(unc\)\.p: a pickle must hold plain containers.*system"):
        load_unc(tmp_path, on_error="skip")
    assert not (tmp_path / "mark").exists()


def test_a_zero_area_box_stays_in_the_truth_of_what_is_evaluated(tmp_path: Path) -> None:
    boxes = instances()
    for annotation in boxes["annotations"]:
        if annotation["id"] in (0, 20):  # of train, of val
            annotation["bbox"] = [5.0, 5.0, 0.0, 4.0]
    write_unc(tmp_path, boxes=boxes)
    with pytest.raises(DataError, match=r"ref id 100 .*must not have zero area; 2 such phrase\(s\).*on_error=skip"):
        load_unc(tmp_path)
    source = load_unc(tmp_path, on_error="skip")
    assert [len(source.split(n)) for n in ("train", "val")] == [6, 4]
    assert source.dropped("train") == source.dropped("val") == {"zero_area": 2}
    assert source.truth("val").ann_xyxy_px[0].tolist() == [5, 5, 5, 9]
    assert source.split("val").sample(0, 0).objects == ()  # no target can be written


def test_small_excess_is_clipped_and_counted(tmp_path: Path) -> None:
    boxes = instances()
    boxes["annotations"][0]["bbox"] = [50.0, 3.0, 10.5, 12.0]
    write_unc(tmp_path, boxes=boxes)
    source = load_unc(tmp_path)
    assert source.dropped("train") == {"clipped": 2}
    assert source.split("train").sample(0, 0).objects[0].box_xyxy_px == (50, 3, 60, 15)
    assert source.truth("train").ann_xyxy_px[0].tolist() == [50, 3, 60.5, 15]


def test_placeholders_are_refused(tmp_path: Path) -> None:
    given = refs()
    for ref in given:
        for sentence in ref["sentences"]:
            sentence["sent"] = "the object"
    write_unc(tmp_path, given=given)
    with pytest.raises(DataError, match=r"\(split train\): phrases must tell objects apart, and those of data\.source\.text=sent do not"):
        load_unc(tmp_path)
    assert len(load_unc(tmp_path, allow_placeholder=True).split("train")) == 8
    assert load_unc(tmp_path, text="raw").split("train").sample(0, 0).phrase == "The Dog Number 0 0 0."


def test_images_are_found_missing_and_inside_the_root(tmp_path: Path, source: RefCoco) -> None:
    assert source.check_images("train", max_pixels=10**6) == []
    image = tmp_path / "train2014" / file_name(581857)
    image.unlink()
    assert "the image file must exist" in str(source.check_images("train", max_pixels=10**6)[0])
    outside = tmp_path.parent / f"{tmp_path.name}_outside.jpg"
    outside.write_bytes((tmp_path / "train2014" / file_name(581858)).read_bytes())
    image.symlink_to(outside)
    with pytest.raises(DataError, match=r"must stay inside data\.root"):
        source.split("train").sample(0, 0)


def test_a_batch_is_drawn_and_a_split_survives_pickling(source: RefCoco) -> None:
    assert len(first_samples(source, batch_size=3, seed=0)) == 3
    again = pickle.loads(pickle.dumps(source.split("train")))
    assert again.sample(3, 0) == source.split("train").sample(3, 0)
    assert (again.most_objects, again.num_objects().tolist(), again.phrases()[3]) == (1, [1] * 8, "the dog number 0 1 1")


@pytest.mark.parametrize("scale", [1.0, 0.001])
def test_boxes_in_another_convention_are_the_files_fault(tmp_path: Path, scale: float) -> None:
    given = instances()
    for annotation in given["annotations"]:
        annotation["bbox"] = [scale * v for v in (20, 15, 35, 28)]  # corners
    write_unc(tmp_path, boxes=given)
    with pytest.raises(DataError, match=r"ref id 100 .*: bbox of instances\.json must be x, y, width, height in px") as caught:
        load_unc(tmp_path)
    assert "data.source" not in str(caught.value)
