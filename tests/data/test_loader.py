from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from coordvlm.data.loader import Collate, EncodedSplit, EpochBatches, EvalLoader, WindowedLoader
from coordvlm.utils.errors import ConfigError, DataError
from tests.data.fakes import FakeEncoder, coco_json, load_coco, write_coco
from tests.data.test_shapes import shapes


def loader(num=10, *, batch_size=2, accumulate=2, num_workers=0, seed=0, split=None, **options):
    split = split or shapes(num_train=num, image_size=16, side_fraction=(0.25, 0.4), num_shapes=(1, 2)).split("train")
    return WindowedLoader(
        EncodedSplit(split, FakeEncoder(), with_answer=True), EpochBatches(len(split), batch_size=batch_size, seed=seed),
        Collate(FakeEncoder()), num_workers=num_workers, pin_memory=False, count_fn=options.pop("count_fn", None),
        accumulate=accumulate, **options,
    )


def ids(batches):
    return [b.ids for b in batches]


def test_every_sample_once_per_epoch_in_an_order_by_seed_and_epoch():
    one, other = loader(9), loader(9)
    epochs = [ids(one), ids(one)]
    assert all(sorted(sum(e, ())) == list(range(9)) for e in epochs)
    assert epochs[0] != epochs[1]
    assert [ids(other), ids(other)] == epochs
    assert ids(loader(9, seed=1)) != epochs[0]


def test_the_epoch_reaches_source_and_encoder_in_kept_workers():
    class EpochEncoder(FakeEncoder):
        def encode(self, sample, *, epoch, with_answer=True):
            encoded = super().encode(sample, epoch=epoch)
            return type(encoded)(**{**vars(encoded), "size": (epoch, epoch)})

    split = shapes(num_train=4).split("train")
    train = WindowedLoader(
        EncodedSplit(split, EpochEncoder(), True), EpochBatches(4, batch_size=2, seed=0), Collate(EpochEncoder()), num_workers=1,
        pin_memory=False, count_fn=None, accumulate=1,
    )
    assert [[b.sizes[0][0] for b in train] for _ in range(3)] == [[0, 0], [1, 1], [2, 2]]
    train.close()


def test_windows_carry_the_counts_of_all_their_batches():
    def count(batch):
        return {"text": batch.counts["text"], "images": len(batch.ids)}

    batches = list(loader(9, count_fn=count))  # 5 batches: windows of 2, 2, 1; the last batch has one sample
    assert [(b.window.index, b.window.size) for b in batches] == [(0, 2), (1, 2), (0, 2), (1, 2), (0, 1)]
    assert {b.window.accumulate for b in batches} == {2}
    for window in (batches[:2], batches[2:4], batches[4:]):
        total = Counter()
        for batch in window:
            total.update(count(batch))
        assert all(b.window.counts == dict(total) for b in window)
    assert batches[-1].window.counts["images"] == 1


def test_a_limit_cuts_the_last_window():
    train = loader(20, accumulate=4, limit=6)
    assert len(train) == 6
    assert [(b.window.index, b.window.size) for b in train] == [(0, 4), (1, 4), (2, 4), (3, 4), (0, 2), (1, 2)]
    assert train.state_dict()["epoch"] == 1


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 3, 5, 7])
def test_resuming_goes_on_with_the_next_batch(num_workers, stop):
    straight = loader(9)
    expected = ids(straight) + ids(straight)
    first = loader(9, num_workers=num_workers)
    seen = []
    while len(seen) < stop:
        for batch in first:
            seen.append(batch.ids)
            if len(seen) == stop:
                break
    state = first.state_dict()
    first.close()
    second = loader(9, num_workers=num_workers)
    second.load_state_dict(state)
    assert len(second) == 5  # of the whole epoch: the trainer counts from its own position
    while len(seen) < 10:
        seen += ids(second)
    second.close()
    assert seen == expected


def test_resuming_inside_a_window_makes_a_shorter_one():
    train = loader(8, accumulate=4)
    train.load_state_dict({**train.state_dict(), "position": 1})
    batches = list(train)
    assert [(b.window.index, b.window.size) for b in batches] == [(0, 3), (1, 3), (2, 3)]
    assert batches[0].window.counts["text"] == sum(b.counts["text"] for b in batches)


def test_skipped_batches_are_not_rendered():
    class Counting(FakeEncoder):
        calls = 0

        def encode(self, sample, *, epoch, with_answer=True):
            Counting.calls += 1
            return super().encode(sample, epoch=epoch)

    split = shapes(num_train=10).split("train")
    train = WindowedLoader(
        EncodedSplit(split, Counting(), True), EpochBatches(10, batch_size=2, seed=0), Collate(Counting()), num_workers=0,
        pin_memory=False, count_fn=None, accumulate=1,
    )
    train.load_state_dict({**train.state_dict(), "position": 4})
    assert len(list(train)) == 1
    assert Counting.calls == 2


def test_a_batch_handed_out_but_not_processed_is_not_done():
    done = 0
    train = loader(8, processed=lambda: done)
    batches = iter(train)
    next(batches)
    done = 1
    next(batches)  # interrupted while the trainer works on this one
    assert train.state_dict()["position"] == 1


def test_resuming_with_another_order_is_refused_in_mid_epoch_only():
    state = loader(8).state_dict()
    loader(8, batch_size=3).load_state_dict(state)
    with pytest.raises(ConfigError, match=r"batch_size was 2 and is 3; seed was 0 and is 5"):
        loader(8, batch_size=3, seed=5).load_state_dict({**state, "position": 2})


def test_an_outdated_iteration_does_not_move_the_loader():
    train = loader(8)
    old = iter(train)
    next(old)
    new = iter(train)
    with pytest.raises(RuntimeError, match="replaced by a later iter"):
        next(old)
    assert ids(new) == ids(loader(8))[1:]


@pytest.mark.parametrize(("num", "batch_size", "world_size"), [(10, 2, 3), (9, 4, 2), (8, 4, 2), (2, 4, 5), (7, 1, 3), (1, 2, 2)])
def test_batches_of_all_ranks_together_are_those_of_one_process(num, batch_size, world_size):
    """In the last, ragged batch too: nothing is repeated, nothing is left out, and every rank takes as many steps."""
    ranks = [EpochBatches(num, batch_size=batch_size, seed=0, rank=r, world_size=world_size) for r in range(world_size)]
    (alone,) = (EpochBatches(num, batch_size=batch_size * world_size, seed=0),)
    for one in (alone, *ranks):
        one.seek(4, 0)
    steps = [list(one) for one in ranks]
    assert [len(s) for s in steps] == [len(alone)] * world_size == [len(one) for one in ranks]
    assert all(batch for s in steps for batch in s)
    together = [sorted(key for batch in step for key in batch if key[1] >= 0) for step in zip(*steps, strict=True)]
    assert together == [sorted(batch) for batch in alone]


def test_a_rank_without_samples_gets_a_prompt_with_nothing_supervised():
    split = shapes(num_train=3, image_size=16, side_fraction=(0.25, 0.4), num_shapes=(1, 2)).split("train")
    train = WindowedLoader(
        EncodedSplit(split, FakeEncoder(), with_answer=True), EpochBatches(3, batch_size=1, seed=0, rank=1, world_size=2),
        Collate(FakeEncoder()), num_workers=0, pin_memory=False, count_fn=None, accumulate=2,
    )
    real, filler = train
    assert max(real.counts.values()) > 0
    assert len(filler) == 1
    assert set(filler.counts.values()) == {0}
    assert real.window.counts == {**real.counts}


def test_a_position_counts_the_samples_of_all_ranks():
    def train(batch_size, **ranks):
        split = shapes(num_train=12).split("train")
        return WindowedLoader(
            EncodedSplit(split, FakeEncoder(), with_answer=True), EpochBatches(12, batch_size=batch_size, seed=0, **ranks),
            Collate(FakeEncoder()), num_workers=0, pin_memory=False, count_fn=None, accumulate=1,
        )

    two, one = train(2, rank=1, world_size=2), train(4)
    next(iter(two))
    one.load_state_dict(two.state_dict())
    assert len(list(one)) == 2
    with pytest.raises(ConfigError, match="batch_size was 4 and is 2"):
        train(2).load_state_dict(two.state_dict())


@pytest.mark.parametrize(("options", "message"), [
    ({"batch_size": 0}, "batch_size must be at least 1, got 0"), ({"accumulate": 0}, "accumulate"), ({"limit": 0}, "limit_train_batches"),
    ({"num_workers": -1}, "num_workers"),
])
def test_meaningless_numbers_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        loader(4, **options)


def test_an_empty_split_is_refused():
    with pytest.raises(DataError, match="at least one sample"):
        loader(0)


@pytest.fixture
def broken(tmp_path):
    """Six images, the third one (id 3) unreadable."""
    write_coco(tmp_path, coco_json(images=[{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in (1, 2, 3, 4, 5, 7)]))
    for i in (1, 2, 3, 4, 5, 7):
        Image.new("RGB", (40, 30), (i, 0, 0)).save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "images" / "3.png").write_bytes(b"\x89PNG broken")
    return load_coco(tmp_path).split("train")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_in_a_worker_arrives_as_it_was_raised(broken, num_workers):
    train = loader(split=broken, num_workers=num_workers)
    with pytest.raises(DataError) as caught:
        list(train)
    assert str(caught.value).startswith(str(broken.sample(2, 0).image))
    assert "(image 3): the image must be readable and complete" in str(caught.value)
    assert "Traceback" not in str(caught.value)
    train.close()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_unreadable_images_can_be_left_out_and_are_counted(broken, num_workers):
    train = loader(split=broken, num_workers=num_workers, skip_errors=True)
    assert sorted(sum(ids(train), ())) == [1, 2, 4, 5, 7]
    assert [("image 3" in message, n) for message, n in train.skipped.items()] == [(True, 1)]
    train.close()


def test_a_training_batch_without_any_readable_image_is_an_error(broken):
    with pytest.raises(DataError, match="no sample of a training batch could be read"):
        list(loader(split=broken, batch_size=1, skip_errors=True))


def test_other_errors_are_never_left_out():
    class Misconfigured(FakeEncoder):
        def encode(self, sample, *, epoch, with_answer=True):
            raise ConfigError("prompt too long")

    split = shapes(num_train=4).split("train")
    train = WindowedLoader(
        EncodedSplit(split, Misconfigured(), True), EpochBatches(4, batch_size=2, seed=0), Collate(Misconfigured()), num_workers=0,
        pin_memory=False, count_fn=None, accumulate=1, skip_errors=True,
    )
    with pytest.raises(ConfigError, match="prompt too long"):
        list(train)


def test_evaluation_visits_each_image_once_over_ranks(broken):
    def visit(**options):
        data = EncodedSplit(broken, FakeEncoder(), with_answer=False)
        return EvalLoader(data, np.arange(6), Collate(FakeEncoder()), batch_size=2, num_workers=0, pin_memory=False, **options)

    ranks = [visit(skip_errors=True, rank=r, world_size=2) for r in range(2)]
    assert [sum(ids(rank), ()) for rank in ranks] == [(1, 5), (2, 4, 7)]
    assert [sum(rank.skipped.values()) for rank in ranks] == [1, 0]
    assert all(b.counts["text"] == 0 and b.window is None for b in ranks[1])
    with pytest.raises(DataError, match="image 3"):
        list(visit())
