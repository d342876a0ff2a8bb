"""A tiny model with its tokenizer, vocabulary and encoder for tests; everything random is seeded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from coordvlm.contracts import Batch, Object, ResizeRule, Sample
from coordvlm.coords.grid import Grid
from coordvlm.coords.vocab import CoordVocab
from coordvlm.models.backbone import Backbone
from coordvlm.models.coord_rows import CoordRows
from coordvlm.models.tiny import tiny_qwen3vl, tiny_tokenizer
from coordvlm.models.tiny_qwen2 import tiny_qwen2vl, tiny_qwen25vl
from coordvlm.models.tokens import add_coord_tokens, coord_vocab
from coordvlm.sequence.collate import SequenceEncoder
from coordvlm.sequence.prompt import PromptBuilder
from coordvlm.sequence.target import ObjectsTarget

MARKERS = ("<obj_start>", "<obj_end>")
COORD_TOKEN = "<|coord_{k}|>"
PATCH, MERGE = 8, 2
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
#: Sizes of ``tiny_hf`` that no test but one of memory changes.
TOWER_SIZES = {"num_layers": 2, "vision_depth": 2, "vision_width": 32, "vision_mlp": 64}


@dataclass
class Tiny:
    tokenizer: object
    vocab: CoordVocab
    backbone: Backbone
    encoder: SequenceEncoder
    grid: Grid

    def batch(
        self, seed: int = 0, counts: Sequence[int] = (2, 0, 3), sides: Sequence[tuple[int, int]] = ((48, 32), (32, 32), (32, 64))
    ) -> Batch:
        """A ragged batch: different image sizes and numbers of objects."""
        samples = [random_sample(seed * 100 + i, n, wh) for i, (n, wh) in enumerate(zip(counts, sides, strict=True))]
        return self.encoder.collate([self.encoder.encode(s, epoch=0) for s in samples])


def random_sample(seed: int, num: int, size: tuple[int, int]) -> Sample:
    rng = np.random.default_rng(seed)
    width, height = size
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    objects = []
    for i in range(num):
        x1, y1 = rng.uniform(0, width * 0.6), rng.uniform(0, height * 0.6)
        box = (x1, y1, x1 + rng.uniform(2, width * 0.4), y1 + rng.uniform(2, height * 0.4))
        objects.append(Object(desc=str(rng.choice(["red circle", "blue square", "dog"])), box_xyxy_px=box, category_id=1, annotation_id=i))
    return Sample(id=seed, image=image, width=width, height=height, objects=tuple(objects))


def patchify(image: object, width: int, height: int, where: object) -> tuple[np.ndarray, tuple[int, int, int]]:
    x = np.asarray(image)
    gh, gw = height // PATCH, width // PATCH
    x = x.reshape(gh // MERGE, MERGE, PATCH, gw // MERGE, MERGE, PATCH, 3).transpose(0, 3, 1, 4, 6, 2, 5)
    return np.ascontiguousarray(x.reshape(-1, 3, PATCH, PATCH)), (1, gh, gw)


def tiny_hf(tokenizer: PreTrainedTokenizerFast, family: str, *, hidden: int = 32, **common: Any) -> Any:
    """A random Hugging Face model of a family; ``common``: ``table_size, tied, seed``."""
    sizes = {**TOWER_SIZES, "hidden_size": hidden, "intermediate_size": 2 * hidden, "num_heads": 4, "num_kv_heads": 2, **common}
    depth = sizes.pop("vision_depth")
    if family == "qwen3_vl":
        tower = {"vision_depth": depth, "vision_heads": 2, "patch_size": PATCH, "merge_size": MERGE}
        return tiny_qwen3vl(tokenizer, **sizes, **tower, position_grid=8, deepstack=[0], position_amplitude=0.5)
    vision = {"depth": depth, "num_heads": 2, "patch_size": PATCH, "spatial_merge_size": MERGE}
    if family == "qwen2_vl":
        return tiny_qwen2vl(tokenizer, **sizes, vision=vision)
    return tiny_qwen25vl(tokenizer, **sizes, vision=vision, window_size=2 * PATCH * MERGE, full_attention_blocks=[1])


def tiny(
    *,
    tied: bool = True,
    table_size: int | None = None,
    seed: int = 0,
    freeze: Sequence[str] = (),
    hidden: int = 32,
    order: str = "scan",
    family: str = "qwen3_vl",
    checkpoint_every: int = 0,
) -> Tiny:
    """``table_size``: None puts some of the new ids inside the padded table and the rest beyond."""
    tokenizer = tiny_tokenizer(600)
    size = len(tokenizer) + 40 if table_size is None else table_size
    add_coord_tokens(tokenizer, num_bins=1000, coord_token=COORD_TOKEN, markers=MARKERS)
    vocab = coord_vocab(tokenizer, num_bins=1000, coord_token=COORD_TOKEN, markers=MARKERS)
    hf = tiny_hf(tokenizer, family, hidden=hidden, table_size=size, tied=tied, seed=seed)
    head = None if tied else hf.lm_head.weight
    rows = CoordRows(vocab, hf.get_input_embeddings().weight, head, init="fourier", scale=1.0, seed=seed)
    backbone = Backbone(hf, vocab, rows, image_mean=[0.5] * 3, image_std=[0.5] * 3, freeze=freeze, checkpoint_every=checkpoint_every)
    grid = Grid("k999", 1000, 999)
    encoder = SequenceEncoder(
        PromptBuilder(tokenizer, vocab.image_id, text="Describe all objects.", class_list_text=" Classes: {names}."),
        ObjectsTarget(tokenizer, vocab, grid, order=order, max_objects=30, on_too_many="drop", start=MARKERS[0], end=MARKERS[1], seed=0),
        vocab,
        resize=ResizeRule("smart", PATCH, MERGE, min_pixels=256, max_pixels=2**20),
        image_fn=patchify,
        max_length=2048,
    )
    return Tiny(tokenizer, vocab, backbone, encoder, grid)


def hf_inputs(batch: Batch, *, image_id: int, patch_norm: torch.nn.Module, prompt_only: bool = False) -> dict[str, torch.Tensor]:
    """The same batch as a plain Hugging Face forward takes it: doubled frames, attention mask, token types."""
    pixels = patch_norm(batch.pixels).view(-1, 3, 1, PATCH, PATCH).expand(-1, -1, 2, -1, -1).flatten(1)
    lengths = batch.prompt_lengths if prompt_only else batch.lengths
    ids = batch.input_ids[:, : int(lengths.max())]
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "mm_token_type_ids": ((ids == image_id) & mask.bool()).int(),
        "pixel_values": pixels,
        "image_grid_thw": batch.image_grid_thw,
    }
