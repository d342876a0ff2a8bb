from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest

from coordvlm.contracts import Encoded, Object
from coordvlm.coords.grid import Digits
from coordvlm.sequence.count_encoder import CountEncoder
from coordvlm.sequence.count_order import order_points
from coordvlm.utils.errors import ConfigError, DataError
from tests.counting import ASK, count_sample, counting

T = counting()


def question_of(e: Encoded) -> tuple[int, int, list[float] | None]:
    assert e.question is not None
    target = e.question.target
    return e.question.num, e.question.marked, None if target is None else target.tolist()


def same(a: Encoded, b: Encoded) -> bool:
    return pickle.dumps(a) == pickle.dumps(b)


def ids(e: Encoded) -> str:
    return str(T.tokenizer.decode([i for i in e.prompt_ids.tolist() if i != T.vocab.image_id], skip_special_tokens=False))


def test_a_training_sample_asks_another_step_in_every_epoch_and_the_same_in_the_same_one() -> None:
    encoder, sample = T.encoder(), count_sample(3, 9)
    found = [encoder.encode(sample, epoch=e) for e in range(30)]
    assert len({question_of(e)[1] for e in found}) >= 6
    again = T.encoder()
    assert all(same(a, again.encode(sample, epoch=e)) for e, a in enumerate(found))
    other = T.encoder(seed=1)
    assert any(question_of(other.encode(sample, epoch=e)) != question_of(a) for e, a in enumerate(found))


@pytest.mark.parametrize("target", ["next", "nearest"])
def test_a_validation_sample_asks_the_same_whatever_epoch_and_seed(target: str) -> None:
    encoder, other = T.encoder(target=target), T.encoder(target=target, seed=7)
    asked = set()
    for i in range(12):
        sample = count_sample(i, 6, split="val")
        first = encoder.encode(sample, epoch=0)
        assert same(first, encoder.encode(sample, epoch=5))
        assert same(first, other.encode(sample, epoch=1))
        asked.add(question_of(first)[1])
    assert len(asked) >= 4


def test_only_training_marks_are_off() -> None:
    """Without jitter and drops a sample would look alike in both; the text and the targets do in any case."""
    exact, noisy = T.encoder(jitter=0.0, drop=0.0), T.encoder(jitter=3.0, drop=0.3)
    for i in range(8):
        validation = count_sample(i, 6, split="val")
        assert same(exact.encode(validation, epoch=0), noisy.encode(validation, epoch=0))
    marked = 0
    for i in range(8):
        sample = count_sample(i, 6)
        a, b = exact.encode(sample, epoch=0), noisy.encode(sample, epoch=0)
        assert ids(a) == ids(b)
        assert question_of(a) == question_of(b)
        assert bool((a.pixels != b.pixels).any()) == (question_of(a)[1] > 0)
        marked += question_of(a)[1] > 0
    assert marked >= 3


def test_the_target_is_the_next_in_order_and_the_words_say_how_many_are_marked() -> None:
    encoder = T.encoder(order="left_to_right")
    for epoch in range(10):
        sample = count_sample(epoch, 5)
        points = np.asarray([o.point_px for o in sample.objects])
        ordered = points[np.argsort(points[:, 0])] / (64, 48)
        e = encoder.encode(sample, epoch=epoch)
        k = question_of(e)[1]
        np.testing.assert_allclose(e.question.unmarked, ordered[k:], atol=1e-6)
        if k < 5:
            np.testing.assert_allclose(e.question.target, ordered[k], atol=1e-6)
        words = {0: "Nothing is marked yet.", 1: "1 is marked."}.get(k, f"{k} are marked.")
        assert f"Count: red dot. {words}" in ids(e)


def test_nearest_leaves_any_objects_and_names_the_first_of_them() -> None:
    encoder = T.encoder(target="nearest", mode="regression")
    skipped = 0
    for epoch in range(20):
        sample = count_sample(1, 6)
        points = np.asarray([o.point_px for o in sample.objects])
        ordered = (points[order_points(points, "rows")] / (64, 48)).astype(np.float32)
        q = encoder.encode(sample, epoch=epoch).question
        at = [int(np.flatnonzero((ordered == u).all(1))[0]) for u in q.unmarked]
        assert at == sorted(at)
        np.testing.assert_array_equal(q.target, q.unmarked[0])
        skipped += at != list(range(6 - len(at), 6))
    assert skipped > 5


def test_marks_are_drawn_on_the_marked_objects_alone() -> None:
    """A grey image with discs: what has changed against the image without marks is the discs of the first k."""
    encoder = T.encoder(style="disc", radius=0.06, jitter=0.0, drop=0.0)
    for epoch in range(6):
        sample = count_sample(2, [(8.0, 8.0), (40.0, 8.0), (8.0, 40.0), (40.0, 40.0)])
        e = encoder.encode(sample, epoch=epoch)
        plain = T.encoder(style="none").encode(sample, epoch=epoch)
        changed = (e.pixels != plain.pixels).any((1, 2, 3)).reshape(3, 4, 2, 2).transpose(0, 2, 1, 3).reshape(6, 8)  # patches of 8 px
        k = question_of(e)[1]
        seen = [bool(changed[y // 8 - 1 : y // 8 + 1, x // 8 - 1 : x // 8 + 1].any()) for x, y in ((8, 8), (40, 8), (8, 40), (40, 40))]
        assert seen == [i < k for i in range(4)]


def test_without_an_answer_nothing_is_marked_and_nothing_known() -> None:
    sample = count_sample(4, 5)
    e = T.encoder().encode(sample, epoch=3, with_answer=False)
    assert question_of(e) == (0, 0, None)
    assert e.question.done is None
    assert e.question.unmarked.shape == (0, 2)
    assert "Nothing is marked yet." in ids(e)
    assert (e.pixels == T.encoder(style="none").encode(sample, epoch=3).pixels).all()


# ----------------------------------------------------------------- the loop
def test_the_loop_asks_what_validation_asks() -> None:
    encoder = T.encoder()
    for i in range(8):
        sample = count_sample(i, 5, split="val")
        points = np.asarray([o.point_px for o in sample.objects])
        ordered = points[encoder.in_order(points, (64, 48))]
        want = encoder.encode(sample, epoch=0)
        frame = encoder.open(sample)
        before = frame.tobytes()
        k = question_of(want)[1]
        got = encoder.ask(frame, "red dot", ordered[:k], id=i, size=(64, 48), truth=ordered)
        assert same(want, got)
        assert frame.tobytes() == before
        unknown = encoder.ask(frame, "red dot", ordered[:k], id=i, size=(64, 48))
        assert same(replace(got, question=None), replace(unknown, question=None))
        assert (unknown.question.marked, unknown.question.target, unknown.question.done) == (k, None, None)


def test_more_marks_than_objects_are_an_error_only_where_the_objects_are_known() -> None:
    encoder, frame = T.encoder(), count_sample(0, 0).image
    marks = np.asarray([[3.0, 4.0], [200.0, -5.0]])
    assert encoder.ask(frame, "dot", marks, id=0, size=(64, 48)).question.marked == 2
    with pytest.raises(ValueError, match="image 0: 2 marks on 1 objects"):
        encoder.ask(frame, "dot", marks, id=0, size=(64, 48), truth=marks[:1])


def test_an_empty_image_is_done_at_once() -> None:
    e = T.encoder().encode(count_sample(0, 0), epoch=0)
    assert (question_of(e), e.question.done) == ((0, 0, None), True)
    e = T.encoder(mode="regression").encode(count_sample(0, 0), epoch=0)
    assert (question_of(e), e.question.done) == ((0, 0, None), None)


def test_an_encoder_crosses_to_a_worker() -> None:
    encoder, sample = T.encoder(), count_sample(5, 4)
    there = pickle.loads(pickle.dumps(encoder))
    assert same(encoder.encode(sample, epoch=2), there.encode(sample, epoch=2))


# ----------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (count_sample(7, 2, category=None), r"image 7: a sample of task=count must say what is counted \(category\): got None"),
        (count_sample(7, 2, category="  "), "image 7: a sample of task=count must say what is counted"),
        (count_sample(7, [(3.0, 48.5)]), r"image 7: a point must lie in the image, 64 x 48 px: got \[3.0, 48.5\]"),
        (count_sample(7, [(float("nan"), 4.0)]), "image 7: a point must lie in the image"),
        (replace(count_sample(7, 1), objects=(Object("dot", box_xyxy_px=(0, 0, 5, 5)),)), "image 7: every object that is counted"),
        (replace(count_sample(7, 1), width=60), "image 7: the image's size must be the annotated one, 60 x 48"),
    ],
)
def test_a_sample_that_cannot_be_counted_is_refused(sample: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        T.encoder().encode(sample, epoch=0)  # type: ignore[arg-type]


def test_points_on_the_border_are_in_the_image() -> None:
    e = T.encoder(mode="regression").encode(count_sample(0, [(64.0, 48.0)]), epoch=0)
    assert question_of(e) == (1, 0, [1.0, 1.0])


def test_a_prompt_that_is_too_long_is_refused_by_image() -> None:
    sample = count_sample(8, 0)
    length = len(T.encoder().encode(sample, epoch=0).prompt_ids)
    assert T.encoder(max_length=length).encode(sample, epoch=0)
    with pytest.raises(DataError, match=f"image 8: the prompt must fit into {length - 1} tokens.*got {length}"):
        T.encoder(max_length=length - 1).encode(sample, epoch=0)


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"sequence\.order must be one of rows.*got 'scan'"):
        T.encoder(order="scan")
    for tokens in (ASK[:2], (*ASK[:2], "<obj_end>")):
        with pytest.raises(ConfigError, match=r"sequence\.markers must be the three tokens of x, y and done"):
            T.encoder(ask_tokens=tokens)
    e = T.encoder()
    with pytest.raises(ConfigError, match="coords=unit has no bins"):
        CountEncoder(
            T.tokenizer, T.vocab, Digits("unit"), prompts={}, text_first=True, ask_tokens=ASK, order="rows", steps=e.steps, marks=e.marks,
            resize=e.resize, image_fn=e.image_fn, open_fn=e.open_fn, max_length=9, seed=0,
        )
