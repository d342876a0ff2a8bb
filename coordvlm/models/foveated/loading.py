"""The two parts of a foveated model: a DINOv2 and a causal language model, random and small; ``published.py`` has pretrained ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from coordvlm.models.tiny import smooth_positions, tiny_tokenizer
from coordvlm.utils.errors import ConfigError


@dataclass(frozen=True)
class LoadedFoveated:
    """Untouched parts.

    Args:
        tower: the vision tower. language: with tied or untied tables. tokenizer: of the language model.
        image_mean, image_std: per channel, of pixels scaled to [0, 1].
        source: what was loaded, for records and messages.
    """

    tower: Dinov2Model
    language: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    source: str

    @property
    def tied(self) -> bool:
        """Whether input and output table are one tensor."""
        return bool(self.language.config.tie_word_embeddings)

    @property
    def patch(self) -> int:
        """Side of a patch in px."""
        return int(self.tower.config.patch_size)


def check_patch(frame_size: int, patch: int, source: str) -> None:
    """Refuse frames that patches do not divide."""
    if frame_size % patch:
        below = frame_size // patch * patch
        near = " and ".join(str(side) for side in (below, below + patch) if side)
        raise ConfigError(
            f"model.frame_size={frame_size} is no multiple of the patch size of {source}, {patch} px; the nearest that are: {near}"
        )


def load_foveated_tiny(
    *, frame_size: int, patch_size: int, vision_width: int, vision_depth: int, vision_heads: int, vision_mlp_ratio: int,
    position_amplitude: float, tokenizer_size: int, padded_rows: int, extra_words: Sequence[str], hidden_size: int,
    intermediate_size: int, num_layers: int, num_heads: int, max_length: int, initial_std: float, embedding_rms: float,
    image_mean: Sequence[float], image_std: Sequence[float], seed: int,
) -> LoadedFoveated:
    """Random parts of about a million weights in float32, and a tokenizer made on the spot: nothing is downloaded.

    Args:
        frame_size: side S of a frame, a multiple of ``patch_size``. vision_mlp_ratio: inner width of the tower's layers over its width.
        position_amplitude: scale of the smooth initial positions (0: the library's random ones).
        tokenizer_size: largest vocabulary, special tokens included. padded_rows: rows of the table beyond the tokenizer.
        extra_words: words that should be short in tokens. max_length: positions of the language model.
        initial_std: of the random weights of both parts. The library's 0.02 is for widths of thousands: at 128 what a query reads would be
            a fiftieth of the query itself.
        embedding_rms: root mean square of the words' embeddings.
        seed: of the random weights; the global generator is left as it was.
    """
    tokenizer = tiny_tokenizer(tokenizer_size, extra_words)
    vision = Dinov2Config(
        image_size=frame_size, patch_size=patch_size, hidden_size=vision_width, num_hidden_layers=vision_depth,
        num_attention_heads=vision_heads, mlp_ratio=vision_mlp_ratio, use_mask_token=False, initializer_range=initial_std,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=len(tokenizer) + padded_rows, hidden_size=hidden_size, intermediate_size=intermediate_size, num_hidden_layers=num_layers,
        num_attention_heads=num_heads, num_key_value_heads=num_heads, max_position_embeddings=max_length, tie_word_embeddings=True,
        bos_token_id=tokenizer.convert_tokens_to_ids("<|im_start|>"), eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=initial_std,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower, language = Dinov2Model(vision), LlamaForCausalLM(text)
    with torch.no_grad():
        language.get_input_embeddings().weight.mul_(embedding_rms / initial_std)
    if position_amplitude > 0:
        side = frame_size // patch_size
        with torch.no_grad():
            tower.embeddings.position_embeddings[0, 1:] = smooth_positions(side, vision_width) * position_amplitude
    return LoadedFoveated(
        tower, language, tokenizer, tuple(image_mean), tuple(image_std), source="foveated_tiny, random weights"
    )
