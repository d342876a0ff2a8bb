"""Sizes of a Qwen-VL, and what its layers keep for the backward.

Legend: d width, q and kv widths of queries and of keys, f width of the MLP, e bytes per element. Precisions as in ``cost``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """Sizes of a Qwen-VL. ``mlp_terms``: tensors of the MLP's width that a vision block keeps; ``mergers``: deepstack's included."""

    layers: int
    d: int
    q: int
    kv: int
    f: int
    qk_norm: bool
    table_rows: int
    blocks: int
    vision_d: int
    vision_f: int
    mlp_terms: int
    vision_rms: bool
    mergers: int
    patch: int

    @classmethod
    def of(cls, config: Any) -> Architecture:
        """From a Hugging Face configuration of any of the families."""
        text, vision, family = config.text_config, config.vision_config, config.model_type
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        width = vision.embed_dim if family == "qwen2_vl" else vision.hidden_size
        return cls(
            layers=text.num_hidden_layers,
            d=text.hidden_size,
            q=head * text.num_attention_heads,
            kv=head * text.num_key_value_heads,
            f=text.intermediate_size,
            qk_norm=family == "qwen3_vl",
            table_rows=text.vocab_size,
            blocks=vision.depth,
            vision_d=width,
            vision_f=int(width * vision.mlp_ratio) if family == "qwen2_vl" else vision.intermediate_size,
            mlp_terms={"qwen2_vl": 3, "qwen2_5_vl": 4, "qwen3_vl": 2}[family],  # quick GELU, gated, GELU
            vision_rms=family == "qwen2_5_vl",
            mergers=1 + len(getattr(vision, "deepstack_visual_indexes", ())),
            patch=vision.patch_size,
        )

    def layer_bytes(self, precision: str, *, trains: bool = True) -> float:
        """Kept per token by one language layer. ``trains``: False drops the inputs of its linear layers, which only weights need."""
        e, d, q, kv, f = element(precision), self.d, self.q, self.kv, self.f
        attention = e * (2 * q + 2 * kv)
        if not trains:
            norms = 8 * d + (4 * (q + kv) if self.qk_norm else 0)
            return norms + attention + 3 * e * f
        qk = (4 + e) * (q + kv) if self.qk_norm else 0
        norms = 26 * d if precision == "mixed" else 8 * d + 4 * e * d  # autocast copies an input once per linear layer: 5 x 2 d
        return norms + attention + qk + 4 * e * f

    def block_bytes(self, precision: str) -> float:
        """Kept per patch by one vision block that trains."""
        e, d = element(precision), self.vision_d
        if self.vision_rms:
            norms = 18 * d if precision == "mixed" else 8 * d + 4 * e * d
        else:
            norms = 12 * d if precision == "mixed" else 4 * e * d
        return norms + 7 * e * d + self.mlp_terms * e * self.vision_f

    def merger_bytes(self, precision: str) -> float:
        """Kept per patch by all mergers."""
        e, d = element(precision), self.vision_d
        return self.mergers * (4 * e * d + ((4 if self.vision_rms else 2) * d if self.vision_rms or precision == "mixed" else 0))


def element(precision: str) -> int:
    """Bytes per element of a hidden state."""
    return {"32": 4, "bf16": 2, "mixed": 2}[precision]
