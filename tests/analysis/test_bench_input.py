from __future__ import annotations

import numpy as np
import pytest

from coordvlm import build
from coordvlm.analysis.bench_input import DESCRIPTIONS, PARTS, Spread, measure_input, read_split, write_images
from coordvlm.contracts import ResizeRule
from tests.compose import compose


def test_made_up_images_are_as_heavy_as_photographs(tmp_path):
    file = write_images(tmp_path, num_images=3, size=(640, 480), num_objects=7, quality=95, seed=0)
    sizes = [p.stat().st_size for p in tmp_path.glob("*.jpg")]
    assert 90_000 < np.mean(sizes) < 200_000  # COCO's 640 x 480 images: about 160 kB
    split = read_split(file)
    assert [len(split.sample(i, 0).objects) for i in range(3)] == [7, 7, 7]
    assert len({o.desc for i in range(3) for o in split.sample(i, 0).objects}) > 7
    assert len(set(DESCRIPTIONS)) == 80


def test_every_part_takes_time_and_the_encoder_stays_as_it_was(tmp_path):
    encoder = build.build_model(compose(tmp_path / "run")).encoder
    before = encoder.resize
    split = read_split(write_images(tmp_path, num_images=4, size=(100, 80), num_objects=2, quality=90, seed=0))
    rule = ResizeRule(mode="smart", patch=14, merge=2, min_pixels=3136, max_pixels=10**6, size=None)
    found = measure_input(split, encoder, rule, batch_size=3, passes=2)
    assert found.model_size == (112, 84)
    assert set(found.part_ms) == set(PARTS)
    assert min(found.part_ms.values()) > 0
    assert sum(found.part_ms.values()) == pytest.approx(1e3 / found.per_cpu_s.median, rel=1.0)
    assert found.per_s.low <= found.per_s.median <= found.per_s.high
    assert encoder.resize is before


def test_spread():
    assert Spread.of([3, 1, 2]) == Spread(2, 1, 3)
