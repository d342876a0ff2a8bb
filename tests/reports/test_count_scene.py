"""What is said of a counted image, and which steps are shown."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from coordvlm.contracts import Asked, Prediction, Record
from coordvlm.reports.count_scene import CountScene, choose_steps, count_scene
from coordvlm.reports.gallery import caption_text, choose, scenes
from coordvlm.reports.overlay import GREEN
from tests.reports.counts import answers, dots, draw

TRUE = np.array([[10.0, 10.0], [100.0, 50.0], [150.0, 80.0]])
SIZE = (192.0, 96.0)  # 1 px is 2 px of 384 in x and 4 in y


def asked(k: int, point: tuple[float, float], done: float) -> Asked:
    target = tuple(TRUE[k].tolist()) if k < 3 else None
    return Asked(k, 3, target, TRUE[k:], point, done)  # type: ignore[arg-type]


def scene(*steps: Asked, points: tuple[tuple[float, float], ...] = (), flags: frozenset[str] = frozenset(), any_unmarked: bool = False,
          dropped: int = 0) -> CountScene:  # fmt: skip
    records = [Record("dot", None, 0.9, "ok", point_px=p) for p in points]
    records += [Record("dot", None, 0.9, "repeated", point_px=(10.0, 10.0))] * dropped
    prediction = Prediction(7, (192, 96), tuple(records), flags=flags, asked=steps)
    return count_scene(prediction, TRUE, category="dot", size=SIZE, any_unmarked=any_unmarked)


def test_errors_are_on_a_side_of_384() -> None:
    found = scene(asked(0, (13.0, 11.0), 0.1), asked(3, (0.0, 0.0), 0.9))
    assert found.errors384[0] == pytest.approx(math.hypot(6, 4))
    assert math.isnan(found.errors384[1])


def test_a_step_is_right_when_point_and_end_are() -> None:
    right, far = (11.0, 10.0), (40.0, 10.0)
    for step, expected in ((asked(0, right, 0.1), 1.0), (asked(0, far, 0.1), 0.0), (asked(0, right, 0.9), 0.0), (asked(3, far, 0.9), 1.0),
                           (asked(3, far, 0.2), 0.0)):  # fmt: skip
        assert scene(step).step_share == expected


def test_the_nearest_unmarked_object_is_the_target_where_any_is_right() -> None:
    step = asked(0, (101.0, 50.0), 0.1)
    assert scene(step).errors384[0] > 100
    found = scene(step, any_unmarked=True)
    assert found.errors384[0] == pytest.approx(2.0)
    assert found.asked[0].target_px == (100.0, 50.0)


def test_a_count_pairs_points_one_to_one() -> None:
    done = frozenset({"finished"})
    found = scene(points=((11.0, 10.0), (9.0, 10.0), (100.0, 51.0)), flags=done)
    assert len(found.pairs) == 2
    assert found.loc_f1 == pytest.approx(4 / 6)
    assert found.score == pytest.approx(4 / 6)
    assert math.isnan(scene(asked(0, (0.0, 0.0), 0.1)).loc_f1)
    empty = count_scene(Prediction(1, (9, 9), (), flags=done), np.zeros((0, 2)), category="dot", size=(9, 9), any_unmarked=False)
    assert empty.loc_f1 == 1.0


def test_captions() -> None:
    full = scene(asked(0, (10.0, 11.0), 0.1), asked(3, (0.0, 0.0), 0.1), points=((10.0, 10.0),), flags=frozenset({"repeated"}), dropped=3)
    counted = "1 counted, 3 true · F1 0.50 · repeated · 3 × repeated"
    assert full.caption() == f"dot, sample 7 · {counted} · 1 of 2 steps right · error 4.0 px of 384"
    assert scene(asked(0, (10.0, 11.0), 0.1)).caption() == "dot, sample 7 · 3 true · 1 of 1 steps right · error 4.0 px of 384"
    assert scene().caption() == "dot, sample 7 · 3 true · no answer"


def test_marked_objects_are_those_not_left_in_spite_of_float32() -> None:
    step = asked(2, (0.0, 0.0), 0.1)
    rounded = replace(step, unmarked_px=(TRUE[2:] / SIZE).astype(np.float32).astype(np.float64) * SIZE)
    assert scene().marked_px(rounded).tolist() == TRUE[:2].tolist()
    assert scene().marked_px(asked(3, (0.0, 0.0), 0.9)).tolist() == TRUE.tolist()
    assert scene().marked_px(asked(0, (0.0, 0.0), 0.9)).tolist() == []


def test_without_a_count_the_worst_step_is_drawn() -> None:
    truth = dots(4)
    good, bad = (replace(answers(truth, noise_px=0.0, loop=False)[3].asked[0], point_px=p) for p in ((0.0, 0.0), (100.0, 90.0)))
    good = replace(good, point_px=good.target_px)  # type: ignore[arg-type]
    prediction = Prediction(3, (192, 96), (), asked=(good, bad))
    one = scenes(truth, [prediction], None)[0]
    assert one.count is not None
    image = draw(truth, 3)
    assert one.count.draw(image).tobytes() == one.count.draw_step(image, 1).tobytes()
    assert (np.asarray(one.count.draw(image)) == GREEN).all(2).any()


def test_the_gallery_ranks_counted_images_by_their_score() -> None:
    truth = dots(20)
    near, far = answers(truth, noise_px=0.2), answers(truth, noise_px=9.0, wrong_done=0.5)
    items = scenes(truth, [far[i] if i % 2 else near[i] for i in range(20)], None)
    assert [s.image_id for s in items] == list(range(20))
    groups = choose(items, each=5)
    assert all(s.image_id % 2 for s in groups["worst"])
    assert not any(s.image_id % 2 for s in groups["best"])
    assert caption_text(items[1]).startswith("blue <b>dot</b>, sample 1 · ")


def test_steps_are_chosen_by_error_once_and_one_per_sample() -> None:
    truth = dots(12)
    items = [s.count for s in scenes(truth, answers(truth, noise_px=2.0), None) if s.count is not None]
    chosen = choose_steps(items, 3)
    errors = {name: [s.errors384[i] for s, i in group] for name, group in chosen.items()}
    everything = np.sort(np.concatenate([s.errors384[np.isfinite(s.errors384)] for s in items]))
    assert list(chosen) == ["best", "median", "worst"]
    assert errors["best"][0] == everything[0]
    assert errors["worst"][0] == everything[-1]
    assert max(errors["best"]) < min(errors["median"]) <= float(np.median(everything)) <= max(errors["median"]) < min(errors["worst"])
    for group in chosen.values():
        assert len({s.sample_id for s, _ in group}) == len(group) == 3
    assert choose_steps([], 3) == {"best": [], "median": [], "worst": []}
