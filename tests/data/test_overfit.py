from __future__ import annotations

from typing import Any

import pytest

from coordvlm.contracts import Clip, ClipTruth, PointTruth
from coordvlm.data.loader import first_samples
from coordvlm.data.overfit import FirstBatch
from coordvlm.data.source import SPLITS, DataSource
from coordvlm.utils.errors import ConfigError
from tests.data.test_dots import dots
from tests.data.test_filtered import shapes
from tests.data.test_grid_symbols import source as symbols
from tests.data.test_moving_ball import source as ball
from tests.e2e import coco


@pytest.fixture
def source() -> FirstBatch:
    return FirstBatch(shapes(), first_samples(shapes(), batch_size=5, seed=0))


def test_every_split_is_the_first_batch(source: FirstBatch) -> None:
    assert isinstance(source, DataSource)
    wanted = sorted(int(s.id) for s in first_samples(shapes(), batch_size=5, seed=0))
    for name in SPLITS:
        split = source.split(name)
        assert (split.name, len(split), split.ids.tolist()) == ("train", 5, wanted)
        assert [split.sample(i, 3).id for i in range(5)] == wanted
        assert source.truth(name).image_ids.tolist() == wanted
    with pytest.raises(ConfigError, match="no split 'other'"):
        source.split("other")


def test_the_truth_is_what_is_trained(source: FirstBatch) -> None:
    truth, split = source.truth("test"), source.split("train")
    names = dict(zip(truth.category_ids.tolist(), truth.category_names, strict=True))
    mine = [
        (i, names[c], tuple(box))
        for i, c, box in zip(truth.ann_image_id.tolist(), truth.ann_category_id.tolist(), truth.ann_xyxy_px.tolist(), strict=True)
    ]
    assert mine == [(s.id, o.desc, o.box_xyxy_px) for s in (split.sample(i, 0) for i in range(5)) for o in s.objects]
    assert truth.ann_area.tolist() == [(b[2] - b[0]) * (b[3] - b[1]) for _, _, b in mine]
    assert not truth.ann_iscrowd.any()


def test_it_says_so(source: FirstBatch) -> None:
    assert "the same 5 training images" in source.notes[0]
    assert source.class_names == shapes().class_names
    assert len(source.digests()["train"]) == 12
    assert source.dropped("train") == {}


def test_a_class_that_validation_does_not_have_is_in_the_truth(tmp_path) -> None:
    from coordvlm.data.coco import Coco

    val = coco.content(3, first_id=50)
    val["categories"] = [c for c in val["categories"] if c["id"] == 7]
    val["annotations"] = [a for a in val["annotations"] if a["category_id"] == 7]
    coco.write(tmp_path, train=coco.content(3), val=val)
    files = {name: {"json": f"{name}.json", "images": "images"} for name in ("train", "val")}
    real = Coco(root=tmp_path, **files, test=None, seed=0, class_list="none", num_absent=0, on_error="raise", replace_underscores=False)
    truth = FirstBatch(real, first_samples(real, batch_size=3, seed=0)).truth("val")
    assert truth.category_names == ("red box", "blue box")
    assert truth.category_ids.tolist() == [3, 7]


def test_points_to_count_are_the_truth_of_counting() -> None:
    samples = first_samples(dots(), batch_size=4, seed=0)
    truth = FirstBatch(dots(), samples).truth("val")
    assert isinstance(truth, PointTruth)
    assert len(truth.image_ids) == 4
    for sample in samples:
        assert isinstance(sample.id, int)
        assert truth.points_of(sample.id).tolist() == [list(o.point_px or ()) for o in sample.objects]
        assert truth.counted[truth.image_ids.tolist().index(sample.id)] == sample.category


def test_samples_to_count_are_asked_as_held_out_ones_where_they_are_scored() -> None:
    """Else the one batch would be validated with marks that are off or missing."""
    source = FirstBatch(dots(), first_samples(dots(), batch_size=2, seed=0))
    for name in SPLITS:
        assert [source.split(name).sample(i, 1).meta["split"] for i in range(2)] == [name] * 2


@pytest.mark.parametrize("kind", ["words", "points"])
def test_clips_have_the_truth_of_clips(kind: str) -> None:
    made: Any = symbols() if kind == "words" else ball()
    samples = first_samples(made, batch_size=3, seed=0)
    source = FirstBatch(made, samples)
    truth = source.truth("test")
    assert isinstance(truth, ClipTruth)
    for at, clip in enumerate(sorted(samples, key=lambda c: int(c.id))):
        assert isinstance(clip, Clip)
        assert (truth.image_ids[at], truth.source_image[at], truth.image_wh[at].tolist()) == (clip.id, clip.id, [clip.width, clip.height])
        assert (truth.questions[at], truth.answers[at], truth.kinds[at]) == (clip.phrase, clip.answer, clip.kind)
        assert truth.point_of(int(clip.id)) == clip.point_px
        assert (clip.point_px is None) is (kind == "words")
