"""What ``predict`` and ``coordvlm.load`` are asked, made ready for the model: an image, opened, and a question about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from coordvlm.contracts import Encoded, Sample
from coordvlm.data.images import open_image
from coordvlm.sequence.collate import SequenceEncoder

if TYPE_CHECKING:
    from coordvlm.sequence.count_encoder import CountEncoder


@dataclass(frozen=True)
class _Frames:
    """Opens images. max_pixels: a larger source image is refused."""

    max_pixels: int

    def frame(self, image: Path | Image.Image, *, where: object) -> Image.Image:
        """The displayed image, RGB.

        Raises:
            DataError: it cannot be read.
        """
        return open_image(image, declared=None, max_pixels=self.max_pixels, where=where)


@dataclass(frozen=True)
class RequestEncoder(_Frames):
    """Requests -> what the decoder takes. Picklable: worker processes get a copy.

    Args:
        classes: names for the prompt.
    """

    encoder: SequenceEncoder
    classes: tuple[str, ...]

    def encode(self, frame: Image.Image, phrase: str | None, *, name: str, where: object) -> Encoded:
        """A request made ready. ``name`` of the image and the phrase seed what is drawn.

        Raises:
            DataError: the image is too elongated, or the prompt too long.
        """
        listed = self.classes or None
        sample = Sample(_named(name, phrase), frame, *frame.size, (), phrase=phrase, class_list=listed, meta={"where": where})
        return self.encoder.encode(sample, epoch=0, with_answer=False)


@dataclass(frozen=True)
class Countable:
    """A request to count. ``sample``: its image is the displayed frame, and it knows no objects. ``first``: its first question."""

    sample: Sample
    first: Encoded


@dataclass(frozen=True)
class CountRequestEncoder(_Frames):
    """Requests -> what the loop takes. Picklable: worker processes get a copy."""

    encoder: CountEncoder

    def encode(self, frame: Image.Image, phrase: str | None, *, name: str, where: object) -> Countable:
        """A request made ready. phrase: what to count.

        Raises:
            DataError: nothing to count, the image is too elongated, or the prompt too long.
        """
        sample = Sample(_named(name, phrase), frame, *frame.size, (), category=phrase, meta={"where": where})
        return Countable(sample, self.encoder.encode(sample, epoch=0, with_answer=False))


def _named(name: str, phrase: str | None) -> str:
    return name if phrase is None else f"{name}, {phrase!r}"
