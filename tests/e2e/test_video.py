"""Training on a made folder of frames, and what an unreadable clip does to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.video_layouts import write_small_video
from tests.e2e.commands import finished, refusal, train

SMALL = ("trainer.max_steps=2", "data.batch_size=2", "data.eval_batch_size=2")


@pytest.mark.slow
def test_two_steps_on_frame_folders(tmp_path: Path) -> None:
    data = write_small_video(tmp_path / "data")
    ran = finished(tmp_path / "out", *data, *SMALL)
    assert ran.record["status"] == "finished"


@pytest.mark.slow
def test_a_broken_clip_stops_the_run_with_its_line(tmp_path: Path) -> None:
    data = write_small_video(tmp_path / "data")
    (tmp_path / "data/frames/b/8.png").write_bytes(b"no image")
    said = refusal(train(tmp_path / "out", "debug=fast", *data, *SMALL))
    assert "8.png: the image must be readable" in said
