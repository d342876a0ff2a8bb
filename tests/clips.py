"""A tiny foveated model and ragged batches of random clips for tests; everything random is seeded."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase

from coordvlm.contracts import Clip, ClipBatch, Object
from coordvlm.coords.grid import Grid
from coordvlm.models.coord_rows import CoordRows
from coordvlm.models.foveated.loading import LoadedFoveated, load_foveated_tiny
from coordvlm.models.foveated.model import ARMS, Foveated
from coordvlm.models.foveated.queries import QueryPlan
from coordvlm.models.foveated.vision import FoveatedVision
from coordvlm.models.heads import build_heads
from coordvlm.models.tokens import add_coord_tokens, coord_vocab
from coordvlm.sequence.clip_encoder import ClipEncoder

MARKERS = ("<coarse>", "<fine>")
COORD_TOKEN = "<|coord_{k}|>"
PATCH, SIZE, WIDTH = 14, 42, 32
#: Questions of different lengths, one of none at all, and answers likewise.
QUESTIONS = ("Which symbol is in cell B3?", "", "How many of each symbol are there in the very last of the frames?")
ANSWERS = ("circle", "a red ball and a bar", "no")
NEEDS = frozenset({"text_nll", "text_correct"})


@dataclass
class TinyClips:
    tokenizer: PreTrainedTokenizerBase
    model: Foveated
    encoder: ClipEncoder
    grid: Grid

    def batch(
        self, *, questions: Sequence[str] = QUESTIONS, answers: Sequence[str | tuple[float, float]] = ANSWERS, seed: int = 0,
        with_answer: bool = True,
    ) -> ClipBatch:
        """Clips ``seed * 100 + i``; an answer is words, or a point in source px."""
        return self.of(clips(questions, answers, frames=self.encoder.num_frames, seed=seed), with_answer=with_answer)

    def of(self, given: Sequence[Clip], *, with_answer: bool = True) -> ClipBatch:
        return self.encoder.collate([self.encoder.encode(c, epoch=0, with_answer=with_answer) for c in given])


def clips(
    questions: Sequence[str], answers: Sequence[str | tuple[float, float]], *, frames: int, seed: int = 0, size: int = SIZE
) -> list[Clip]:
    return [random_clip(seed * 100 + i, q, a, frames=frames, size=size) for i, (q, a) in enumerate(zip(questions, answers, strict=True))]


def random_clip(seed: int, question: str, answer: str | tuple[float, float], *, frames: int, size: int = SIZE) -> Clip:
    """Frames of random blocks, so that patches differ."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (frames, size // 7, size // 7, 3), dtype=np.uint8)
    pixels = small.repeat(7, 1).repeat(7, 2)
    words, objects = (answer, ()) if isinstance(answer, str) else ("", (Object(desc="", point_px=answer, category_id=1, annotation_id=0),))
    return Clip(
        seed, Image.fromarray(pixels[-1]), size, size, objects, phrase=question, frames=pixels, answer=words, kind="qa",
        evidence=np.full((frames, 2), np.nan, dtype=np.float32),
    )


def loaded(seed: int = 0, **sizes: Any) -> LoadedFoveated:
    """The untouched parts. sizes: keywords of ``load_foveated_tiny`` other than these."""
    return load_foveated_tiny(**{
        "frame_size": SIZE, "patch_size": PATCH, "vision_width": 48, "vision_depth": 2, "vision_heads": 4, "vision_mlp_ratio": 2,
        "position_amplitude": 0.5, "tokenizer_size": 600, "padded_rows": 40, "extra_words": [], "hidden_size": WIDTH,
        "intermediate_size": 64, "num_layers": 2, "num_heads": 4, "max_length": 256, "initial_std": 0.09, "embedding_rms": 0.14,
        "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "seed": seed, **sizes,
    })  # fmt: skip


def tiny_clips(
    *, depth: str = "deep", temperature: float = 0.25, top_k: int | None = None, queries: str = "llm", first: str = "question",
    iterations: int = 1, num_frames: int = 3, needs: Collection[str] = NEEDS, latents: torch.nn.Module | None = None,
    freeze: Sequence[str] = (), arms: Sequence[str] = ARMS, seed: int = 0, double: bool = False, **sizes: Any,
) -> TinyClips:
    """arms: that are trained. double: in float64, for comparisons."""
    parts = loaded(seed, **sizes)
    existing = add_coord_tokens(parts.tokenizer, num_bins=1000, coord_token=COORD_TOKEN, markers=MARKERS)
    vocab = coord_vocab(
        parts.tokenizer, num_bins=1000, coord_token=COORD_TOKEN, markers=MARKERS, existing=existing, init="fourier",
        num_rows=len(parts.language.get_input_embeddings().weight), image_token=None,
    )
    rows = CoordRows(vocab, parts.language.get_input_embeddings().weight.detach(), None, init="fourier", scale=1.0, seed=seed)
    vision = FoveatedVision(
        parts.tower, width=WIDTH, depth=depth, temperature=temperature, top_k=top_k, image_mean=parts.image_mean, image_std=parts.image_std
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of the two projections
        for module in vision.merger.values():
            module.reset_parameters()
    model = Foveated(
        vision, parts.language, vocab, rows, token_rms=0.14, iterations=iterations,
        queries=QueryPlan(WIDTH, mode=queries, first=first, trained=arms, num_frames=num_frames, seed=seed),
        heads=build_heads(needs, WIDTH, seed=seed, dropout=0.0), latents=latents, freeze=freeze,
    )
    if double:
        model.to(torch.float64)
    grid = Grid("k999", 1000, 999)
    encoder = ClipEncoder(parts.tokenizer, vocab, grid, prompt="{question}", num_frames=num_frames, size=SIZE, max_length=256)
    return TinyClips(parts.tokenizer, model, encoder, grid)


def teach(t: TinyClips, batch: ClipBatch, *, steps: int = 40, lr: float = 1e-2) -> None:
    """So many steps on the fine pass's answers, words and points."""
    optimizer = torch.optim.Adam([p for p in t.model.parameters() if p.requires_grad], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        out = t.model(batch, {"text_nll", "slot_lse", "slot_logits"}, ("fine",))["fine"][0]
        own = out.slot_logits.gather(1, batch.slot_bin[:, None])[:, 0]
        ((out.slot_lse - own).sum() + out.text_nll.sum()).backward()
        optimizer.step()
