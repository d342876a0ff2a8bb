from __future__ import annotations

import errno
import importlib.util
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from coordvlm.contracts import Clip, ClipTruth
from coordvlm.data import video_folder
from coordvlm.data.source import DataSource, Split
from coordvlm.data.video_sampling import sample_times
from coordvlm.utils.errors import ConfigError, DataError
from tests.data.video_layouts import CAPTION, frames_folder, load_clips, shown, write_clips


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """``frames/a``: 12 frames of 20 x 10 px."""
    frames_folder(tmp_path / "frames/a", 12)
    return tmp_path


def test_captions_questions_and_points(root: Path) -> None:
    write_clips(
        root, {"video": "frames/a/", "caption": " a grey clip "}, "", {"video": "frames/a", "question": "Which?", "answer": "grey"},
        {"video": "frames/a", "question": "Where?", "point": [19.5, 10]},
    )
    source = load_clips(root)
    assert isinstance(source, DataSource)
    split = source.split("train")
    assert isinstance(split, Split)
    first, second, third = (split.sample(i, 0) for i in range(3))
    assert [(c.id, c.kind, c.phrase, c.answer, c.point_px) for c in (first, second, third)] == [
        (1, "caption", "", "a grey clip", None), (2, "qa", "Which?", "grey", None), (3, "point", "Where?", "", (19.5, 10.0)),
    ]
    assert isinstance(first, Clip)
    assert first.frames.shape == (3, 10, 20, 3)
    assert (first.width, first.height) == (20, 10)
    assert np.array_equal(np.asarray(first.image), first.frames[-1])
    assert first.evidence.shape == (3, 2)
    assert np.isnan(first.evidence).all()
    assert first.meta == {"file_name": "frames/a/", "where": f"{root}/train.jsonl:1", "split": "train"}
    assert source.dropped("train") == {}
    again = pickle.loads(pickle.dumps(split))
    assert np.array_equal(again.sample(0, 3).frames, first.frames)


def test_frames_in_natural_order_from_the_first_to_the_last(root: Path) -> None:
    write_clips(root, CAPTION)
    assert shown(load_clips(root)) == [0, 6, 11]  # 11 / 2 is halfway: the later one
    assert shown(load_clips(root, num_frames=12)) == list(range(12))
    assert shown(load_clips(root, num_frames=2)) == [0, 11]


def test_one_frame_is_the_middle_one_and_the_last_one_for_a_point(root: Path) -> None:
    write_clips(root, CAPTION, {"video": "frames/a", "question": "Where?", "point": [1, 2]})
    source = load_clips(root, num_frames=1)
    assert (shown(source, 0), shown(source, 1)) == ([6], [11])


@pytest.mark.parametrize(("num", "frames"), [(1, 1), (2, 2), (5, 3), (17, 5), (100, 8), (31, 30)])
def test_times_are_those_of_evenly_spaced_frames(num: int, frames: int) -> None:
    """Against NumPy's spacing, at a rate that floating point cannot write."""
    rate = 30000 / 1001
    found = sample_times(num / rate, rate, num_frames=frames, fps=None, last=True)
    assert found.available == num
    expected = np.floor(np.linspace(0, num - 1, frames) + 0.5) if frames > 1 else np.asarray([num - 1])
    assert np.floor(np.asarray(found.seconds) * rate + 1e-6).tolist() == expected.tolist()


def test_a_rate_thins_what_is_chosen_from(root: Path) -> None:
    write_clips(root, CAPTION)
    assert shown(load_clips(root, folder_fps=10, fps=2.5)) == [3, 7, 11]  # every fourth, counted back from the last
    assert shown(load_clips(root, folder_fps=10, fps=100)) == [0, 6, 11]  # there are no more than 10
    with pytest.raises(DataError, match=r"at least 3 frames at 1 per second.*got 2"):
        shown(load_clips(root, folder_fps=10, fps=1))


def test_a_window_in_seconds(root: Path) -> None:
    write_clips(root, {**CAPTION, "start": 0.2, "end": 0.7}, {**CAPTION, "start": 1.0}, {**CAPTION, "end": 1.4})
    source = load_clips(root, folder_fps=10)
    assert shown(source) == [2, 4, 6]
    with pytest.raises(DataError, match=r"train.jsonl:2: .*at least 3 frames.*got 2"):
        source.split("train").sample(1, 0)
    with pytest.raises(DataError, match=r"start and end must lie in the clip.*1\.4"):
        source.split("train").sample(2, 0)


def test_seconds_of_a_folder_need_its_rate(root: Path) -> None:
    write_clips(root, CAPTION)
    for options in ({"fps": 2}, {"min_seconds": 1}):
        with pytest.raises(ConfigError, match=r"frames/a is a folder of frames.*folder_fps"):
            load_clips(root, **options)
    write_clips(root, {**CAPTION, "start": 1})
    with pytest.raises(ConfigError, match=r"start needs data\.source\.folder_fps"):
        load_clips(root)


def test_a_short_folder(root: Path) -> None:
    frames_folder(root / "frames/b", 2)
    write_clips(root, CAPTION, {"video": "frames/b", "caption": "short"})
    with pytest.raises(DataError, match=r"train.jsonl:2: .*frames/b: a clip must have at least 3 frames.*got 2"):
        load_clips(root)
    skipped = load_clips(root, on_error="skip")
    assert len(skipped.split("train")) == 1
    assert skipped.dropped("train") == {"short_clip": 1}
    with pytest.raises(DataError, match="without it the truth is unknown"):
        load_clips(root, split="val", on_error="skip")
    repeated = load_clips(root, short="repeat")
    assert shown(repeated, 1) == [0, 1, 1]
    assert repeated.dropped("train") == {"repeated_frames": 1}


def test_clips_below_a_duration_are_left_out_of_every_split(root: Path) -> None:
    frames_folder(root / "frames/b", 4)
    write_clips(root, CAPTION, {"video": "frames/b", "caption": "short"}, {**CAPTION, "start": 0.9})
    source = load_clips(root, split="val", folder_fps=10, min_seconds=0.5)
    assert source.split("val").ids.tolist() == [1]
    assert source.dropped("val") == {"below_min_seconds": 2}


def test_frames_of_several_sizes(root: Path) -> None:
    Image.new("RGB", (10, 10), (0, 0, 0)).save(root / "frames/a/0.png")
    write_clips(root, CAPTION)
    with pytest.raises(DataError, match=r"frames must have one size.*'0.png': '10 x 10', '11.png': '20 x 10'"):
        load_clips(root).split("train").sample(0, 0)
    source = load_clips(root, mixed_sizes="resize")
    assert shown(source) == [0, 6, 11]
    assert source.split("train").sample(0, 0).frames.shape == (3, 10, 20, 3)
    assert source.dropped("train") == {"resized_frames": 1}


def test_orientation_is_applied(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(3):
        Image.new("RGB", (20, 10), (0, 0, 0)).save(root / "frames/a" / f"{20 + i}.jpg", exif=exif)
    for file in (root / "frames/a").glob("*.png"):
        file.unlink()
    write_clips(root, {"video": "frames/a", "question": "Where?", "point": [9, 19]})
    source = load_clips(root)
    assert source.split("train").sample(0, 0).frames.shape == (3, 20, 10, 3)
    assert source.truth("train").image_wh.tolist() == [[10, 20]]


def test_an_unreadable_frame_is_met_when_the_clip_is_read(root: Path) -> None:
    (root / "frames/a/6.png").write_bytes(b"no image")
    write_clips(root, CAPTION)
    source = load_clips(root)
    with pytest.raises(DataError, match=r"train.jsonl:1: .*6.png: the image must be readable"):
        source.split("train").sample(0, 0)
    with pytest.raises(DataError, match="10 pixels"):
        load_clips(root, max_pixels=10).split("train").sample(0, 0)


def test_other_files_of_a_folder_are_no_frames(root: Path) -> None:
    for name in ("Thumbs.db", ".0.png", "notes.txt"):
        (root / "frames/a" / name).write_text("x")
    write_clips(root, CAPTION)
    assert shown(load_clips(root, num_frames=12)) == list(range(12))


def test_what_passes_is_tried_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clips(root, CAPTION)
    left, pauses = [2], list[float]()
    read = video_folder.open_image

    def failing(path: Path, **options: Any) -> Image.Image:
        if left[0]:
            left[0] -= 1
            raise DataError("the image must be readable", where=path) from OSError(errno.EIO, "Input/output error")
        return read(path, **options)

    monkeypatch.setattr(video_folder, "open_image", failing)
    monkeypatch.setattr("coordvlm.data.video_retry.time.sleep", pauses.append)
    assert shown(load_clips(root, retries=2, retry_seconds=0.5)) == [0, 6, 11]
    assert pauses == [0.5, 1.0]
    left[0] = 2
    with pytest.raises(DataError, match="readable"):
        shown(load_clips(root, retries=1))
    monkeypatch.undo()
    pauses.clear()
    monkeypatch.setattr("coordvlm.data.video_retry.time.sleep", pauses.append)
    (root / "frames/a/6.png").write_bytes(b"no image")  # does not pass
    with pytest.raises(DataError, match="readable"):
        shown(load_clips(root, retries=5))
    assert pauses == []


@pytest.mark.parametrize(("row", "said", "key"), [
    ({"video": "frames/a", "caption": " "}, "caption must be text that is not blank", "empty_caption"),
    ({"video": "frames/a", "caption": 3}, "caption must be text", "empty_caption"),
    ({"video": "frames/a", "question": "", "answer": "x"}, "question must be text that is not blank", "empty_question"),
    ({"video": "", "caption": "x"}, "video must be text", "empty_video"),
    ({"video": "frames/a"}, "a line must have video and either caption", "bad_line"),
    ({"caption": "x"}, "a line must have video", "bad_line"),
    ({"video": "frames/a", "caption": "x", "question": "y"}, "either caption, or question and answer", "bad_line"),
    ({"video": "frames/a", "question": "y"}, "either caption, or question and answer", "bad_line"),
    ({"video": "frames/a", "captoin": "x"}, "captoin", "unknown_key"),
    ({"video": "frames/b", "caption": "x"}, "the clip must exist", "missing_clip"),
    ({"video": "../a", "caption": "x"}, "stays inside its folder", "missing_clip"),
    ({"video": "ftp://host/a.mp4", "caption": "x"}, "http", "missing_clip"),
    ({"video": "frames/a", "question": "?", "point": [1]}, "point must be", "bad_point"),
    ({"video": "frames/a", "question": "?", "point": [1, -2]}, "not negative", "bad_point"),
    ({"video": "frames/a", "question": "?", "point": [1, float("nan")]}, "point must be", "bad_point"),
    ({**CAPTION, "start": 2, "end": 1}, "0 <= start < end", "bad_window"),
    ({**CAPTION, "start": "1"}, "seconds", "bad_window"),
    ('{"video": ', "JSON", "bad_line"),
    ("[1]", "one JSON object|a JSON object", "bad_line"),
])
def test_bad_lines_are_refused_or_left_out_and_counted(root: Path, row: object, said: str, key: str) -> None:
    write_clips(root, CAPTION, row)
    with pytest.raises(DataError, match=rf"train.jsonl:2: .*({said})"):
        load_clips(root)
    source = load_clips(root, on_error="skip")
    assert source.dropped("train") == {key: 1}
    assert len(source.split("train")) == 1


def test_ids(root: Path) -> None:
    write_clips(root, {**CAPTION, "id": 7}, {**CAPTION, "id": "3"})
    assert load_clips(root).split("train").ids.tolist() == [7, 3]
    write_clips(root, {**CAPTION, "id": 7}, {**CAPTION, "id": 7})
    with pytest.raises(DataError, match=r"train.jsonl:2: an id must be unique in its file \(first at .*train.jsonl:1\)"):
        load_clips(root)
    write_clips(root, {**CAPTION, "id": 7}, CAPTION)
    with pytest.raises(DataError, match="either every line has an id or none"):
        load_clips(root)
    write_clips(root, {**CAPTION, "id": "x"})
    with pytest.raises(DataError, match="integer"):
        load_clips(root)


def test_truth_opens_only_clips_with_points(root: Path) -> None:
    frames_folder(root / "frames/b", 4)
    shutil.copytree(root / "frames/b", root / "frames/c")
    (root / "frames/b/0.png").write_bytes(b"no image")
    (root / "frames/b/3.png").write_bytes(b"no image")
    write_clips(
        root, {"video": "frames/a", "question": "Where?", "point": [3, 4], "id": 9}, {"video": "frames/b", "caption": "b", "id": 4},
        {"video": "frames/a", "caption": "a", "id": 5},
    )
    source = load_clips(root, split="val")
    truth = source.truth("val")
    assert isinstance(truth, ClipTruth)
    assert truth.image_ids.tolist() == source.split("val").ids[[1, 2, 0]].tolist() == [4, 5, 9]
    assert truth.kinds == ("caption", "caption", "point")
    assert truth.answers == ("b", "a", "")
    assert truth.point_of(9) == (3.0, 4.0)
    assert truth.image_wh[2].tolist() == [20, 10]
    assert np.isnan(truth.image_wh[:2]).all()
    assert truth.source_clip[1] == truth.source_clip[2] != truth.source_clip[0]


def test_a_point_outside_the_last_frame(root: Path) -> None:
    write_clips(root, {"video": "frames/a", "question": "Where?", "point": [3, 10.5]})
    source = load_clips(root)
    for call in (lambda: source.truth("train"), lambda: source.split("train").sample(0, 0)):
        with pytest.raises(DataError, match=r"train.jsonl:1: point must lie in the last frame, 20 x 10 px: got \[3.0, 10.5\]"):
            call()


def test_digests_change_with_lines_and_with_what_is_shown(root: Path) -> None:
    write_clips(root, CAPTION)
    one = load_clips(root).digests()["train"]
    assert load_clips(root).digests()["train"] == one
    assert load_clips(root, num_frames=2).digests()["train"] != one
    write_clips(root, {**CAPTION, "caption": "another"})
    assert load_clips(root).digests()["train"] != one


def test_splits_and_options(root: Path) -> None:
    write_clips(root, CAPTION, CAPTION)
    assert len(load_clips(root, num_clips=1).split("train")) == 1
    with pytest.raises(DataError, match="num_clips asks for 3 clips"):
        load_clips(root, num_clips=3)
    source = load_clips(root, split="val")
    assert source.split("test").name == "val"
    assert "val stands in" in source.notes[0]
    for options in (
        {"num_frames": 0}, {"fps": 0}, {"folder_fps": -1}, {"short": "pad"}, {"mixed_sizes": "crop"}, {"retries": -1},
        {"timeout_seconds": 0}, {"min_seconds": 0},
    ):
        with pytest.raises(ConfigError, match=next(iter(options))):
            load_clips(root, **options)
    write_clips(root, "")
    with pytest.raises(DataError, match="no clip is left"):
        load_clips(root)


def test_a_video_file_without_the_extra_names_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "a.mp4").write_bytes(b"")
    write_clips(root, CAPTION, {"video": "a.mp4", "caption": "x"})
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "av" else find(name, *rest))
    with pytest.raises(ConfigError, match=r"train.jsonl:2: .*a.mp4 is a video file.*pip install 'coordvlm\[video\]'"):
        load_clips(root)
