"""A tiny tokenizer with ``<x> <y> <done>``, a ``CountEncoder`` and random samples for tests of counting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from transformers import PreTrainedTokenizerFast

from coordvlm.contracts import Object, ResizeRule, Sample
from coordvlm.coords.grid import Grid
from coordvlm.coords.vocab import CoordVocab
from coordvlm.data.images import ImageReader
from coordvlm.models.backbone import Backbone
from coordvlm.models.coord_rows import CoordRows
from coordvlm.models.tiny import tiny_tokenizer
from coordvlm.models.tokens import add_coord_tokens, coord_vocab
from coordvlm.sequence.count_encoder import CountEncoder
from coordvlm.sequence.count_marks import Marks
from coordvlm.sequence.count_question import Steps
from tests.tiny import COORD_TOKEN, MERGE, PATCH, tiny_hf

ASK = ("<x>", "<y>", "<done>")
TEXTS = {
    "none": "Count: {category}. Nothing is marked yet.", "one": "Count: {category}. 1 is marked.",
    "many": "Count: {category}. {k} are marked.",
}
GRID = Grid("k999", 1000, 999)


@dataclass
class Counting:
    tokenizer: PreTrainedTokenizerFast
    vocab: CoordVocab

    def encoder(
        self, *, mode: str = "mixed", done_share: float = 0.5, target: str = "next", style: str = "numbered", radius: float = 0.05,
        jitter: float = 3.0, drop: float = 0.02, **settings: Any,
    ) -> CountEncoder:
        rule = ResizeRule("smart", PATCH, MERGE, min_pixels=256, max_pixels=2**20)
        reader = ImageReader(rule, 2**24)
        given = {
            "prompts": TEXTS, "text_first": True, "ask_tokens": ASK, "order": "rows", "steps": Steps(mode, done_share, target),
            "marks": Marks(style, radius, (0, 160, 0), jitter, drop), "resize": rule, "image_fn": reader, "open_fn": reader.frame,
            "max_length": 2048, "seed": 0, **settings,
        }
        return CountEncoder(self.tokenizer, self.vocab, GRID, **given)

    def backbone(self, family: str = "qwen3_vl", **sizes: Any) -> Backbone:
        hf = tiny_hf(self.tokenizer, family, table_size=len(self.tokenizer) + 40, tied=True, seed=0, **sizes)
        rows = CoordRows(self.vocab, hf.get_input_embeddings().weight, None, init="fourier", scale=1.0, seed=0)
        return Backbone(hf, self.vocab, rows, image_mean=[0.5] * 3, image_std=[0.5] * 3, freeze=())


def counting() -> Counting:
    tokenizer = tiny_tokenizer(600)
    tokens: dict[str, Any] = {"num_bins": 1000, "coord_token": COORD_TOKEN, "markers": ASK}
    add_coord_tokens(tokenizer, **tokens)
    return Counting(tokenizer, coord_vocab(tokenizer, **tokens))


def count_sample(
    seed: int, points: int | list[tuple[float, float]], size: tuple[int, int] = (64, 48), *, split: str = "train",
    category: str | None = "red dot",
) -> Sample:
    """points: how many at random, or which ones (px)."""
    rng = np.random.default_rng(seed)
    width, height = size
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    if isinstance(points, int):
        points = [(float(x), float(y)) for x, y in rng.uniform((0, 0), size, (points, 2))]
    objects = tuple(Object(category or "", point_px=p, category_id=1, annotation_id=i) for i, p in enumerate(points))
    return Sample(seed, image, width, height, objects, category=category, meta={"split": split})
