"""Small data sets of clips: folders of flat grey frames, and video files where PyAV is installed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from coordvlm.data.video import Video

CAPTION = {"video": "frames/a", "caption": "a grey clip"}


def frames_folder(folder: Path, num: int, *, size: tuple[int, int] = (20, 10), first: int = 0, suffix: str = ".png") -> None:
    """Frame i is flat grey of value ``10 * i`` and is called ``i`` (without leading zeros, so 10 comes before 2 by letters)."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + num):
        Image.new("RGB", size, (10 * i,) * 3).save(folder / f"{i}{suffix}")


def write_clips(root: Path, *rows: object, name: str = "train.jsonl") -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in rows), encoding="utf-8")


def load_clips(root: Path, *, split: str = "train", num_clips: int | None = None, **options: Any) -> Video:
    """``train.jsonl`` of a folder as one split; 3 frames per clip."""
    settings: dict[str, Any] = {
        "root": root, "splits": {split: {"file": "train.jsonl", "videos": ".", "num_clips": num_clips}}, "test": None, "num_frames": 3,
        "fps": None, "min_seconds": None, "folder_fps": None, "short": "refuse", "mixed_sizes": "refuse", "max_pixels": 10_000,
        "retries": 0, "retry_seconds": 0.0, "timeout_seconds": 5.0, "on_error": "raise", **options,
    }
    return Video(**settings)


def shown(source: Video, index: int = 0, split: str = "train") -> list[int]:
    """Numbers of the frames of a clip made here."""
    frames = source.split(split).sample(index, 0).frames
    return [round(float(np.median(f)) / 10) for f in frames]


def write_small_video(root: Path) -> list[str]:
    """Frame folders with captions for train and val, and the overrides that read them."""
    for name, first in (("a", 0), ("b", 5)):
        frames_folder(root / "frames" / name, 4, first=first)
    write_clips(root, CAPTION, {"video": "frames/b/", "caption": "a light clip"})
    write_clips(root, {"video": "frames/b", "caption": "a light clip"}, CAPTION, name="val.jsonl")
    return ["data=video", f"data.root={root}", "data.num_workers=0"]


def write_video(
    file: Path, num: int, *, rate: int = 10, size: tuple[int, int] = (64, 48), gop: int = 5, values: Sequence[int] | None = None
) -> None:
    """A video file whose frame i is flat grey of value ``10 * i`` (or ``values[i]``), a key frame at every ``gop``-th. Needs PyAV."""
    import av

    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w", options={"movflags": "faststart"} if file.suffix == ".mp4" else {}) as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.gop_size, stream.bit_rate = gop, 2_000_000
        for i in range(num):
            grey = np.full((size[1], size[0], 3), 10 * i if values is None else values[i], dtype=np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
