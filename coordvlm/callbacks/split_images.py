"""Samples and displayed frames of a split by id, opened when asked for."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from coordvlm.contracts import Sample
from coordvlm.data.images import open_image
from coordvlm.data.source import Split
from coordvlm.utils.files import sha1_file


class SplitImages:
    """What reports and trackers draw on.

    Args:
        max_pixels: a larger source image is refused.
    """

    def __init__(self, split: Split, max_pixels: int) -> None:
        self.split, self.max_pixels = split, max_pixels
        self._index = {int(i): n for n, i in enumerate(split.ids)}

    def sample(self, sample_id: int | str) -> Sample:
        return self.split.sample(self._index[int(sample_id)], 0)

    def frame(self, sample: Sample) -> Image.Image:
        """The displayed frame, RGB."""
        return open_image(sample.image, declared=(sample.width, sample.height), max_pixels=self.max_pixels, where=f"image {sample.id}")

    def load(self, sample_id: int | str) -> Image.Image:
        return self.frame(self.sample(sample_id))

    def sha1(self, sample_id: int | str) -> str | None:
        """Of the image file; None for an image that was made in memory."""
        image = self.sample(sample_id).image
        return sha1_file(image) if isinstance(image, Path) else None
