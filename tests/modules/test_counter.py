"""The loop and the single steps, asked of a stand-in for the model whose answers are written down."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from coordvlm.contracts import Batch, ModelOutput, Question, Sample
from coordvlm.modules.counter import REPEATED, Counter, CountSettings, steps_to_ask
from coordvlm.utils.errors import ConfigError
from tests.counting import count_sample, counting

T = counting()
SIZE = (64, 48)
SETTINGS = CountSettings(
    questions=4, loop=True, max_steps=6, stop_done=0.5, repeats=2, repeat_radius=5.0, window=1, max_batch=64,
)
#: (question) -> (point in px, probability that all is marked)
Says = Callable[[Question], tuple[tuple[float, float], float]]


@dataclass
class Model:
    """Answers questions by ``says``; keeps the batches it saw."""

    says: Says
    rows: Any = field(default_factory=lambda: SimpleNamespace(new_ids=torch.zeros(0)))
    seen: list[Batch] = field(default_factory=list)

    def __call__(self, batch: Batch, needs: Collection[str]) -> ModelOutput:
        assert set(needs) == {"point_xy", "done_logit"}
        self.seen.append(batch)
        answers = [self.says(q) for q in batch.questions]
        xy = torch.tensor([p for p, _ in answers], dtype=torch.float64) / torch.tensor(batch.sizes) * 2 - 1
        return ModelOutput(point_xy=xy.float(), done_logit=torch.logit(torch.tensor([d for _, d in answers])))


def counter(says: Says, samples: Sequence[Sample] = (), **settings: Any) -> tuple[Counter, Model]:
    model = Model(says)
    known = {s.id: s for s in samples}
    made = Counter(
        model, T.encoder(), replace(SETTINGS, **settings), bin_values=torch.empty(0), find=known.__getitem__,  # type: ignore[arg-type]
    )  # fmt: skip
    return made, model


def named(category: str, seed: int = 0, points: int | list[tuple[float, float]] = 0, size: tuple[int, int] = SIZE) -> Sample:
    return count_sample(seed, points, size, split="test", category=category)


def script(**answers: Sequence[tuple[tuple[float, float], float]]) -> Says:
    """By category, the answer after so many marks."""
    return lambda q: answers[q.category][q.marked]


FAR = [((8.0 + 12 * i, 24.0), 0.1) for i in range(5)]


def test_every_count_ends_by_itself_and_its_points_come_in_the_order_they_were_found() -> None:
    says = script(two=[*FAR[:2], ((0.0, 0.0), 0.9)], none=[((0.0, 0.0), 0.8)], ever=[*FAR, *FAR[:1]], stuck=[FAR[0]] * 6)
    made, model = counter(says)
    samples = [named("two", 1), named("none", 2), named("ever", 3), named("stuck", 4)]
    two, none, ever, stuck = made.count(samples, "heads")
    assert [set(p.flags) for p in (two, none, ever, stuck)] == [{"finished"}, {"finished"}, {"step_limit"}, {"repeated"}]
    assert [p.sample_id for p in (two, none, ever, stuck)] == [1, 2, 3, 4]
    assert none.records == ()
    np.testing.assert_allclose([r.point_px for r in two.records], [p for p, _ in FAR[:2]], atol=1e-5)
    assert [r.score for r in two.records] == pytest.approx([0.9, 0.9])
    assert [r.status for r in ever.records] == ["ok"] * 5 + [REPEATED]
    assert [r.status for r in stuck.records] == ["ok", REPEATED, REPEATED]
    assert [len(b) for b in model.seen] == [4, 3, 3, 1, 1, 1], "those that ended are not asked again"


def test_questions_show_the_marks_so_far_and_know_nothing_of_the_truth() -> None:
    sample = named("two", 1, [(8.0, 24.0), (60.0, 40.0)])
    made, model = counter(script(two=[*FAR[:2], ((0.0, 0.0), 0.9)]))
    told: list[tuple[int, float]] = []
    made.count([sample], "heads", watch=lambda s, frame, marks, p: told.append((len(marks), p)))
    assert told == [(0, pytest.approx(0.1)), (1, pytest.approx(0.1)), (2, pytest.approx(0.9))]
    encoder = T.encoder()
    for k, batch in enumerate(model.seen):
        marks = np.asarray([p for p, _ in FAR[:k]]).reshape(-1, 2)
        want = encoder.ask(encoder.open(sample), "two", marks, id=1, size=SIZE)
        assert torch.equal(batch.pixels, torch.from_numpy(want.pixels))
        assert torch.equal(batch.input_ids[0], torch.from_numpy(want.prompt_ids))
        assert not batch.ask_has_xy.any()
        assert not batch.ask_has_hit.any()


def test_counts_do_not_depend_on_how_many_are_asked_at_once() -> None:
    says = script(two=[*FAR[:2], ((0.0, 0.0), 0.9)], none=[((0.0, 0.0), 0.8)], ever=[*FAR, *FAR[:1]])
    samples = [named(name, i, size=size) for i, (name, size) in enumerate([("ever", SIZE), ("none", (32, 64)), ("two", SIZE)])]
    found = []
    for size in (1, 2, 64):
        made, model = counter(says, max_batch=size)
        found.append([(p.flags, p.records) for p in made.count(samples, "heads")])
        assert max(len(b) for b in model.seen) == min(size, 3)
    assert found[0] == found[1] == found[2]


def test_a_point_is_repeated_within_the_radius_of_a_side_of_384_of_any_mark() -> None:
    """On 64 x 48 px, 5 px of 384 are 0.83 px across and 0.63 px down. A repeat between two new points does not add up."""
    points = [(10.0, 10.0), (10.8, 10.0), (20.0, 10.0), (20.0, 10.7), (10.0, 10.6), (30.0, 10.0)]
    made, _ = counter(script(it=[(p, 0.1) for p in points]))
    (found,) = made.count([named("it")], "heads")
    assert [r.status for r in found.records] == ["ok", REPEATED, "ok", "ok", REPEATED, "ok"]
    assert found.flags == {"step_limit"}
    assert len(found.kept) == 4


def test_points_outside_the_image_are_kept_as_they_are_and_do_not_stop_the_loop() -> None:
    points = [(-32.0, -24.0), (96.0, 72.0), (64.0, 48.0), (0.0, 0.0)]  # the clamp is at half a side beyond the edge
    for style in ("numbered", "dot", "heatmap", "none"):
        made, _ = counter(script(it=[*((p, 0.1) for p in points), ((0.0, 0.0), 0.9)]))
        made.encoder = T.encoder(style=style)
        (found,) = made.count([named("it")], "heads")
        np.testing.assert_allclose([r.point_px for r in found.records], points, atol=1e-4)
        assert found.flags == {"finished"}


# --- the test ---------------------------------------------------------------------------------------------------------


def test_single_steps_have_true_marks_and_the_loop_is_beside_them() -> None:
    samples = [named("dots", 7, 5), named("dots", 8, 0), named("dots", 9, 1, (32, 64))]
    made, model = counter(lambda q: ((10.0, 10.0), 0.75 if q.marked else 0.25), samples, max_batch=2)
    batch = T.encoder().collate([T.encoder().encode(s, epoch=0, with_answer=False) for s in samples])
    found = made.ask(batch, ["heads"])["heads"]
    encoder = T.encoder()
    for sample, prediction in zip(samples, found, strict=True):
        num = len(sample.objects)
        assert prediction.sample_id == sample.id
        assert prediction.size == (sample.width, sample.height)
        assert [a.k for a in prediction.asked] == steps_to_ask(num, 4, sample.id)
        assert {a.num for a in prediction.asked} == {num}
        points = np.asarray([o.point_px for o in sample.objects]).reshape(-1, 2)
        points = points[encoder.in_order(points, prediction.size)]
        for asked in prediction.asked:
            assert asked.done == pytest.approx(0.75 if asked.k else 0.25)
            np.testing.assert_allclose(asked.point_px, (10.0, 10.0), atol=1e-4)
            np.testing.assert_allclose(asked.unmarked_px, points[asked.k :], atol=1e-4)
            assert (asked.target_px is None) == (asked.k == num)
            if asked.target_px is not None:
                np.testing.assert_allclose(asked.target_px, points[asked.k], atol=1e-4)
        assert len(prediction.records) == 1
        assert prediction.flags == {"finished"}
    assert max(len(b) for b in model.seen) == 2


def test_validation_asks_the_batch_as_it_is_and_without_the_loop_nobody_counted() -> None:
    samples = [named("dots", i, n) for i, n in enumerate((3, 0))]
    encoder = T.encoder()
    batch = encoder.collate([encoder.encode(s, epoch=0) for s in samples])
    made, model = counter(lambda q: ((1.0, 1.0), 0.5), samples)
    once = made.ask(batch, ["heads"], once=True)["heads"]
    assert [(p.asked[0].k, p.asked[0].num) for p in once] == [(q.marked, q.num) for q in batch.questions]
    assert len(model.seen) == 1
    made, _ = counter(lambda q: ((1.0, 1.0), 0.5), samples, loop=False)
    found = made.ask(batch, ["heads"])["heads"]
    assert [(p.records, p.flags) for p in found] == [((), frozenset())] * 2
    assert [len(p.asked) for p in found] == [4, 1]


@pytest.mark.parametrize(("num", "most", "expected"), [(0, 6, [0]), (1, 6, [0, 1]), (2, 6, [0, 1, 2]), (9, 1, [9]), (9, 2, [8, 9])])
def test_which_steps_are_asked(num: int, most: int, expected: list[int]) -> None:
    assert steps_to_ask(num, most, 3) == expected


def test_further_steps_are_the_same_in_every_run_and_differ_between_samples() -> None:
    found = [steps_to_ask(100, 6, i) for i in range(30)]
    assert found == [steps_to_ask(100, 6, i) for i in range(30)]
    assert all(len(f) == 6 and f[-2:] == [99, 100] and f == sorted(set(f)) for f in found)
    assert len({tuple(f) for f in found}) > 25


@pytest.mark.parametrize(
    ("setting", "value"), [("questions", 0), ("max_steps", True), ("stop_done", 1.0), ("repeat_radius", 0.0), ("max_batch", 1.5)]
)
def test_settings_without_a_meaning_are_refused(setting: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"decode\.{setting} must"):
        replace(SETTINGS, **{setting: value})
