"""What a model source hands over: a Hugging Face model with its tokenizer and what its image processor does."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from coordvlm.utils.errors import ConfigError


@dataclass(frozen=True)
class Family:
    """What the models of one ``model_type`` have in common.

    Args:
        title: as its authors write it.
        native_sequence, native_coords: the options of ``sequence`` and ``coords`` that its published weights were trained to write.
    """

    title: str
    native_sequence: str
    native_coords: str


#: ``model_type`` of a config -> the family. The forward is tested with these.
FAMILIES = {
    "qwen2_vl": Family("Qwen2-VL", "qwen2_box", "qwen1000"),
    "qwen2_5_vl": Family("Qwen2.5-VL", "json_digits", "pixel"),
    "qwen3_vl": Family("Qwen3-VL", "json_digits", "qwen1000"),
}


@dataclass(frozen=True)
class LoadedModel:
    """Untouched base model.

    Args:
        patch, merge: patch side in px and merge factor of the vision tower.
        image_mean, image_std: per channel, of pixels scaled to [0, 1].
        source: what was loaded, for records and messages: ``<hub id>@<revision>``, a folder, or the name of a random model.
        min_pixels, max_pixels: limits on width x height that its image processor keeps to; None: it states none.
        matrices: of quantised weights the digest of what they were, see ``BaseIdentity``; None: they are whole.
    """

    hf: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    patch: int
    merge: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    source: str
    min_pixels: int | None = None
    max_pixels: int | None = None
    matrices: str | None = None

    @property
    def family(self) -> str:
        """``qwen2_vl``, ``qwen2_5_vl`` or ``qwen3_vl``."""
        return str(self.hf.config.model_type)

    @property
    def native_sequence(self) -> str:
        return FAMILIES[self.family].native_sequence

    @property
    def native_coords(self) -> str:
        return FAMILIES[self.family].native_coords

    @property
    def tied(self) -> bool:
        """Whether input and output table are one tensor."""
        return bool(self.hf.config.tie_word_embeddings)

    def pixel_limits(self, min_pixels: int | None, max_pixels: int | None) -> tuple[int | None, int | None]:
        """The limits of the ``smart`` resize: those asked for, else the image processor's own.

        Raises:
            ConfigError: limits that no image can keep to.
        """
        low = self.min_pixels if min_pixels is None else min_pixels
        high = self.max_pixels if max_pixels is None else max_pixels
        check_pixel_limits(low, high, factor=self.patch * self.merge, where="model.resize", source=self.source)
        return low, high


def check_pixel_limits(low: int | None, high: int | None, *, factor: int, where: str, source: str) -> None:
    """Refuse limits on width x height that no image can keep to when sides are multiples of ``factor``."""
    for name, value in (("min_pixels", low), ("max_pixels", high)):
        if value is None:
            continue
        if not float(value).is_integer() or value < 1:
            raise ConfigError(f"{where}.{name} must be a whole number of pixels above zero, got {value!r}")
    if high is not None and high < factor**2:
        raise ConfigError(
            f"{where}.max_pixels={high} holds no image: {source} sees squares of {factor} x {factor} = {factor**2} px, so at least that"
        )
    if low is not None and high is not None and low > high:
        raise ConfigError(f"{where} has min_pixels={low} above max_pixels={high}; no image size lies between them")
