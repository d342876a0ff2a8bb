from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coordvlm.contracts import Clip, ClipTruth
from coordvlm.data.moving_ball import PALETTE, MovingBall, walk
from coordvlm.data.seeding import keyed_generator
from coordvlm.data.source import SPLITS, DataSource, Split
from coordvlm.utils.errors import ConfigError

DEFAULT: dict[str, Any] = {
    "frame_size": 84, "num_frames": 4, "balls": (5, 8), "train_balls": (1, 8), "radius": (4.0, 5.0), "min_gap": 2.0, "step": 8.0,
    "named": True, "question": "Where does the {which} ball end?", "num_train": 60, "num_val": 40, "num_test": 30, "seed": 0,
    "eval_seed": 7,
}


def source(**changes: Any) -> MovingBall:
    return MovingBall(**{**DEFAULT, **changes})


def sample(made: MovingBall, split: str, index: int) -> Clip:
    return made.split(split).sample(index, 0)


def test_it_is_a_source() -> None:
    made = source()
    assert isinstance(made, DataSource)
    assert isinstance(made.split("val"), Split)
    assert made.dropped("train") == {}
    assert "magenta ball" in made.class_names
    assert source(named=False).class_names == ("marked ball",)
    for ask in (made.split, made.truth, made.dropped):
        with pytest.raises(ConfigError, match="no split 'testA'"):
            ask("testA")
    for index in (-1, 40):
        with pytest.raises(IndexError, match="val has 40 clips"):
            made.split("val").sample(index, 0)


@pytest.mark.parametrize("named", [True, False])
def test_a_clip_is_a_function_of_seed_split_and_index(named: bool) -> None:
    made, again = source(named=named), source(named=named, num_train=5)
    first, second = sample(made, "train", 3), again.split("train").sample(3, 8)
    assert (first.frames == second.frames).all()
    assert (first.phrase, first.objects) == (second.phrase, second.objects)
    others = (sample(made, "train", 4), sample(made, "val", 3), sample(source(named=named, seed=1), "train", 3))
    assert all((o.frames != first.frames).any() for o in others)
    assert (sample(source(named=named, seed=1), "val", 3).frames == sample(made, "val", 3).frames).all()  # eval_seed is another one


@pytest.mark.parametrize("named", [True, False])
def test_the_annotated_place_is_the_centre_of_what_is_painted_in_every_frame(named: bool) -> None:
    """The centroid of what the ball that is asked for changes in the frame, against the same clip without it."""
    made = source(named=named, balls=(4, 4), step=6.0)
    for index in range(6):
        balls, rng = made.layout("val", index)
        state = rng.bit_generator.state
        frames = made.render(balls, rng).astype(np.float64)
        rng.bit_generator.state = state
        others = {"look": balls.look[1:], "rgb": balls.rgb[1:], "centre": balls.centre[:, 1:]}
        without = source(named=True).render(replace(balls, **others), rng).astype(np.float64)  # named: nor is there a ring
        clip = sample(made, "val", index)
        at = np.arange(84) + 0.5
        for t in range(4):
            weight = np.abs(frames[t] - without[t]).sum(-1)
            found = np.array([(weight.sum(0) * at).sum(), (weight.sum(1) * at).sum()]) / weight.sum()
            if named or t > 0:  # a ring may be cut by the frame, and lie under neighbours
                assert found == pytest.approx(clip.evidence[t] * 84, abs=0.1)
        assert clip.point_px is not None
        assert found == pytest.approx(clip.point_px, abs=0.1)


def test_the_ring_is_in_frame_0_only_and_around_the_ball_asked_for() -> None:
    made = source(named=False, balls=(3, 3))
    for index in range(8):
        balls, rng = made.layout("val", index)
        state = rng.bit_generator.state
        frames = made.render(balls, rng).astype(np.float64)
        rng.bit_generator.state = state
        plain = source().render(balls, rng).astype(np.float64)  # named: nothing is marked
        changed = np.abs(frames - plain).sum(-1) > 0
        assert not changed[1:].any()
        rows, columns = np.nonzero(changed[0])
        away = np.hypot(columns + 0.5 - balls.centre[0, 0, 0], rows + 0.5 - balls.centre[0, 0, 1])
        assert len(away) > 20
        assert away.min() > balls.radius - 0.5
        assert away.max() < balls.radius + 4


@pytest.mark.parametrize("named", [True, False])
def test_balls_stay_inside_apart_and_within_their_step(named: bool) -> None:
    made = source(named=named, num_frames=8, balls=(8, 8), min_gap=3.0)
    moved = []
    for index in range(30):
        balls, _ = made.layout("test", index)
        centre, radius = balls.centre, balls.radius
        assert 4 <= radius <= 5
        assert (centre >= radius).all()
        assert (centre <= 84 - radius).all()
        for i, j in itertools.combinations(range(8), 2):
            assert np.hypot(*(centre[:, i] - centre[:, j]).T).min() >= 2 * radius + 3.0 - 1e-9
        moved.append(np.hypot(*np.moveaxis(np.diff(centre, axis=0), -1, 0)))
    steps = np.concatenate([m.ravel() for m in moved])
    assert steps.max() <= 8.0 + 1e-9
    assert steps.mean() == pytest.approx(2 / 3 * 8, rel=0.12)  # uniform on a disc, but for what is refused
    assert (steps == 0).mean() < 0.01


def test_a_walk_has_no_drift() -> None:
    free = walk(keyed_generator(0, "test"), np.full((1, 2), 500.0), 2000, 1000, 4.0, 2.0, 3.0)
    steps = np.diff(free[:, 0], axis=0)
    assert np.abs(steps.mean(0)).max() < 5 * 1.5 / np.sqrt(2000)  # per axis the standard deviation is step / 2
    assert np.abs(np.corrcoef(steps[:-1, 0], steps[1:, 0])[0, 1]) < 0.12


def test_a_ball_without_room_stays() -> None:
    """Two balls that fill the frame cannot move."""
    still = walk(keyed_generator(0, "test"), np.array([[5.0, 5.0], [15.0, 15.0]]), 5, 20, 5.0, 4.1, 8.0)
    assert (still == still[0]).all()


def test_named_balls_differ_in_colour_and_the_text_names_the_one_asked_for() -> None:
    made, seen = source(radius=(4.0, 4.0)), set()
    for index in range(40):
        balls, _ = made.layout("val", index)
        clip = sample(made, "val", index)
        assert len(set(balls.look.tolist())) == len(balls.look)
        colour = str(clip.phrase).split()[3]
        seen.add(colour)
        assert clip.phrase == f"Where does the {colour} ball end?"
        nearest = []
        for x, y in balls.centre[-1]:
            here = clip.frames[-1, int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2].reshape(-1, 3).mean(0) - 7.5
            nearest.append(min(PALETTE, key=lambda name: float(np.abs(here - PALETTE[name]).sum())))
        assert nearest.index(colour) == 0
        assert len(set(nearest)) == len(nearest)
    assert seen == set(PALETTE)


def test_the_question_is_a_setting() -> None:
    assert sample(source(question="{which}"), "val", 0).phrase in PALETTE
    assert sample(source(question="{which}?", named=False), "val", 0).phrase == "marked?"


def test_followed_balls_look_the_same() -> None:
    made = source(named=False)
    for index in range(10):
        balls, _ = made.layout("val", index)
        assert (balls.rgb == balls.rgb[0]).all()
        assert sample(made, "val", index).phrase == "Where does the marked ball end?"


def test_the_ball_asked_for_is_in_no_special_place() -> None:
    made = source(balls=(8, 8), num_val=400)
    off = np.array([np.hypot(*(made.layout("val", i)[0].centre[0] - 42).T) for i in range(400)])
    assert abs(off[:, 0].mean() - off[:, 1:].mean()) < 5 * off.std() / np.sqrt(400)


def test_numbers_of_balls_by_split() -> None:
    made = source(balls=(6, 8), train_balls=(1, 3), num_train=60)
    assert {len(made.layout("train", i)[0].look) for i in range(60)} == {1, 2, 3}
    assert {len(made.layout("test", i)[0].look) for i in range(30)} == {6, 7, 8}


@pytest.mark.parametrize("named", [True, False])
def test_truth_is_that_of_the_clips(named: bool) -> None:
    made = source(named=named)
    split, truth = made.split("val"), made.truth("val")
    assert isinstance(truth, ClipTruth)
    assert made.truth("val") is truth
    clips = [split.sample(i, 0) for i in range(len(split))]
    assert truth.image_ids.tolist() == [c.id for c in clips] == split.ids.tolist()
    assert truth.questions == tuple(c.phrase for c in clips)
    assert set(truth.answers) == {""}
    assert set(truth.kinds) == {"ball"} == {c.kind for c in clips}
    assert (truth.image_wh == 84).all()
    for clip in clips:
        assert isinstance(clip.id, int)
        assert truth.point_of(clip.id) == clip.point_px
        assert clip.frames.shape == (4, 84, 84, 3)
        assert clip.frames.dtype == np.uint8
        assert (np.asarray(clip.image) == clip.frames[-1]).all()
        assert clip.evidence.shape == (4, 2)
        assert clip.evidence[-1] * 84 == pytest.approx(clip.point_px, abs=1e-4)
        assert {"file_name", "where", "split"} <= set(clip.meta)


def test_one_frame_is_enough_where_a_colour_is_named() -> None:
    assert sample(source(num_frames=1), "val", 0).frames.shape[0] == 1


def test_digests_change_with_what_is_drawn() -> None:
    base = source().digests()
    assert set(base) == set(SPLITS)
    assert source(seed=1).digests()["train"] != base["train"]
    assert source(seed=1).digests()["val"] == base["val"]
    assert source(train_balls=(1, 7)).digests()["train"] != base["train"]
    assert source(train_balls=(1, 7)).digests()["val"] == base["val"]
    assert source(question="{which}").digests()["val"] != base["val"]
    changes: tuple[dict[str, Any], ...] = (
        {"balls": (5, 7)}, {"step": 7.0}, {"radius": (4.0, 4.5)}, {"min_gap": 2.5}, {"named": False}, {"num_frames": 5}, {"frame_size": 98},
    )
    for change in changes:
        assert source(**change).digests()["val"] != base["val"]


@pytest.mark.parametrize(("change", "message"), [
    ({"balls": (0, 3)}, r"data\.source\.balls must be \[least, most\]"),
    ({"balls": (5, 3)}, r"data\.source\.balls must be \[least, most\]"),
    ({"balls": (3,)}, r"data\.source\.balls must be \[least, most\]"),
    ({"train_balls": (1, 2.5)}, r"data\.source\.train_balls must be \[least, most\], whole numbers"),
    ({"balls": (11, 11), "radius": (2.0, 2.0)}, "each has its own colour, and there are 10"),
    ({"train_balls": (11, 11), "radius": (2.0, 2.0)}, "each has its own colour, and there are 10"),
    ({"radius": (5.0, 4.0)}, r"data\.source\.radius"),
    ({"radius": (0.5, 4.0)}, r"data\.source\.radius"),
    ({"radius": (4.0, float("nan"))}, r"data\.source\.radius"),
    ({"radius": (4.0, 20.0)}, "do not surely fit into 84 px"),
    ({"min_gap": 0.0}, "min_gap must be at least 1 px"),
    ({"step": -1.0}, "step not negative"),
    ({"step": float("inf")}, "step not negative"),
    ({"num_frames": 0}, "a clip has at least 1 frame"),
    ({"num_frames": 1, "named": False}, "and 2 where the ball is marked"),
    ({"named": "yes"}, "named must be true or false"),
    ({"question": "Where is it?"}, r"must contain \{which\} once"),
    ({"question": "{which} or {which}"}, r"must contain \{which\} once"),
    ({"question": "{which} of {number}"}, "and no other field"),
    ({"num_test": -1}, "must not be negative"),
])
def test_options_without_a_meaning_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        source(**change)
