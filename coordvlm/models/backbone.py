"""The Qwen-VL families behind one forward that only computes supervised rows.

``Backbone`` owns a Hugging Face model plus the new-token rows. It embeds the ids itself, runs the vision tower (without a graph when it
is frozen), scatters image features by position, calls the inner language model and applies heads to gathered rows only: ``[B, T, V]``
logits never exist.

Shapes: B samples, T tokens, D width, V base rows, K bins, R text rows, N slots, Nv image tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from coordvlm.contracts import Batch, ModelOutput
from coordvlm.coords.vocab import CoordVocab
from coordvlm.models.adapters import Adapter, merged_state
from coordvlm.models.checkpointing import set_checkpointing, suspended
from coordvlm.models.coord_rows import CoordRows
from coordvlm.models.head import full_logits
from coordvlm.models.heads import HEAD_OUTPUTS
from coordvlm.models.loading import FAMILIES
from coordvlm.models.reading import read_output
from coordvlm.models.vision import PixelNorm, specialise_for_stills
from coordvlm.utils.errors import ConfigError

NEEDS = frozenset({"text_nll", "text_lse", "text_coord_lse", "text_correct", "slot_logits", "slot_lse", "slot_correct", *HEAD_OUTPUTS})


@dataclass(frozen=True)
class ImageFeatures:
    """Vision output: ``tokens`` [Nv, D]; ``deepstack`` one [Nv, D] per early language layer (empty for families without)."""

    tokens: Tensor
    deepstack: tuple[Tensor, ...] = ()

    def rows(self, index: Tensor) -> ImageFeatures:
        return ImageFeatures(self.tokens[index], tuple(x[index] for x in self.deepstack))


class Backbone(nn.Module):
    """See the module docstring.

    Args:
        hf_model: a ``Qwen2VL``, ``Qwen2_5_VL`` or ``Qwen3VLForConditionalGeneration``.
        vocab: token ids of coordinates and markers.
        rows: the new-token rows (``coord_rows.CoordRows`` built for this model).
        image_mean, image_std: of the family's image processor.
        freeze: parts that do not train: any of ``vision``, ``merger``, ``language``.
        checkpoint_every: gradient checkpointing of every n-th layer of the parts that train; 0: none.
        heads: regression heads by name (``heads.build_heads``); none by default.
    """

    def __init__(
        self,
        hf_model: PreTrainedModel,
        vocab: CoordVocab,
        rows: CoordRows,
        *,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        freeze: Collection[str] = (),
        checkpoint_every: int = 0,
        heads: nn.ModuleDict | None = None,
    ) -> None:
        super().__init__()
        if hf_model.config.model_type not in FAMILIES:
            raise ConfigError(f"model family {hf_model.config.model_type!r} is not supported here; supported: {', '.join(FAMILIES)}")
        self.hf = hf_model
        self.vocab = vocab
        self.rows = rows
        self.heads = nn.ModuleDict() if heads is None else heads
        self.pixel_norm = PixelNorm(image_mean, image_std)
        self.adapter: Adapter | None = None  # see ``adapters.add_adapter``
        self.frozen = frozenset(freeze)
        specialise_for_stills(hf_model.model.visual)
        self._freeze(self.frozen)
        hf_model.train()  # what from_pretrained returns is in eval mode, where the library checkpoints nothing
        self.set_checkpointing(checkpoint_every)

    # ------------------------------------------------------------------ parts
    @property
    def tied(self) -> bool:
        return self.rows.rows_out is None

    @property
    def table(self) -> nn.Embedding:
        return self.hf.get_input_embeddings()  # type: ignore[no-any-return]

    @property
    def head_weight(self) -> Tensor:
        """[V, D], the base output table."""
        return self.table.weight if self.tied else self.hf.lm_head.weight

    @property
    def num_columns(self) -> int:
        """Columns of ``z``: base rows, then new rows."""
        return self.rows.num_base + len(self.rows.new_ids)

    def _freeze(self, parts: frozenset[str]) -> None:
        modules = {"vision": self.hf.model.visual, "merger": self.hf.model.visual.merger, "language": self.hf.model.language_model}
        if unknown := parts - set(modules):
            raise ConfigError(f"freeze knows {', '.join(modules)}, got {', '.join(sorted(unknown))}")
        merger_names = ("merger.", "deepstack_merger_list.")
        for name, parameter in modules["vision"].named_parameters():
            part = "merger" if name.startswith(merger_names) else "vision"
            parameter.requires_grad_(part not in parts)
        if "language" in parts:
            modules["language"].requires_grad_(False)
            if not self.tied:
                self.hf.lm_head.requires_grad_(False)

    def freeze_unread(self, needs: Collection[str]) -> None:
        """Freeze output tables that no field of ``needs`` reads. They would get no gradient, and several processes wait for every one."""
        rows_out = self.rows.rows_out
        if rows_out is None or any(name.startswith("text_") for name in needs) or {"slot_lse", "slot_correct"} & set(needs):
            return
        self.hf.lm_head.requires_grad_(False)
        if "slot_logits" not in needs:
            rows_out.requires_grad_(False)

    def set_checkpointing(self, every: int) -> int:
        """Gradient checkpointing of every n-th language layer, and vision block if the tower trains; 0: none. Returns how many."""
        self.checkpoint_every = every
        visual = self.hf.model.visual
        in_tower = every if any(p.requires_grad for p in visual.blocks.parameters()) else 0
        return set_checkpointing(self.hf.model.language_model.layers, every) + set_checkpointing(visual.blocks, in_tower)

    # ---------------------------------------------------------------- forward
    def image_features(self, pixels: Tensor, grid_thw: Tensor) -> ImageFeatures:
        """uint8[P, 3, ps, ps], long[I, 3] -> features; no graph when nothing in the tower trains."""
        visual = self.hf.model.visual
        trains = torch.is_grad_enabled() and any(p.requires_grad for p in visual.parameters())
        with torch.set_grad_enabled(trains):
            out = visual(self.pixel_norm(pixels), grid_thw=grid_thw, return_dict=True)
        return ImageFeatures(out.pooler_output, tuple(getattr(out, "deepstack_features", None) or ()))

    def hidden(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        *,
        features: ImageFeatures | None = None,
        image_pos: Tensor | None = None,
        cache: Any = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """[B, T, D] final hidden states; the inner language model's ``last_hidden_state``.

        Args:
            input_ids: long[B, T]. position_ids: long[3, B, T].
            features, image_pos: image tokens and their flat positions b*T + t, long[Nv].
            cache: for decoding; training passes None. attention_mask: None (causal over right padding) or bool[B, 1, T, S].
        """
        embeds = self.rows.embed(input_ids, self.table)
        extra: dict[str, Any] = {}
        if features is not None:
            assert image_pos is not None
            flat = embeds.flatten(0, 1)
            embeds = flat.index_copy(0, image_pos, features.tokens.to(flat.dtype)).view_as(embeds)
            if features.deepstack:
                mask = torch.zeros(flat.shape[0], dtype=torch.bool, device=flat.device)
                mask[image_pos] = True
                extra = {"visual_pos_masks": mask.view(input_ids.shape), "deepstack_visual_embeds": list(features.deepstack)}
        language = self.hf.model.language_model
        with nullcontext() if cache is None or not self.checkpoint_every else suspended(language.layers):
            out = language(
                inputs_embeds=embeds,
                position_ids=position_ids,
                attention_mask=attention_mask,
                past_key_values=cache,
                use_cache=cache is not None,
                return_dict=True,
                **extra,
            )
        return out.last_hidden_state  # type: ignore[no-any-return]

    def forward(self, batch: Batch, needs: Collection[str], features: ImageFeatures | None = None) -> ModelOutput:
        """Run the batch and return exactly what ``needs`` names (see ``ModelOutput``).

        Args:
            features: cached vision output of this batch; the tower is not run when given.
        """
        if unknown := set(needs) - NEEDS:
            raise ValueError(f"the backbone cannot give {', '.join(sorted(unknown))}; it knows {', '.join(sorted(NEEDS))}")
        if features is None:
            features = self.image_features(batch.pixels, batch.image_grid_thw)
        hidden = self.hidden(batch.input_ids, batch.position_ids, features=features, image_pos=batch.image_pos)
        return self.read(hidden.flatten(0, 1), batch, needs)

    def read(self, flat_hidden: Tensor, batch: Batch, needs: Collection[str]) -> ModelOutput:
        """Apply the heads to the rows that ``needs`` reads. ``flat_hidden``: [B * T, D]."""
        return read_output(flat_hidden, batch, needs, rows=self.rows, head_weight=self.head_weight, heads=self.heads)

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """float32[R, num_columns] for a few rows; dead columns are -inf. Columns become ids through ``rows.token_ids``."""
        return full_logits(hidden_RD, self.head_weight, self.rows.out, self.rows.shadow)

    # ----------------------------------------------------------------- export
    @torch.no_grad()
    def to_hf(self) -> PreTrainedModel:
        """A standard Hugging Face model in memory with the rows written into its table: the oracle of the equality tests.

        An adapter is merged into the weights and quantised ones are whole again; in the type of the base, so bfloat16 rounds the merged
        weights. The table grows to hold the largest new id and never shrinks.
        """
        mine = self.hf
        config = copy.deepcopy(mine.config)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        standard = type(mine)(config)
        standard.load_state_dict(merged_state(mine, standard.state_dict()))
        standard.to(dtype=mine.dtype, device=self.rows.new_ids.device)
        size = max(self.rows.num_base, int(self.rows.new_ids.max()) + 1)
        if size > self.rows.num_base:
            standard.resize_token_embeddings(size, mean_resizing=False)
        ids = self.rows.new_ids
        standard.get_input_embeddings().weight[ids] = self.rows.rows_in.to(mine.dtype)
        if not self.tied:
            standard.lm_head.weight[ids] = self.rows.out.to(mine.dtype)
        standard.generation_config = copy.deepcopy(mine.generation_config)
        return standard.eval()  # type: ignore[no-any-return]
