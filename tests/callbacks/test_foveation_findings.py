"""What an evaluation of clips leaves behind: tables, pictures, and only as many clips as asked for."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from coordvlm.callbacks.foveation_findings import count_of, write_foveation_findings
from coordvlm.contracts import ClipTruth
from coordvlm.data.overfit import FewSamples
from coordvlm.modules.looker import Looker
from coordvlm.utils.errors import ConfigError
from tests.clips import SIZE, TinyClips, clips, tiny_clips

NUM, FRAMES, LAYERS, HEADS = 5, 2, 2, 4


def experiment(tiny: TinyClips, *, diagnosed: int = 4, pictures: int = 2, arms: tuple[str, ...] = ("coarse", "fine", "no_text")) -> Any:
    samples = clips([f"Which symbol is in cell A{i}?" for i in range(NUM)], ["circle"] * NUM, frames=FRAMES)
    for clip in samples:
        clip.evidence[-1] = (0.5, 0.5)
    truth = ClipTruth.of(
        ids=[c.id for c in samples], questions=[c.phrase or "" for c in samples], answers=[c.answer for c in samples], kinds=["qa"] * NUM,
        source_clip=range(NUM), sizes=[(SIZE, SIZE)] * NUM, points=[None] * NUM,
    )
    looker = Looker(
        tiny.model, tiny.tokenizer, main="fine", arms=arms, max_new_tokens=2, window=3, bin_values=tiny.grid.bin_values(),
        point_tokens=True,
    )
    return SimpleNamespace(
        truth=truth, module=SimpleNamespace(backbone=tiny.model, answerer=looker),
        source=SimpleNamespace(split=lambda name: FewSamples(name, samples)), model=SimpleNamespace(encoder=tiny.encoder),
        decode={"diagnosed": diagnosed, "pictures": pictures}, losses=SimpleNamespace(needs=frozenset({"text_nll"})),
        cfg=SimpleNamespace(data=SimpleNamespace(eval_batch_size=3, on_error="raise")),
    )


@pytest.fixture(scope="module")
def tiny() -> TinyClips:
    return tiny_clips(num_frames=FRAMES)


def test_tables_and_pictures_are_written(tmp_path: Path, tiny: TinyClips) -> None:
    tiny.model.train()
    found = write_foveation_findings(tmp_path, experiment(tiny), asked="test")
    assert found is not None
    assert tiny.model.training, "left as it was"
    stats = json.loads((tmp_path / "foveation_stats.json").read_text())
    assert stats["clips"] == 4
    assert stats["grid"] == [3, 3]
    assert list(stats["arms"]) == ["coarse", "fine"], "what sees no question is not diagnosed"
    for arm in stats["arms"].values():
        assert np.asarray(arm["entropy"]).shape == (LAYERS, HEADS)
        assert 0 <= np.min(arm["entropy"]) <= np.max(arm["entropy"]) <= 1 + 1e-6
        assert np.asarray(arm["hit"]).shape == (LAYERS, HEADS)
        assert len(arm["frame_loss"]) == FRAMES
        assert all(np.isfinite(v) for v in arm["queries"].values())
    assert stats["arms"]["coarse"]["queries"]["cos_static"] == pytest.approx(1.0, abs=1e-5)
    rows = list(csv.DictReader((tmp_path / "foveation_stats.csv").open()))
    assert len(rows) == 2 * LAYERS * HEADS
    assert float(rows[-1]["entropy"]) == pytest.approx(stats["arms"]["fine"]["entropy"][-1][-1])
    drawn = sorted(p.name for p in (tmp_path / "looking").iterdir())
    assert drawn == ["clip_0.gif", "clip_0.png", "clip_1.gif", "clip_1.png"]
    for path in (tmp_path / "looking").glob("*.gif"):
        assert path.stat().st_size <= 2_000_000
        with Image.open(path) as gif:
            assert gif.n_frames == FRAMES


def test_maps_of_a_pictured_clip_are_those_of_its_own_frames(tmp_path: Path, tiny: TinyClips) -> None:
    """Against a batch of that clip alone."""
    made = experiment(tiny)
    found = write_foveation_findings(tmp_path, made, asked="test")
    assert found is not None
    clip = made.source.split("test").sample(1, 0)
    batch = tiny.of([clip])
    with torch.no_grad():
        tiny.model.eval()
        seen = tiny.model.coarse(batch, tiny.model.encode(batch.frames), attention=True).looked.attention
    assert seen is not None
    assert found.seen[1].maps["coarse"] == pytest.approx(seen.mean((0, 2)).reshape(FRAMES, 3, 3).numpy(), abs=1e-5)
    assert (found.seen[1].frames == clip.frames).all()


def test_nothing_is_looked_into_where_none_is_asked_for(tmp_path: Path, tiny: TinyClips) -> None:
    assert write_foveation_findings(tmp_path, experiment(tiny, diagnosed=0), asked="test") is None
    assert not list(tmp_path.iterdir())
    found = write_foveation_findings(tmp_path, experiment(tiny, pictures=0, arms=("fine",)), asked="test")
    assert found is not None
    assert np.isnan(found.feature_cosine)
    assert not (tmp_path / "looking").exists()


@pytest.mark.parametrize("value", [-1, True, 2.5, "six"])
def test_a_number_of_clips_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=r"decode\.pictures must be an integer of at least 0"):
        count_of({"pictures": value}, "pictures")


def test_runs_from_before_there_were_such_settings_diagnose_nothing() -> None:
    assert count_of({}, "diagnosed") == 0
