from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from coordvlm.data.curriculum import Curriculum, CurriculumBatches
from coordvlm.data.datamodule import CoordDataModule
from coordvlm.data.filtered import limit_objects
from coordvlm.data.loader import Collate, EncodedSplit, EpochBatches, WindowedLoader
from coordvlm.data.mixed import MixedSplit, Part
from coordvlm.utils.errors import ConfigError
from tests.data.fakes import FakeEncoder
from tests.data.test_augment import PHRASES, Few
from tests.data.test_phrases import phrases as phrases_source
from tests.data.test_shapes import shapes

SCORES = np.repeat([1.0, 2.0, 3.0, 4.0], 25)[np.random.default_rng(0).permutation(100)]


def sampler(*, start: float = 0.25, ramp: int = 50, accumulate: int = 1, limit: int | None = None, **order: int) -> CurriculumBatches:
    order = {"batch_size": 4, "seed": 0, **order}
    return CurriculumBatches(SCORES, start=start, ramp=ramp, accumulate=accumulate, limit=limit, **order)


def drawn(batches: EpochBatches, epoch: int) -> list[list[int]]:
    batches.seek(epoch, 0)
    return [[index for _, index in batch] for batch in batches]


def test_the_first_draws_are_the_easiest_and_the_rest_opens_step_by_step() -> None:
    batches = sampler()
    rank = np.empty(100, dtype=int)
    rank[batches._by_difficulty] = np.arange(100)
    for epoch in (0, 1):
        for at, batch in enumerate(drawn(batches, epoch)):
            share = min(1.0, 0.25 + 0.75 * (25 * epoch + at) / 50)  # the formula of the docstring
            assert (rank[batch] < np.ceil(share * 100 - 1e-9)).all()
    assert SCORES[np.concatenate(drawn(batches, 0)[:1])].max() == 1.0
    assert {4.0} <= set(SCORES[np.concatenate(drawn(batches, 1)[-5:])].tolist())


def test_harder_samples_become_more_frequent() -> None:
    first, second = (SCORES[np.concatenate(drawn(sampler(), epoch))].mean() for epoch in (0, 1))
    assert first < second < SCORES.mean()


def test_within_a_round_no_sample_comes_twice() -> None:
    """A ramp that hardly moves: 25 open samples in 100 draws are four rounds of each."""
    counts = Counter(np.concatenate(drawn(sampler(start=0.245, ramp=10**6), 0)).tolist())
    assert set(counts.values()) == {4}
    assert len(counts) == 25
    assert set(SCORES[list(counts)]) == {1.0}


def test_equal_samples_are_in_random_order() -> None:
    flat = CurriculumBatches(np.zeros(100), start=0.1, ramp=10**6, accumulate=1, limit=None, batch_size=4, seed=0)
    other = CurriculumBatches(np.zeros(100), start=0.1, ramp=10**6, accumulate=1, limit=None, batch_size=4, seed=1)
    assert set(flat.order(0).tolist()) != set(range(10))
    assert set(flat.order(0).tolist()) != set(other.order(0).tolist())


def test_after_the_ramp_epochs_are_those_without_a_curriculum() -> None:
    batches, plain = sampler(), EpochBatches(100, batch_size=4, seed=0)
    assert drawn(batches, 2) == drawn(plain, 2)
    assert drawn(batches, 1) != drawn(plain, 1)
    assert drawn(sampler(ramp=0), 0) == drawn(plain, 0)
    assert batches.meaning(2) == plain.meaning(2)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_order_of_one_process(world_size: int) -> None:
    whole = sampler(batch_size=2 * world_size)
    parts = [sampler(batch_size=2, rank=r, world_size=world_size) for r in range(world_size)]
    for epoch in (0, 1):
        merged = np.stack([p.order(epoch)[: 100 // world_size] for p in parts], 1).reshape(-1)
        assert merged.tolist() == whole.order(epoch)[: len(merged)].tolist()


def test_steps_are_counted_in_accumulation_windows_and_limited_epochs() -> None:
    assert [sampler(accumulate=4).competence(0, i) for i in (0, 3, 4)] == [0.25, 0.25, 0.25 + 0.75 / 50]
    assert sampler(accumulate=4).competence(1, 0) == 0.25 + 0.75 * 7 / 50  # 25 batches are 7 windows
    limited = sampler(limit=10)
    assert limited.competence(1, 0) == 0.25 + 0.75 * 10 / 50
    assert len(limited.order(0)) == 40


def test_at_least_a_batch_is_open() -> None:
    assert sampler(start=0.001, batch_size=30).num_open(0, 0) == 30


def loader(**options: object) -> WindowedLoader:
    split = shapes(num_train=100, image_size=16, side_fraction=(0.25, 0.4), num_shapes=(1, 2)).split("train")
    return WindowedLoader(
        EncodedSplit(split, FakeEncoder(), with_answer=True), sampler(**options), Collate(FakeEncoder()),  # type: ignore[arg-type]
        num_workers=0, pin_memory=False, count_fn=None, accumulate=2,
    )


def test_resuming_in_mid_epoch_goes_on_with_the_next_batch() -> None:
    straight, first, second = (loader(accumulate=2) for _ in range(3))
    expected = [b.ids for b in straight] + [b.ids for b in straight]
    seen = []
    for batch in first:
        seen.append(batch.ids)
        if len(seen) == 7:
            break
    second.load_state_dict(first.state_dict())
    seen += [b.ids for b in second] + [b.ids for b in second]
    assert seen == expected


@pytest.mark.parametrize(("changes", "named"), [({"ramp": 60}, "curriculum_steps was 50 and is 60"), ({"start": 0.3}, "curriculum was"),
                                                ({"ramp": 0}, "curriculum_steps was 50 and is None")])
def test_resuming_with_another_curriculum_is_refused_in_mid_epoch_only(changes: dict[str, object], named: str) -> None:
    state = {"epoch": 0, "position": 3, **sampler().meaning(0)}
    with pytest.raises(ConfigError, match=named):
        loader(**changes).load_state_dict(state)
    loader(**changes).load_state_dict({**state, "position": 0})
    loader(**{"ramp": 60, **changes}).load_state_dict({"epoch": 9, "position": 3, **sampler().meaning(9)})  # the ramp is over in both


# --- scores -----------------------------------------------------------------------------------------------------------


def by(name: str) -> Curriculum:
    return Curriculum(by=name, share=0.5, start=0.3)


def test_phrases_are_scored_by_their_words() -> None:
    assert by("length").scores(Few()).tolist() == [len(p.split()) for p in PHRASES]
    assert by("relations").scores(Few(["cup", "left cup", "cup left of dog"])).tolist() == [0, 1, 2]
    assert by("attributes").scores(Few(["cup", "big red cup"])).tolist() == [0, 2]


def test_phrases_are_found_in_the_truth_too() -> None:
    source = Few()
    hidden = SimpleNamespace(split=lambda name: SimpleNamespace(ids=source.ids[::-1]), truth=source.truth)
    assert by("length").scores(hidden).tolist() == [len(p.split()) for p in PHRASES[::-1]]  # type: ignore[arg-type]


def test_objects_are_counted_by_the_source_even_when_it_is_filtered() -> None:
    plain = shapes(num_train=30, num_shapes=(1, 4))
    split = plain.split("train")
    assert by("objects").scores(plain).tolist() == [len(split.sample(i, 0).objects) for i in range(30)]
    fewer = limit_objects(plain, max_objects=2, on_too_many="drop")
    assert set(by("objects").scores(fewer).tolist()) == {1.0, 2.0}
    with pytest.raises(ConfigError, match=r"by=length rates phrases, and this data has none"):
        by("length").scores(plain)


def test_scenes_are_rated_by_their_shapes() -> None:
    source = phrases_source(num_train=12, num_shapes=[2, 5], phrases_per_image=3)
    split = source.split("train")
    assert by("objects").scores(source).tolist() == [split.sample(i, 0).meta["num_shapes"] for i in range(12)]
    assert by("length").scores(source).tolist() == [len(str(split.sample(i, 0).phrase).split()) for i in range(12)]


def test_a_mix_has_no_order_to_keep() -> None:
    split = MixedSplit([Part("a", Few(), 1.0, 0)], num_samples=7, seed=0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="cannot order a mix of data"):
        by("length").scores(SimpleNamespace(split=lambda name: split))  # type: ignore[arg-type]


def test_a_source_may_rate_its_samples_itself() -> None:
    class Rated(Few):
        def difficulty(self, by: str) -> np.ndarray | None:
            return np.arange(7.0)[::-1] if by == "objects" else None

    assert by("objects").scores(Rated()).tolist() == [6, 5, 4, 3, 2, 1, 0]
    assert by("length").scores(Rated()).tolist() == by("length").scores(Few()).tolist()
    with pytest.raises(ConfigError, match="by=objects needs a source that counts"):
        by("objects").scores(Few())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"by": "colour", "share": 0.5, "start": 0.3}, "by must be one of length, attributes, relations, objects, got 'colour'"),
        ({"by": "length", "share": 1.5, "start": 0.3}, r"share must be in \[0, 1\], got 1\.5"),
        ({"by": "length", "share": 0.5, "start": 0}, r"start must be in \(0, 1\], got 0"),
        ({"by": "length", "share": 0.5}, "null or have exactly by, share, start"),
        ({"by": "length", "share": 0.5, "start": 0.3, "end": 1}, "exactly by, share, start"),
        ("length", "got 'length'"),
    ],
)
def test_settings_without_a_meaning_are_refused(values: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Curriculum.parse(values)  # type: ignore[arg-type]
    assert Curriculum.parse(None) is None
    assert Curriculum.parse({"by": "length", "share": 0.5, "start": 0.3}) == by("length")


def test_the_data_module_takes_the_share_of_all_steps() -> None:
    data = CoordDataModule(
        source=shapes(num_train=40, num_shapes=(1, 4)), encoder=FakeEncoder(), batch_size=4, eval_batch_size=4, num_workers=0, seed=0,
        count_fn=None, accumulate=1, val_images=1, on_error="raise", curriculum=Curriculum(by="objects", share=0.5, start=0.2),
    )
    first = [s.id for s in data.first_samples()]
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        max_steps=-1, max_epochs=3, accumulate_grad_batches=1, limit_train_batches=1.0, global_rank=0, world_size=1,
    )
    found = data._sampler()
    assert isinstance(found, CurriculumBatches)
    assert found.ramp == 15
    assert found.order(0)[:4].tolist() == first
    data.trainer.max_epochs = -1  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"set trainer\.max_steps or trainer\.max_epochs"):
        data._sampler()
