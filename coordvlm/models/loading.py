"""What a model source hands over: a Hugging Face model with its tokenizer and what its image processor does."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class LoadedModel:
    """Untouched base model.

    Args:
        patch, merge: patch side in px and merge factor of the vision tower.
        image_mean, image_std: per channel, of pixels scaled to [0, 1].
    """

    hf: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    patch: int
    merge: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
