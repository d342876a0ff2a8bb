"""The foveated video model: a coarse pass that plans where to look, and a fine pass that looks.

The sequence is ``[question] [<coarse> | <fine>] z_1 .. z_T [answer]``. In the coarse pass every frame is read with one static query. The
state at z_t then is the query of frame t + 1 in the fine pass; the first frame's is learned (``init``), or the state at the mode token,
which has seen the question (``question``). Further fine passes take their queries from the one before. Patches are encoded once for all
passes.

Shapes: B clips, T frames, L tokens, W width of the language model, D width of the vision tower, F = B * T frames, clip by clip.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from coordvlm.contracts import ClipBatch, ModelOutput
from coordvlm.coords.vocab import CoordVocab
from coordvlm.models.checkpointing import set_checkpointing
from coordvlm.models.coord_rows import CoordRows
from coordvlm.models.foveated.latents import Latents
from coordvlm.models.foveated.queries import QueryPlan
from coordvlm.models.foveated.vision import FoveatedVision, Looked, PatchCache
from coordvlm.models.head import full_logits
from coordvlm.models.reading import read_output
from coordvlm.utils.errors import ConfigError

#: Fields of ``ModelOutput`` that this model gives.
FOVEATED_NEEDS = frozenset({
    "text_nll", "text_lse", "text_coord_lse", "text_correct", "slot_logits", "slot_lse", "slot_correct", "point_xy", "frame_entropy",
    "frame_features", "latent", "latent_true",
})  # fmt: skip
COARSE, FINE = "<coarse>", "<fine>"
#: Passes over the frames. ``fine`` is the last of the iterations.
ARMS = ("coarse", "fine")


@dataclass(frozen=True)
class Pass:
    """One pass over the frames.

    Args:
        queries: [F, W], where each frame was read. looked: what was seen there. z: [B, T, W], the frames' tokens.
        hidden: [B, L', W], final states; L' is L, or up to the last frame where no answer was asked for.
    """

    queries: Tensor
    looked: Looked
    z: Tensor
    hidden: Tensor


class Foveated(nn.Module):
    """See the module docstring.

    Args:
        vision: the tower with its queries. language: a causal language model.
        vocab: ids of coordinates and of the mode tokens. rows: their rows.
        queries: where queries come from, and the learned ones.
        token_rms: root mean square of a frame's token (0.14 in the published system).
        iterations: fine passes, at least 1.
        heads: of points, by name; empty where coordinates are tokens. latents: draws frames; None: none are drawn.
        freeze: any of ``vision``, ``language``.
        checkpoint_every: gradient checkpointing of every n-th layer of the language model; 0: none.
    """

    needs = FOVEATED_NEEDS

    def __init__(
        self, vision: FoveatedVision, language: PreTrainedModel, vocab: CoordVocab, rows: CoordRows, *, queries: QueryPlan,
        token_rms: float, iterations: int, heads: nn.ModuleDict, latents: Latents | None, freeze: Collection[str] = (),
        checkpoint_every: int = 0,
    ) -> None:
        super().__init__()
        if not (isinstance(token_rms, (int, float)) and math.isfinite(token_rms) and token_rms > 0):
            raise ConfigError(f"model.token_rms must be a number above 0, got {token_rms!r}")
        if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
            raise ConfigError(f"module.iterations must be an integer of at least 1, got {iterations!r}")
        self.hf = nn.ModuleDict({"visual": vision, "language": language})
        self.vocab, self.rows, self.queries = vocab, rows, queries
        self.token_rms, self.iterations = float(token_rms), iterations
        self.heads = heads
        if latents is not None:
            self.heads["latents"] = latents
        self.adapter = None
        self.frozen = frozenset(freeze)
        self._freeze()
        vision.train()  # what from_pretrained returns is in eval mode
        language.train()
        self.set_checkpointing(checkpoint_every)

    # ------------------------------------------------------------------ parts
    @property
    def vision(self) -> FoveatedVision:
        return self.hf["visual"]  # type: ignore[return-value]

    @property
    def language(self) -> PreTrainedModel:
        return self.hf["language"]  # type: ignore[return-value]

    @property
    def tied(self) -> bool:
        return self.rows.rows_out is None

    @property
    def table(self) -> nn.Embedding:
        return self.language.get_input_embeddings()  # type: ignore[no-any-return]

    @property
    def head_weight(self) -> Tensor:
        return self.table.weight if self.tied else self.language.lm_head.weight

    @property
    def num_columns(self) -> int:
        """Columns of ``z``: base rows, then new rows."""
        return self.rows.num_base + len(self.rows.new_ids)

    def _freeze(self) -> None:
        parts = {"vision": self.vision.tower, "language": self.language}
        if unknown := self.frozen - set(parts):
            raise ConfigError(f"model.freeze knows {', '.join(parts)}, got {', '.join(sorted(unknown))}")
        for name in self.frozen:
            parts[name].requires_grad_(False)

    def set_checkpointing(self, every: int) -> int:
        """Gradient checkpointing of every n-th language layer; 0: none. Returns how many."""
        self.checkpoint_every = every
        return set_checkpointing(self.language.model.layers, every)

    # ------------------------------------------------------------------ looking
    def encode(self, frames: Tensor) -> PatchCache:
        """uint8[B, T, 3, S, S] -> the cache of B * T frames. Once per batch, whatever passes follow."""
        return self.vision.encode(frames.flatten(0, 1))

    def look(self, cache: PatchCache, queries: Tensor, *, attention: bool = False) -> tuple[Looked, Tensor]:
        """What queries [n, W] see of n frames, and their tokens [n, W], all of one size."""
        looked = self.vision.attend(cache, queries, attention=attention)
        token = self.vision.token(looked.features)
        wide = token.float()
        sized = wide * (self.token_rms * (wide.square().mean(-1, keepdim=True) + 1e-6).rsqrt())
        return looked, sized.to(token.dtype)

    def states(self, batch: ClipBatch, z: Tensor, arm: str, *, answer: bool = True) -> Tensor:
        """[B, L', W], final states of the sequence with z [B, T, W] as its frames. answer: with the answer, else up to the last frame."""
        stop = batch.input_ids.shape[1] if answer else batch.answer_col
        embeds = self.embed(batch, z, arm)[:, :stop]
        return self.run(embeds, batch.position_ids[:, :stop], batch.attention_mask[:, :stop])

    def embed(self, batch: ClipBatch, z: Tensor, arm: str) -> Tensor:
        """[B, L, W], inputs of the language model; ``arm`` decides the mode token."""
        marker = self.vocab.marker_ids[COARSE if arm == "coarse" else FINE]
        ids = torch.cat((
            batch.input_ids[:, : batch.mode_col],
            batch.input_ids.new_full((len(batch), 1), marker),
            batch.input_ids[:, batch.mode_col + 1 :],
        ), 1)  # fmt: skip
        embeds = self.rows.embed(ids, self.table)
        return torch.cat((embeds[:, : batch.mode_col + 1], z.to(embeds.dtype), embeds[:, batch.answer_col :]), 1)

    def run(self, embeds: Tensor, position_ids: Tensor, attention_mask: Tensor, cache: Any = None) -> Tensor:
        """[B, n, W], final states of n more tokens. attention_mask: bool[B, n so far]; cache: of the library, for decoding."""
        mask = attention_mask.long()
        return self.language.model(  # type: ignore[no-any-return]
            inputs_embeds=embeds, position_ids=position_ids, attention_mask=mask, past_key_values=cache, use_cache=cache is not None
        ).last_hidden_state

    def coarse(self, batch: ClipBatch, cache: PatchCache, *, answer: bool = True, attention: bool = False) -> Pass:
        """Every frame read with the static query."""
        queries = self.queries.static.expand(cache.num_frames, -1).to(self.table.weight.dtype)
        return self._pass(batch, cache, queries, "coarse", answer, attention)

    def fine(self, batch: ClipBatch, cache: PatchCache, before: Pass, *, answer: bool = True, attention: bool = False) -> Pass:
        """Every frame read where the pass before planned it."""
        return self.fine_at(batch, cache, self.queries.plan(before.hidden, batch), answer=answer, attention=attention)

    def fine_at(self, batch: ClipBatch, cache: PatchCache, queries: Tensor, *, answer: bool = True, attention: bool = False) -> Pass:
        """Every frame read with given queries [B, T, W]."""
        return self._pass(batch, cache, queries.flatten(0, 1), "fine", answer, attention)

    def _pass(self, batch: ClipBatch, cache: PatchCache, queries: Tensor, arm: str, answer: bool, attention: bool) -> Pass:
        looked, token = self.look(cache, queries, attention=attention)
        z = token.view(len(batch), batch.num_frames, -1)
        return Pass(queries, looked, z, self.states(batch, z, arm, answer=answer))

    # ------------------------------------------------------------------ training
    def forward(self, batch: ClipBatch, needs: Collection[str], arms: Collection[str] = ARMS) -> dict[str, list[ModelOutput]]:
        """Passes that are trained: arm -> one ``ModelOutput`` per iteration (one for ``coarse``), exactly as ``needs`` names.

        The coarse pass always runs, as it plans; where its arm is not asked for it stops before the answer.
        """
        if unknown := set(needs) - FOVEATED_NEEDS:
            raise ValueError(f"the foveated model cannot give {', '.join(sorted(unknown))}; it knows {', '.join(sorted(FOVEATED_NEEDS))}")
        watched = "frame_entropy" in needs
        cache = self.encode(batch.frames)
        drawn: Any = self.heads["latents"] if "latent_true" in needs else None
        true = None if drawn is None else drawn.targets(batch.frames.flatten(0, 1))
        out: dict[str, list[ModelOutput]] = {}
        last = self.coarse(batch, cache, answer="coarse" in arms, attention=watched and "coarse" in arms)
        if "coarse" in arms:
            out["coarse"] = [self.read(last, batch, needs, true)]
        if "fine" in arms:
            out["fine"] = []
            for _ in range(self.iterations):
                last = self.fine(batch, cache, last, attention=watched)
                out["fine"].append(self.read(last, batch, needs, true))
        return out

    def read(self, found: Pass, batch: ClipBatch, needs: Collection[str], latent_true: Tensor | None = None) -> ModelOutput:
        """Heads on the rows that ``needs`` reads. latent_true: [F, C, h, w], passed on; needed where ``needs`` names it."""
        mine = {"frame_entropy", "frame_features", "latent", "latent_true"}
        output = read_output(
            found.hidden.flatten(0, 1), batch, set(needs) - mine, rows=self.rows, head_weight=self.head_weight, heads=self.heads
        )
        extra: dict[str, Any] = {}
        if "frame_entropy" in needs:
            assert found.looked.attention is not None
            extra["frame_entropy"] = normalised_entropy(found.looked.attention).mean((0, 2))
        if "frame_features" in needs:
            extra["frame_features"] = found.looked.features
        if "latent" in needs:
            frames = found.hidden[:, batch.mode_col + 1 : batch.answer_col]
            extra["latent"] = self.heads["latents"](frames.flatten(0, 1))
        if "latent_true" in needs:
            assert latent_true is not None
            extra["latent_true"] = latent_true
        return replace(output, **extra)

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """float32[R, num_columns] for a few rows; dead columns are -inf."""
        return full_logits(hidden_RD, self.head_weight, self.rows.out, self.rows.shadow)


def normalised_entropy(attention: Tensor) -> Tensor:
    """Entropy of attention over its last axis, divided by ln N: 1 is uniform, 0 a single patch. float32[..., N] -> float32[...]."""
    num = attention.shape[-1]
    if num < 2:
        return attention.new_zeros(attention.shape[:-1])
    # not torch.special.entr: its slope at 0 is infinite, and a patch that top_k or a sharp query leaves nothing would make gradients NaN
    entropy: Tensor = -(attention * attention.clamp_min(torch.finfo(attention.dtype).tiny).log()).sum(-1)
    return entropy / math.log(num)
