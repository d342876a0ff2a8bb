"""The first guess of a batch size: bounded, smaller for larger images, and larger than what a row really caches."""

from __future__ import annotations

import pytest
import torch

from coordvlm.analysis import decode_batch
from coordvlm.analysis.decode_batch import decode_batch_size, free_memory, is_out_of_memory, row_bytes
from coordvlm.models.cache import RowCache
from tests.tiny import Tiny, random_sample, tiny

CPU = torch.device("cpu")


def encoded(t: Tiny, side: int):
    return t.encoder.encode(random_sample(0, 1, (side, side)), epoch=0, with_answer=False)


def test_a_row_takes_more_than_its_cache_and_grows_with_the_image() -> None:
    t = tiny()
    small, large = encoded(t, 32), encoded(t, 256)
    batch = t.encoder.collate([large])
    cache = RowCache(int(batch.prompt_lengths.max()) + 20)
    features = t.backbone.image_features(batch.pixels, batch.image_grid_thw)
    t.backbone.hidden(batch.input_ids, batch.position_ids, features=features, image_pos=batch.image_pos, cache=cache)
    held = sum(x.nbytes for store in (cache.keys, cache.values) for x in store.values())
    assert row_bytes(t.backbone, large, 20) > 2 * held
    assert row_bytes(t.backbone, large, 20) > row_bytes(t.backbone, small, 20)


def test_memory_and_threads_bound_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    t = tiny()
    small, large = encoded(t, 32), encoded(t, 256)
    sizes = {}
    for free in (0.0, 1e7, 1e8, 1e12, None):
        monkeypatch.setattr(decode_batch, "free_memory", lambda device, free=free: free)
        sizes[free] = decode_batch_size(t.backbone, large, max_new_tokens=20, device=CPU)
        assert 1 <= sizes[free] <= decode_batch_size(t.backbone, small, max_new_tokens=20, device=CPU) <= 32
    assert sizes[0.0] == 1
    assert sizes[0.0] < sizes[1e8] <= sizes[1e12]


def test_free_memory_is_a_number_below_the_machine_s() -> None:
    free = free_memory(CPU)
    assert free is not None
    assert 0 <= free <= decode_batch.device_memory(CPU)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True), (MemoryError(), True), (RuntimeError("CUDA error: shape"), False),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True), (ValueError("out of memory"), False),
        (RuntimeError("MPS backend out of memory"), True),
    ],
)  # fmt: skip
def test_what_a_smaller_batch_may_cure(error: Exception, is_memory: bool) -> None:
    assert is_out_of_memory(error) == is_memory
