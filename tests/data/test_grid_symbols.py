"""Grids of symbols: the question and the answer, read off the pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from coordvlm.contracts import Clip
from coordvlm.data.grid_symbols import SYMBOLS, GridSymbols, cell_name, symbol_masks
from coordvlm.utils.errors import ConfigError

CELL = 14


def source(**settings: Any) -> GridSymbols:
    settings.setdefault("eval_kinds", settings.get("kinds", ["qa", "cue", "global"]))
    return GridSymbols(**{
        "grid": 4, "cell": CELL, "num_frames": 2, "filled": [1, 16], "kinds": ["qa", "cue", "global"], "noise": 6.0, "num_train": 60,
        "num_val": 12, "num_test": 60, "seed": 0, "eval_seed": 5, **settings,
    })  # fmt: skip


def seen(clip: Clip, frame: int, row: int, column: int) -> str:
    """The symbol whose shape fits the inside of a cell best."""
    patch = clip.frames[frame, row * CELL + 2 : (row + 1) * CELL - 2, column * CELL + 2 : (column + 1) * CELL - 2, 0].astype(float)
    shapes = symbol_masks(CELL)[: len(SYMBOLS), 2:-2, 2:-2].astype(float)
    fit = [np.corrcoef(patch.ravel(), shape.ravel())[0, 1] for shape in shapes]
    return SYMBOLS[int(np.argmax(fit))]


def place(clip: Clip, frame: int) -> tuple[int, int]:
    x, y = clip.evidence[frame]
    return int(y * 4), int(x * 4)


def marked(clip: Clip, frame: int) -> list[tuple[int, int]]:
    """Cells with a bright edge all around."""
    cells = clip.frames[frame, ..., 0].reshape(4, CELL, 4, CELL).transpose(0, 2, 1, 3)
    edge = np.concatenate((cells[:, :, 0], cells[:, :, -1], cells[:, :, :, 0], cells[:, :, :, -1]), 2)
    return [(int(r), int(c)) for r, c in np.argwhere((edge > 200).all(-1))]


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("kind", ["qa", "cue"])
def test_the_answer_stands_in_the_cell_asked_for_in_the_last_frame(split: str, kind: str) -> None:
    made = source(kinds=[kind]).split(split)
    for index in range(60):
        clip = made.sample(index, 0)
        row, column = place(clip, -1)
        assert seen(clip, -1, row, column) == clip.answer
        if kind == "qa":
            assert cell_name(row, column) in (clip.phrase or "")
            assert np.isnan(clip.evidence[:-1]).all()
            assert [marked(clip, f) for f in range(2)] == [[], []]
        else:
            assert [marked(clip, f) for f in range(2)] == [[(row, column)], []]
            assert cell_name(row, column) not in (clip.phrase or "")


def test_nothing_says_which_cell_global_asks_for() -> None:
    made = source(kinds=["global"], num_test=60).split("test")
    clips = [made.sample(i, 0) for i in range(60)]
    assert {c.phrase for c in clips} == {"any"}
    assert all(np.isnan(c.evidence).all() and marked(c, 0) == [] for c in clips)
    own = [c.answer in {seen(c, -1, r, k) for r in range(4) for k in range(4)} for c in clips]
    assert all(own)
    assert len({c.answer for c in clips}) == len(SYMBOLS)


def test_kinds_of_val_and_test_may_differ_from_those_of_training() -> None:
    made = source(kinds=["cue", "qa"], eval_kinds=["cue"])
    assert set(made.truth("train").kinds) == {"cue", "qa"}
    assert set(made.truth("val").kinds) == set(made.truth("test").kinds) == {"cue"}


def test_frames_before_the_last_do_not_tell_the_answer() -> None:
    made = source(kinds=["qa"], num_test=60).split("test")
    clips = [made.sample(i, 0) for i in range(60)]
    same = [seen(c, 0, *place(c, -1)) == c.answer for c in clips]
    assert np.mean(same) < 0.4  # 1/6


def test_a_clip_is_a_function_of_seed_split_and_index() -> None:
    one, again = source().split("test"), source(num_train=3).split("test")
    np.testing.assert_array_equal(one.sample(7, 0).frames, again.sample(7, 3).frames)
    others = [source(eval_seed=6).split("test").sample(7, 0), source().split("val").sample(7, 0), one.sample(8, 0)]
    assert all((one.sample(7, 0).frames != o.frames).any() for o in others)


def test_truth_is_what_the_clips_say() -> None:
    made = source()
    truth, split = made.truth("test"), made.split("test")
    for i in range(60):
        clip = split.sample(i, 0)
        assert (truth.questions[i], truth.answers[i], truth.kinds[i]) == (clip.phrase, clip.answer, clip.kind)
    assert set(truth.kinds) == {"qa", "cue", "global"}


def test_digests_change_with_what_changes_clips() -> None:
    base = source().digests()
    assert source().digests() == base
    assert source(noise=5.0).digests()["test"] != base["test"]
    assert source(eval_seed=6).digests()["test"] != base["test"]
    assert source(seed=1).digests()["train"] != base["train"]


def test_frames_to_be_scored_are_full() -> None:
    """Standard deviation within a cell: an empty one has noise only."""
    made = source(kinds=["qa"], noise=0.0)
    clips = [made.split("test").sample(i, 0) for i in range(20)]
    cells = np.stack([c.frames[..., 0] for c in clips]).reshape(20, 2, 4, CELL, 4, CELL)
    assert cells.std((3, 5)).min() > 5
    few = source(kinds=["qa"], noise=0.0, filled=[1, 1]).split("train").sample(0, 0).frames[..., 0].reshape(2, 4, CELL, 4, CELL)
    assert (few.std((2, 4)) > 5).sum((1, 2)).tolist() == [1, 1]


@pytest.mark.parametrize(("settings", "message"), [
    ({"kinds": ["qa", "where"]}, "data.source.kinds knows qa, cue, global, got 'where'"),
    ({"kinds": []}, "data.source.kinds must name each kind once, and at least one"),
    ({"kinds": ["qa", "qa"]}, "data.source.kinds must name each kind once"),
    ({"eval_kinds": ["where"]}, "data.source.eval_kinds knows qa, cue, global, got 'where'"),
    ({"num_frames": 1}, "a cue is seen in the frame before the last, so it needs at least 2"),
    ({"kinds": ["qa"], "num_frames": 0}, "data.source.num_frames=0"),
    ({"grid": 1}, "data.source needs 2 to 26 cells a side of at least 8 px"),
    ({"cell": 4}, "data.source needs 2 to 26 cells a side of at least 8 px"),
    ({"filled": [0, 3]}, "data.source.filled must be"),
    ({"filled": [3, 17]}, "data.source.filled must be"),
    ({"filled": [3]}, "data.source.filled must be"),
    ({"noise": -1.0}, "data.source.noise must lie in"),
    ({"num_val": -1}, "data.source.num_train, num_val and num_test must not be negative"),
])  # fmt: skip
def test_settings_without_a_meaning_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        source(**settings)


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="no split 'dev'; there are train, val, test"):
        source().split("dev")
    with pytest.raises(IndexError, match="test has 60 clips, got index 60"):
        source().split("test").sample(60, 0)
