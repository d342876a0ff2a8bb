from __future__ import annotations

import numpy as np
import pytest

from coordvlm.data.filtered import CountsObjects, limit_objects
from coordvlm.data.shapes import Shapes
from coordvlm.data.source import DataSource, Split
from coordvlm.utils.errors import ConfigError, DataError
from tests.data.fakes import annotation, coco_json, load_coco, write_coco


def shapes(**changes: object) -> Shapes:
    options: dict[str, object] = {
        "image_size": 64, "num_shapes": [1, 4], "side_fraction": [0.2, 0.3], "kinds": ["ellipse"], "colours": ["red"], "num_train": 40,
        "num_val": 3, "num_test": 3, "seed": 0, "eval_seed": 1, "class_list": "none", "num_absent": 0,
    }
    return Shapes(**{**options, **changes})  # type: ignore[arg-type]


@pytest.fixture
def coco(tmp_path):
    data = coco_json()
    data["annotations"].append(annotation())
    write_coco(tmp_path, data)
    return load_coco(tmp_path)  # image 7 has two targets and a crowd, image 3 one


def test_counts_are_those_of_the_samples(coco):
    for split in (coco.split("train"), shapes().split("train")):
        assert isinstance(split, CountsObjects)
        counts = [len(split.sample(i, 0).objects) for i in range(len(split))]
        assert split.num_objects().tolist() == counts
        assert split.most_objects >= max(counts)


def test_a_source_without_too_many_is_left_alone(coco):
    assert limit_objects(coco, max_objects=2, on_too_many="drop") is coco
    source = shapes(num_train=10**9)  # counting them would take hours
    assert limit_objects(source, max_objects=4, on_too_many="drop") is source


def test_images_with_too_many_leave_training_and_nothing_else(coco):
    source = limit_objects(coco, max_objects=1, on_too_many="drop")
    assert isinstance(source, DataSource)
    split = source.split("train")
    assert isinstance(split, Split)
    assert (split.name, len(split), split.ids.tolist(), split.sample(0, 0).id) == ("train", 1, [3], 3)
    assert source.dropped("train") == {**coco.dropped("train"), "too_many_objects": 1}
    assert source.truth("train").image_ids.tolist() == [3, 7]
    assert source.digests() == coco.digests()
    assert source.class_names == coco.class_names
    with pytest.raises(IndexError, match="1 samples, asked for 1"):
        split.sample(1, 0)


def test_truncating_keeps_every_image_and_counts_the_objects_beyond(coco):
    source = limit_objects(coco, max_objects=1, on_too_many="truncate")
    assert source.split("train").ids.tolist() == [7, 3]
    assert source.dropped("train") == {**coco.dropped("train"), "truncated_objects": 1}


def test_validation_and_test_keep_their_images():
    source = limit_objects(shapes(num_val=30), max_objects=2, on_too_many="drop")
    assert source.dropped("train")["too_many_objects"] + len(source.split("train")) == 40
    assert max(len(source.split("train").sample(i, 0).objects) for i in range(len(source.split("train")))) == 2
    assert (len(source.split("val")), source.dropped("val")) == (30, {})
    assert np.bincount(source.truth("val").ann_image_id).max() == 4


def test_nothing_left_and_a_wrong_word_are_refused(coco):
    with pytest.raises(DataError, match=r"no training image has at most 0 objects.*got 1"):
        limit_objects(coco, max_objects=0, on_too_many="drop")
    with pytest.raises(ConfigError, match="must be drop or truncate, got 'cut'"):
        limit_objects(coco, max_objects=1, on_too_many="cut")


def test_a_source_that_cannot_count_is_counted_by_its_samples():
    class Plain:
        def __init__(self, split):
            self.name, self.ids, self._split = split.name, split.ids, split

        def __len__(self):
            return len(self._split)

        def sample(self, index, epoch):
            return self._split.sample(index, epoch)

    class Source:
        def __init__(self, source):
            self._source = source

        def split(self, name):
            return Plain(self._source.split(name))

        def __getattr__(self, name):
            return getattr(self._source, name)

    mine, theirs = (limit_objects(s, max_objects=2, on_too_many="drop") for s in (Source(shapes()), shapes()))
    assert mine.split("train").ids.tolist() == theirs.split("train").ids.tolist()
