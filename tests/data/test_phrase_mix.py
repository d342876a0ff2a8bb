from __future__ import annotations

import pickle
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordvlm.contracts import PhraseTruth
from coordvlm.data.image_keys import coco_image_id, same_content
from coordvlm.data.mixed import ID_STRIDE, MixedSplit, Part, shares
from coordvlm.data.overfit import FewSamples
from coordvlm.data.phrase_mix import PhraseMix
from coordvlm.data.source import DataSource, Split
from coordvlm.utils.errors import ConfigError, DataError
from tests.data.fakes import coco_json, load_coco, write_coco
from tests.data.layouts import picture
from tests.data.phrase_layouts import embed, file_name, load_rows, load_unc, refs, row, write_rows, write_small_phrases, write_unc
from tests.e2e import coco
from tests.e2e.commands import call, finished

#: Of ``refs``: an image that UNC's splits of two data sets treat differently.
SHARED = 581858


def two_members(root: Path) -> dict[str, Any]:
    """refcoco trains on ``SHARED``, refcocog tests on it."""
    write_unc(root)
    given = [{**ref, "split": "test" if ref["image_id"] == SHARED else "train" if ref["split"] != "val" else "val"} for ref in refs()]
    write_unc(root, folder="refcocog", by="umd", given=given)
    other = load_unc(root, folder="refcocog", split_by="umd", splits={"train": {}, "val": {}, "test": {}}, test=None)
    return {"refcoco": {"source": load_unc(root), "weight": 1.0}, "refcocog": {"source": other, "weight": 1.0}}


def mix(members: dict[str, Any], **changes: Any) -> PhraseMix:
    options: dict[str, Any] = {"samples_per_epoch": None, "compare_content": True, "max_objects": 30, "on_too_many": "drop", "seed": 0}
    return PhraseMix(members=members, **{**options, **changes})


def epoch(split: Split, number: int) -> list[Any]:
    return [split.sample(i, number) for i in range(len(split))]


def image_ids(source: PhraseMix, name: str, epochs: int = 1) -> set[int | None]:
    split = source.split(name)
    return {coco_image_id(str(s.meta["file_name"])) for number in range(epochs) for s in epoch(split, number)}


def test_no_image_of_an_evaluation_split_is_trained(tmp_path: Path) -> None:
    source = mix(two_members(tmp_path))
    assert isinstance(source, DataSource)
    evaluated = set().union(*(image_ids(source, name) for name in source.splits if name != "train"))
    assert evaluated == {581858, 581859, 581860, 581861}
    assert image_ids(source, "train", epochs=3) == {581857}
    # refcoco trains 581857 and 581858 (4 phrases are left out), refcocog 581857, 581860 and 581861 (8 are)
    assert source.dropped("train") == {"evaluation_image": 12}
    assert len(source.split("train")) == 8
    assert any(note.startswith("refcoco: 4 of 8 training samples are left out, as their 1 images") for note in source.notes)


def test_a_copy_under_another_name_is_found_by_its_content(tmp_path: Path) -> None:
    members = two_members(tmp_path)
    (tmp_path / "own").mkdir()
    shutil.copy(tmp_path / "train2014" / file_name(581859), tmp_path / "own" / "c.png")  # of refcoco's val
    picture(tmp_path / "own" / "a.png")
    picture(tmp_path / "own" / "b.png", (41, 30))
    write_rows(tmp_path / "own", row("a dog"), row("a cat", file_name="b.png"), row("a copy", file_name="c.png"))
    members["own"] = {"source": load_rows(tmp_path / "own"), "weight": 1.0}
    assert mix(members).dropped("train") == {"evaluation_image": 13}
    assert mix(members, compare_content=False).dropped("train") == {"evaluation_image": 12}


def test_files_are_compared_by_content_not_by_size(tmp_path: Path) -> None:
    for name, content in (("a", b"12"), ("b", b"12"), ("c", b"21"), ("d", b"123")):
        (tmp_path / name).write_bytes(content)
    a, b, c, d = (tmp_path / name for name in "abcd")
    assert same_content([a, c, d, tmp_path / "gone"], [b, tmp_path / "gone too"]) == {a}


def test_ids_are_unique_and_truth_and_samples_say_the_same(tmp_path: Path) -> None:
    source = mix(two_members(tmp_path))
    for name in (*source.splits[1:], "test"):
        split, truth = source.split(name), source.truth(name)
        assert isinstance(truth, PhraseTruth)
        samples = {s.id: s for s in epoch(split, 0)}
        assert len(samples) == len(split)
        assert sorted(split.ids.tolist()) == sorted(samples) == truth.image_ids.tolist()
        for at, number in enumerate(truth.image_ids.tolist()):
            sample = samples[number]
            assert truth.phrases[at] == sample.phrase
            assert tuple(truth.ann_xyxy_px[at]) == sample.objects[0].box_xyxy_px
            assert sample.objects[0].annotation_id == sample.id
            assert sample.id == sample.meta["member_id"] + (ID_STRIDE if sample.meta["member"] == "refcocog" else 0)
    assert [len(source.split(name)) for name in ("val", "test", "refcoco_testB", "refcocog_test")] == [8, 8, 4, 4]
    assert source.splits == ("train", "val", "test", "refcoco_val", "refcoco_testA", "refcoco_testB", "refcocog_val", "refcocog_test")
    # Both have the same picture in val: one unit of the bootstrap.
    assert np.unique(source.truth("val").source_image).size == 1
    with pytest.raises(ConfigError, match=r"no split 'testB'; there are train, val, .*refcoco_testB"):
        source.split("testB")


def test_weights_are_shares_of_an_epoch(tmp_path: Path) -> None:
    members = two_members(tmp_path)
    members["refcoco"]["weight"] = 3.0
    source = mix(members, samples_per_epoch=40)
    split = source.split("train")
    for number in range(2):
        drawn = Counter(s.meta["member"] for s in epoch(split, number))
        assert drawn == {"refcoco": 30, "refcocog": 10}
    counts = Counter(s.id for s in epoch(split, 0) if s.meta["member"] == "refcoco")
    assert set(counts.values()) <= {7, 8}  # 30 draws of 4 samples
    assert len(counts) == 4
    assert "refcoco: 30 of 40 samples of an epoch, drawn from 4" in source.notes


def test_draws_are_a_function_of_seed_and_epoch(tmp_path: Path) -> None:
    members = two_members(tmp_path)

    def ids(number: int, **changes: Any) -> list[int]:
        return [s.id for s in epoch(mix(members, samples_per_epoch=6, **changes).split("train"), number)]

    assert ids(3) == ids(3)
    assert len({tuple(ids(number)) for number in range(4)}) > 1
    assert ids(0, seed=1) + ids(1, seed=1) != ids(0) + ids(1)
    split = mix(members, samples_per_epoch=6).split("train")
    assert split.ids.tolist() == ids(0)
    again = pickle.loads(pickle.dumps(split))
    assert [s.id for s in epoch(again, 2)] == ids(2)


def test_a_part_is_gone_through_before_anything_is_repeated(tmp_path: Path) -> None:
    write_rows(tmp_path, *(row(f"dog {n}") for n in range(10)))
    split = load_rows(tmp_path).split("train")
    mixed = MixedSplit([Part("a", split, 1.0, 0), Part("b", split, 1.0, ID_STRIDE)], num_samples=8, seed=0)
    seen = Counter(s.id for number in range(5) for s in epoch(mixed, number))
    assert set(seen.values()) == {2}  # 5 epochs of 4 draws of 10 samples, twice


def test_shares_add_up() -> None:
    assert shares([1, 1, 1], 10) == [4, 3, 3]
    assert shares([0.5, 0.25, 0.0], 9) == [6, 3, 0]
    assert shares([1e-9, 1], 5) == [0, 5]


def test_detection_is_trained_beside_phrases_and_never_asked(tmp_path: Path) -> None:
    members = two_members(tmp_path)
    write_coco(tmp_path / "coco", {
        "images": [{"id": i, "file_name": name, "width": 40, "height": 30} for i, name in enumerate(("a.png", "b.png"))],
        "categories": [{"id": 2, "name": "cat"}],
        "annotations": [{"id": n, "image_id": int(n > 0), "category_id": 2, "bbox": [1, 1, 5 + n, 5]} for n in range(4)],
    })
    members["coco"] = {"source": load_coco(tmp_path / "coco"), "weight": 1.0}
    source = mix(members, samples_per_epoch=30)
    detected = [s for s in epoch(source.split("train"), 0) if s.meta["member"] == "coco"]
    assert (len(detected), {s.phrase for s in detected}, {len(s.objects) for s in detected}) == (10, {None}, {1, 3})
    assert {o.desc for s in detected for o in s.objects} == {"cat"}
    assert source.split("train").most_objects == 3
    assert all(s.phrase for name in ("val", "test") for s in epoch(source.split(name), 0))
    few = mix(members, samples_per_epoch=30, max_objects=2)
    assert few.dropped("train") == {"evaluation_image": 12, "too_many_objects": 1}
    assert few.split("train").most_objects == 1
    rare = mix(members, samples_per_epoch=3, max_objects=2, on_too_many="truncate").split("train")  # one of the two, by turns
    assert rare.most_objects == 3
    assert {len(s.objects) for n in range(2) for s in epoch(rare, n) if s.meta["member"] == "coco"} == {1, 3}


def test_an_image_that_detection_evaluates_is_not_trained_either(tmp_path: Path) -> None:
    members = two_members(tmp_path)
    picture(tmp_path / "coco" / "images" / f"{581857:012d}.jpg", (60, 40))  # COCO's name of 2017
    write_coco(tmp_path / "coco", {
        "images": [{"id": 581857, "file_name": f"{581857:012d}.jpg", "width": 60, "height": 40}], "categories": [{"id": 2, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 581857, "category_id": 2, "bbox": [1, 1, 5, 5]}],
    })
    members["coco"] = {"source": load_coco(tmp_path / "coco", split="val"), "weight": 0.0}
    with pytest.raises(DataError, match=r"members\.refcoco: .*no member is evaluated on; .*none of 8 samples is left"):
        mix(members)


def test_members_that_cannot_be_mixed_are_refused(tmp_path: Path) -> None:
    members = two_members(tmp_path)
    write_coco(tmp_path / "coco", coco_json())
    coco = {"source": load_coco(tmp_path / "coco"), "weight": 1.0}
    for given, message in (
        ({"coco": coco}, "needs a data set with phrases"),
        ({**members, "coco": {**coco, "weight": -1.0}}, r"coco\.weight must not be negative"),
        ({"refcoco": {**members["refcoco"], "weight": 0.0}}, "one weight at least must be above 0"),
        ({"refcoco": {"source": members["refcoco"]["source"]}}, r"members\.refcoco needs source and weight"),
        ({**members, "x": {"source": load_coco(tmp_path / "coco", split="val"), "weight": 1.0}}, r"members\.x has no train split"),
    ):
        with pytest.raises(ConfigError, match=message):
            mix(given)


def test_ids_must_leave_room(tmp_path: Path) -> None:
    write_rows(tmp_path, row())
    sample = load_rows(tmp_path).split("train").sample(0, 0)
    for number in (-1, ID_STRIDE):
        split = FewSamples("train", [type(sample)(number, sample.image, 40, 30, ())])
        with pytest.raises(DataError, match=rf"ids of a member of a mix must be in .*got {number}"):
            Part("own", split, 1.0, 0)


def test_a_run_on_phrases_and_detection(tmp_path: Path) -> None:
    chosen = write_small_phrases("phrase_mix", tmp_path / "data")
    coco.write(tmp_path / "data" / "coco", train=coco.content(), val=coco.content(3, first_id=50))
    detection = ("{weight: 1.0, source: {_target_: coordvlm.data.coco.Coco, root: '${data.root}', train: {json: coco/train.json, "
                 "images: coco/images}, val: null, test: null, seed: 0, class_list: none, num_absent: 0, on_error: raise, "
                 "replace_underscores: false}}")
    ran = finished(tmp_path, *chosen, f"+data.source.members.coco={detection}", "data.source.samples_per_epoch=12", page=False)
    assert ran.record["dropped"]["train"]["evaluation_image"] > 0
    assert any(note.startswith("coco: 3 of 12 samples of an epoch") for note in ran.record["data_notes"])
    asked = call(tmp_path, "eval", f"run={ran.run}", "split=refcoco_testB", "data.eval_batch_size=4", page=False)
    assert asked.status == 0, asked.err
    assert asked.json("metrics.json")["split"] == "refcoco_testB"


def test_an_evaluation_image_held_by_the_file_is_not_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = embed(monkeypatch, tmp_path, train=[("a.png", 1), (None, 2), ("b.png", 3), (file_name(7), 4)],
                   val=[("c.png", 1), ("b.png", 5), (file_name(7), 6)])
    mixed = mix({"rows": {"source": source, "weight": 1.0}}, samples_per_epoch=4)
    assert mixed.dropped("train") == {"evaluation_image": 2}  # the same bytes, and COCO's number; b.png is another picture
    assert {str(s.phrase) for s in epoch(mixed.split("train"), 0)} == {"train thing 1", "train thing 2"}
