"""How fast images and annotations become batches: one process, one thread, no model.

Everything a data-loading worker does is timed: the sample from the source, opening and decoding the JPEG, resizing and cutting into
patches, tokenising prompt and answer, and collating. Neither pinning nor sending to another process is.
"""

from __future__ import annotations

import copy
import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coordvlm.contracts import ResizeRule
from coordvlm.data.images import ImageReader, open_image, resize_and_patchify, target_size
from coordvlm.data.jsonl import Jsonl
from coordvlm.data.source import Split
from coordvlm.sequence.collate import SequenceEncoder

#: Descriptions of the made-up objects; as many different ones as COCO has classes.
DESCRIPTIONS = tuple(f"{colour} {thing}" for colour in ("red", "green", "blue", "small", "large", "old", "new", "wet", "dry", "")
                     for thing in ("person", "car", "dog", "traffic light", "cup", "chair", "dining table", "bird"))
PARTS = ("sample", "decode", "resize", "tokenise", "collate")


@dataclass(frozen=True)
class Spread:
    """A figure over passes."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class InputSpeed:
    """What one resize rule costs.

    Args:
        model_size: (width, height) in px of the first image as the model sees it.
        per_s: images per second of wall time. per_cpu_s: per second of this process's own time, which other programs do not touch.
        part_ms: ms of own time per image and part; median over passes.
    """

    rule: ResizeRule
    model_size: tuple[int, int]
    per_s: Spread
    per_cpu_s: Spread
    part_ms: Mapping[str, float]


def write_images(folder: Path, *, num_images: int, size: tuple[int, int], num_objects: int, quality: int, seed: int) -> Path:
    """JPEG files with the falling spectrum of photographs, and ``ann.jsonl`` with random boxes; returns the latter."""
    rng = np.random.default_rng(seed)
    lines = []
    for index in range(num_images):
        name = f"{index}.jpg"
        _photo(rng, size).save(folder / name, quality=quality)
        corners = rng.uniform(0, np.tile(size, (num_objects, 1)) - 40.0)
        sides = rng.uniform(20, np.tile(size, (num_objects, 1)) - corners)
        boxes = np.concatenate([corners, corners + sides], 1).round(2).tolist()
        objects = [{"desc": DESCRIPTIONS[int(rng.integers(len(DESCRIPTIONS)))].strip(), "bbox": box} for box in boxes]
        lines.append(json.dumps({"image": name, "objects": objects, "width": size[0], "height": size[1]}))
    path = folder / "ann.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _photo(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Noise of all scales, the coarse ones stronger: as hard to decode as a photograph, unlike a flat picture."""
    width, height = size
    values: NDArray[np.float32] = np.zeros((height, width, 3), dtype=np.float32)
    for scale in (1, 2, 4, 8, 16, 32, 64, 128):
        shape = (max(2, height // scale + 1), max(2, width // scale + 1))
        for channel in range(3):
            noise = Image.fromarray(rng.standard_normal(shape).astype(np.float32))
            values[..., channel] += np.asarray(noise.resize(size, Image.Resampling.BICUBIC)) * scale**0.5
    values = (values - values.mean()) / values.std() * 50 + 120
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def read_split(file: Path) -> Split:
    """The images of ``write_images``, through the source that users have."""
    return Jsonl(
        root=file.parent, train={"jsonl": file.name, "images": "."}, val=None, test=None, boxes="pixel", box_format="xyxy", classes=None,
        seed=0, class_list="none", num_absent=0, on_error="raise",
    ).split("train")


def measure_input(split: Split, encoder: SequenceEncoder, rule: ResizeRule, *, batch_size: int, passes: int) -> InputSpeed:
    """Time whole passes over a split, and then each part of the work by itself.

    Args:
        encoder: of any model; its resize rule is replaced.
        passes: timed ones; one before them fills the caches that a long run has filled, too.
    """
    reader = ImageReader(rule, max_pixels=10**9)
    encoder = copy.copy(encoder)
    encoder.resize, encoder.image_fn = rule, reader
    _whole(split, encoder, batch_size)
    wall, own = zip(*(_whole(split, encoder, batch_size) for _ in range(passes)), strict=True)
    parts = [_parts(split, encoder, rule, batch_size) for _ in range(passes)]
    first = split.sample(0, 0)
    return InputSpeed(
        rule, target_size(rule, first.width, first.height), Spread.of([len(split) / s for s in wall]),
        Spread.of([len(split) / s for s in own]), {p: 1e3 * statistics.median([x[p] for x in parts]) / len(split) for p in PARTS},
    )


def _whole(split: Split, encoder: SequenceEncoder, batch_size: int) -> tuple[float, float]:
    """Seconds (wall, own) of one pass as a worker makes it."""
    wall, own = time.perf_counter(), time.process_time()
    for start in range(0, len(split), batch_size):
        indices = range(start, min(start + batch_size, len(split)))
        encoder.collate([encoder.encode(split.sample(i, 0), epoch=0) for i in indices])
    return time.perf_counter() - wall, time.process_time() - own


def _parts(split: Split, encoder: SequenceEncoder, rule: ResizeRule, batch_size: int) -> dict[str, float]:
    """Seconds of own time for each part over one pass."""
    spent, last = dict.fromkeys(PARTS, 0.0), time.process_time()

    def lap(part: str) -> None:
        nonlocal last
        now = time.process_time()
        spent[part] += now - last
        last = now

    for start in range(0, len(split), batch_size):
        encoded = []
        for index in range(start, min(start + batch_size, len(split))):
            sample = split.sample(index, 0)
            lap("sample")
            image = open_image(sample.image, declared=(sample.width, sample.height), max_pixels=10**9)
            lap("decode")
            patches = resize_and_patchify(image, target_size(rule, *image.size), rule.patch, rule.merge)
            lap("resize")
            encoded.append(_without_image(encoder, patches).encode(sample, epoch=0))
            lap("tokenise")
        encoder.collate(encoded)
        lap("collate")
    return spent


def _without_image(encoder: SequenceEncoder, patches: tuple[NDArray[np.uint8], tuple[int, int, int]]) -> SequenceEncoder:
    """The encoder with its work on images done."""
    rest = copy.copy(encoder)
    rest.image_fn = lambda *_: patches
    return rest


def load_average() -> tuple[float, ...] | None:
    """Runnable processes of the machine over 1, 5 and 15 minutes, where the system tells."""
    return os.getloadavg() if hasattr(os, "getloadavg") else None


def as_plain(speed: InputSpeed) -> dict[str, object]:
    """For bench.json."""
    return {**asdict(speed), "part_ms": dict(speed.part_ms)}
