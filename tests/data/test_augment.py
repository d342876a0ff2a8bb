from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coordvlm.contracts import TARGET, GroundTruth, Object, PhraseTruth, Sample
from coordvlm.data.augment import Augment, Augmented, AugmentedSplit, ListsPhrases
from coordvlm.data.filtered import SomeImages
from coordvlm.data.overfit import FirstBatch
from coordvlm.data.paraphrase import Paraphrases
from coordvlm.data.source import DataSource, Split
from coordvlm.data.transforms import BoxJitter, Colour, Crop, Flip
from coordvlm.utils.errors import ConfigError, DataError
from tests.data.test_loader import loader
from tests.data.test_paraphrase import WORDS, write
from tests.data.test_shapes import shapes

OFF = Augment(seed=0, max_source_pixels=10**6, paraphrase=None, flip=None, crop=None, colour=None, jitter=None)
CROP = Crop(share=1.0, min_area=0.3, max_aspect=1.5, margin=0.1, min_visible=0.5, position_phrases="keep")
ON = replace(
    OFF, flip=Flip(share=0.5), crop=replace(CROP, share=0.7),
    colour=Colour(share=0.8, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.02),
    jitter=BoxJitter(sigma=1.0, unit="px", min_side_px=1.0),
)
PHRASES = ("man on left", "red cup", "right behind the bus", "dog", "sign that says no", "left over food", "top hat")


class Few:
    """A source and its split at once: one sample per phrase."""

    name, notes, class_names = "train", ("one note",), (TARGET,)

    def __init__(self, phrases: Sequence[str] = PHRASES) -> None:
        self._phrases = tuple(phrases)
        self.ids = np.arange(10, 10 + len(phrases))

    def __len__(self) -> int:
        return len(self._phrases)

    def phrases(self) -> Sequence[str | None]:
        return self._phrases

    def sample(self, index: int, epoch: int) -> Sample:
        thing = Object(TARGET, box_xyxy_px=(5.0, 6.0, 25.0, 20.0), category_id=1, annotation_id=10 + index)
        noise = np.random.default_rng(index).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        return Sample(10 + index, Image.fromarray(noise), 40, 30, (thing,), phrase=self._phrases[index])

    def split(self, name: str) -> Split:
        return self

    def truth(self, name: str) -> GroundTruth:
        return PhraseTruth.of(
            ids=self.ids.tolist(), phrases=self._phrases, source_image=self.ids.tolist(), image_wh=np.full((len(self), 2), (40.0, 30.0)),
            boxes=[(5.0, 6.0, 25.0, 20.0)] * len(self),
        )

    def dropped(self, name: str) -> dict[str, int]:
        return {"some": 3}

    def digests(self) -> dict[str, str]:
        return {"train": "abc"}


def pixels(sample: Sample) -> bytes:
    assert isinstance(sample.image, Image.Image)
    return sample.image.tobytes()


def told(sample: Sample) -> tuple[object, ...]:
    """All of a sample as values that can be compared."""
    return sample.id, pixels(sample), sample.width, sample.height, sample.objects, sample.phrase, dict(sample.meta)


def test_nothing_on_is_no_wrapper() -> None:
    source = Few()
    assert OFF.wrap(source) is source


def test_only_training_samples_change() -> None:
    plain = shapes(num_train=6, num_val=6, num_test=6)
    source = ON.wrap(plain)
    assert isinstance(source, DataSource)
    assert isinstance(source.split("train"), Split)
    for name in ("val", "test"):
        assert [told(source.split(name).sample(i, 0)) for i in range(6)] == [told(plain.split(name).sample(i, 0)) for i in range(6)]
        assert source.truth(name).digest() == plain.truth(name).digest()
    assert source.truth("train").digest() == plain.truth("train").digest()
    assert (source.digests(), source.class_names, source.dropped("train")) == (plain.digests(), plain.class_names, plain.dropped("train"))
    train, before = source.split("train"), plain.split("train")
    assert train.ids.tolist() == before.ids.tolist()
    assert all(pixels(train.sample(i, 0)) != pixels(before.sample(i, 0)) for i in range(6))
    assert [train.sample(i, 0).id for i in range(6)] == before.ids.tolist()


def test_a_sample_is_a_function_of_seed_epoch_and_id() -> None:
    split = Augmented(Few(), ON).split("train")
    again = pickle.loads(pickle.dumps(split))
    expected = [told(split.sample(i, 3)) for i in range(7)]
    assert [told(again.sample(i, 3)) for i in reversed(range(7))][::-1] == expected
    assert [told(split.sample(i, 4)) for i in range(7)] != expected
    assert [told(Augmented(Few(), replace(ON, seed=1)).split("train").sample(i, 3)) for i in range(7)] != expected
    few = AugmentedSplit(SomeImages(Few(), np.array([4, 1])), ON)  # ids matter, positions do not
    assert [told(few.sample(i, 3)) for i in range(2)] == [expected[4], expected[1]]


def test_switching_one_transform_off_leaves_the_others_as_they_were() -> None:
    both, alone = (Augmented(Few(), a).split("train") for a in (replace(ON, crop=None), replace(ON, crop=None, colour=None)))
    for index in range(7):
        assert both.sample(index, 0).objects == alone.sample(index, 0).objects
        assert both.sample(index, 0).phrase == alone.sample(index, 0).phrase


def test_workers_see_what_the_main_process_sees() -> None:
    split = ON.wrap(shapes(num_train=8, image_size=48)).split("train")
    seen = [[(b.ids, b.sizes) for b in loader(split=split, num_workers=n)] for n in (0, 2)]
    assert seen[0] == seen[1]
    assert len({size for _, sizes in seen[0] for size in sizes}) > 1


def test_boxes_stay_valid_targets_over_epochs() -> None:
    split = ON.wrap(shapes(num_train=5)).split("train")
    for epoch in range(10):
        for index in range(5):
            sample = split.sample(index, epoch)
            assert sample.image.size == (sample.width, sample.height)  # type: ignore[union-attr]
            boxes = np.array([o.box_xyxy_px for o in sample.objects]).reshape(-1, 4)
            assert len(boxes) >= 1
            assert (boxes >= 0).all()
            assert (boxes[:, 2:] <= (sample.width, sample.height)).all()
            assert (boxes[:, 2:] - boxes[:, :2] >= 1).all()


def test_paraphrases_come_before_the_flip(tmp_path: Path) -> None:
    words = Paraphrases(file=write(tmp_path, WORDS), share=1.0)
    sample = Augmented(Few(), replace(OFF, paraphrase=words, flip=Flip(share=1.0))).split("train").sample(0, 0)
    assert sample.phrase in ("guy at the right", "right person")
    assert sample.objects[0].box_xyxy_px == (15.0, 6.0, 35.0, 20.0)


def test_what_is_left_alone_is_counted_and_noted(tmp_path: Path) -> None:
    words = Paraphrases(file=write(tmp_path, {**WORDS, "no such phrase": ["x"]}), share=0.5)
    augment = replace(ON, paraphrase=words, colour=None, jitter=None)
    assert augment.left_alone([*PHRASES, None]) == {
        "crop: names_place": 4, "flip: ambiguous_side": 2, "flip: writing": 1, "paraphrase: unknown_phrase": 1,
    }
    assert isinstance(Few(), ListsPhrases)
    notes = augment.wrap(Few()).notes  # type: ignore[attr-defined]
    assert notes[0] == "one note"
    assert notes[1].startswith("training samples are augmented: paraphrase, flip, crop; crop: names_place 4 of 7; flip: ambiguous_side 2")
    assert ON.wrap(shapes()).notes == ("training samples are augmented: flip, crop, colour, jitter",)  # type: ignore[attr-defined]


def test_classes_that_name_a_side_and_flips_do_not_go_together() -> None:
    source = Few()
    source.class_names = ("cat", "left glove")  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"augment\.flip would make the class 'left glove' wrong"):
        ON.wrap(source)
    assert replace(ON, flip=None).wrap(source).class_names == source.class_names


def turned(path: Path) -> Sample:
    """A 20 x 30 px picture stored lying, with the tag that says so; its top left corner as displayed is white."""
    shown = np.full((30, 20, 3), 40, np.uint8)
    shown[:10, :10] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(shown)).save(path, quality=100, exif=exif)
    return Sample(1, path, 20, 30, (Object(TARGET, box_xyxy_px=(0.0, 0.0, 10.0, 10.0)),), phrase="patch")


def test_a_rotation_is_applied_once(tmp_path: Path) -> None:
    """A square crop would look as if its rotation was still to come, if it carried the tag on."""
    sample = turned(tmp_path / "a.jpg")
    frame = OFF.open(sample)
    assert frame.size == (20, 30)
    assert np.asarray(frame)[:10, :10].mean() > 240
    flipped = replace(OFF, flip=Flip(share=1.0))(sample, 0)
    square = replace(OFF, max_source_pixels=900).open(
        replace(flipped, image=flipped.image.crop((0, 0, 20, 20)), width=20, height=20)  # type: ignore[union-attr]
    )
    assert np.asarray(square)[:9, 11:].mean() > 240
    assert np.asarray(square)[11:].mean() < 60


def test_a_broken_image_is_named_as_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "b.png"
    path.write_bytes(b"no picture")
    sample = replace(turned(tmp_path / "a.jpg"), image=path, id=77)
    with pytest.raises(DataError, match=r"b\.png \(image 77\): the image must be readable"):
        replace(OFF, flip=Flip(share=1.0))(sample, 0)
    with pytest.raises(DataError, match="must not have more than 5 pixels"):
        replace(OFF, flip=Flip(share=1.0), max_source_pixels=5)(turned(tmp_path / "c.jpg"), 0)


def test_overfitting_takes_the_changed_samples_for_truth_too() -> None:
    """``debug=overfit`` on augmented data: cropped frames, cropped boxes."""
    source = replace(OFF, crop=CROP).wrap(shapes(num_train=6))
    few = FirstBatch(source, [source.split("train").sample(i, 0) for i in range(6)])
    truth = few.truth("test")
    for sample in (few.split("train").sample(i, 5) for i in range(6)):
        mine = truth.subset([int(sample.id)])
        assert mine.image_wh.tolist() == [[sample.width, sample.height]]
        assert mine.ann_xyxy_px.tolist() == [list(o.box_xyxy_px or ()) for o in sample.objects]
    assert any(tuple(wh) != (96, 96) for wh in truth.image_wh.tolist())
