"""How much memory a run needs, estimated from sizes before its first step.

Activations are what autograd keeps for the backward, counted tensor by tensor for these architectures as the library runs them; tests
compare the counts with what is really saved, and the estimate with the peak of a process (tests/analysis/test_cost.py says how near it is).

Precisions: ``32`` and ``bf16`` are those of the weights; ``mixed`` is float32 weights under bfloat16 autocast.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from coordvlm.analysis.adapter_cost import NO_ADAPTERS, AdapterBytes
from coordvlm.analysis.architecture import Architecture as Architecture
from coordvlm.analysis.architecture import element
from coordvlm.contracts import Batch
from coordvlm.models.backbone import Backbone
from coordvlm.models.checkpointing import AUTO
from coordvlm.models.head import CHUNK_BYTES
from coordvlm.modules.optim import group_of, is_hidden_matrix

#: Share of a device's memory that a plan may fill; the rest is for fragmentation, kernels' workspaces and larger batches to come.
FILL = 0.9
#: What ``auto`` tries in turn: no checkpointing, then every n-th layer.
CHOICES = (0, 4, 3, 2, 1)
GB = 1e9


@dataclass(frozen=True)
class Parameters:
    """Bytes of everything that stays: ``casts`` are the bfloat16 copies of matrices that autocast holds on to during a step."""

    weights: int
    gradients: int
    optimiser: int
    casts: int
    language_trains: bool
    table_trains: bool
    vision_trains: bool
    merger_trains: bool

    @classmethod
    def of(cls, named: Iterable[tuple[str, nn.Parameter]], *, precision: str, muon: bool = False) -> Parameters:
        """``muon``: hidden matrices have one optimiser state instead of AdamW's two."""
        weights = gradients = optimiser = casts = 0
        trains: set[str] = set()
        table_trains = False
        for name, parameter in named:
            size = parameter.numel() * parameter.element_size()
            weights += size
            group, is_table = group_of(name), "embed_tokens" in name or "lm_head" in name
            passes = group == "language" or parameter.requires_grad  # gradients go through it: its bfloat16 copy is kept for the backward
            cast = parameter.ndim == 2 and group not in ("rows", "heads") and not is_table and "pos_embed" not in name
            if precision == "mixed" and passes and cast:
                casts += 2 * parameter.numel()
            if not parameter.requires_grad:
                continue
            trains.add("table" if is_table else "vision" if group == "adapter" and ".visual." in name else group)
            table_trains |= is_table
            gradients += size
            optimiser += size * (1 if muon and is_hidden_matrix(name, parameter) else 2)
        return cls(weights, gradients, optimiser, casts, "language" in trains, table_trains, "vision" in trains, "merger" in trains)


@dataclass(frozen=True)
class Load:
    """What one step works on: padded ``tokens`` (B x T), vision ``patches``, supervised ``rows``, and what one decode holds at its end."""

    tokens: int
    patches: int
    rows: int = 0
    decode_rows: int = 0
    decode_length: int = 0

    @classmethod
    def of(cls, batch: Batch, *, decode_batch: int = 0, max_new_tokens: int = 0) -> Load:
        length = int(batch.prompt_lengths.max()) + max_new_tokens if decode_batch else 0
        return cls(batch.input_ids.numel(), len(batch.pixels), len(batch.text_row) + len(batch.slot_row), decode_batch, length)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that tensors take; an allocator may hold more.

    ``activations``: by part. ``workspace``: one layer's gradients or recomputation, or the head's, whichever is larger.
    ``cache``: keys and values of decoding, which come when activations are gone.
    """

    weights: float
    gradients: float
    optimiser: float
    activations: dict[str, float] = field(default_factory=dict)
    workspace: float = 0.0
    cache: float = 0.0

    @property
    def fixed(self) -> float:
        return self.weights + self.gradients + self.optimiser

    @property
    def total(self) -> float:
        return self.fixed + max(sum(self.activations.values()) + self.workspace, self.cache)

    def line(self, of: float | None = None) -> str:
        """One line, in GB; of a small model in MB."""
        unit, name = (GB, "GB") if self.total >= GB else (1e6, "MB")
        parts = {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimiser": self.optimiser,
            **self.activations,
            "workspace": self.workspace,
        }
        limit = "" if of is None else f" of {of / GB:.1f}{'' if name == 'GB' else ' GB'}"
        return (
            f"memory estimate {self.total / unit:.1f} {name}{limit}: "
            + ", ".join(f"{part} {value / unit:.1f}" for part, value in parts.items())
            + f"; cache when decoding {self.cache / unit:.1f}"
        )


def estimate(
    architecture: Architecture,
    parameters: Parameters,
    load: Load,
    *,
    precision: str,
    checkpoint_every: int,
    shards: int = 1,
    adapters: AdapterBytes = NO_ADAPTERS,
) -> MemoryEstimate:
    """The peak of training steps and of decoding between them.

    Args:
        precision: ``32``, ``bf16`` or ``mixed``.
        checkpoint_every: gradient checkpointing of every n-th layer (and vision block, if they train); 0: none.
        shards: processes that weights, gradients and optimiser states are split over.
        adapters: what they keep beside the layers they sit on.
    """
    a, p = architecture, parameters
    residual = 2 if precision == "bf16" else 4  # autocast keeps the residual stream in float32
    layer = (a.layer_bytes(precision, trains=p.language_trains) + adapters.language) * load.tokens + adapters.language_copies
    chosen = -(-a.layers // checkpoint_every) if checkpoint_every else 0
    language = (a.layers - chosen) * layer + chosen * residual * a.d * load.tokens
    language += (12 + 4 * residual) * a.d * load.tokens  # embedded, with image tokens in place, final norm
    block = (a.block_bytes(precision) + adapters.vision) * load.patches + adapters.vision_copies if p.vision_trains else 0.0
    vision = 0.0
    if p.vision_trains:
        chosen = -(-a.blocks // checkpoint_every) if checkpoint_every else 0
        vision = (a.blocks - chosen) * block + chosen * residual * a.vision_d * load.patches + 12 * a.patch**2 * load.patches
    if p.vision_trains or p.merger_trains:
        vision += a.merger_bytes(precision) * load.patches
    logits = min(CHUNK_BYTES, 4 * a.table_rows * load.rows)
    head = 3.0 * logits + (
        2 * 4 * a.table_rows * a.d if p.table_trains else 0
    )  # logits, their gradient, a low-precision copy; table gradient
    cache = 2 * a.layers * a.kv * element(precision) * load.decode_rows * load.decode_length
    return MemoryEstimate(
        weights=p.weights / shards + p.casts,
        gradients=p.gradients / shards,
        optimiser=p.optimiser / shards,
        activations={"vision": vision, "language": language},
        workspace=max(layer, block, head),
        cache=cache,
    )


@dataclass(frozen=True)
class MemoryPlan:
    """An estimate, the gradient checkpointing it is for, and what to say about both."""

    estimate: MemoryEstimate
    checkpoint_every: int
    available: float | None
    text: str

    @property
    def fits(self) -> bool:
        return self.available is None or self.estimate.total <= self.available


def plan(
    backbone: Backbone,
    batch: Batch,
    *,
    precision: str,
    checkpointing: int | str,
    decode_batch: int,
    max_new_tokens: int,
    muon: bool,
    available: float | None,
    shards: int = 1,
) -> MemoryPlan:
    """Estimate a run from its model and a training batch, and settle ``auto``: no checkpointing while it fits, then every n-th layer.

    Args:
        precision: Lightning's: ``32-true``, ``bf16-mixed``, ``bf16-true`` ...
        checkpointing: as ``parse_checkpointing`` gives it: 0, n or ``auto``.
        decode_batch, max_new_tokens: of evaluation.
        muon: whether hidden matrices are trained by Muon.
        available: bytes of the device, see ``device_memory``; None: unknown, then ``auto`` is off.
    """
    kind = _precision(precision, backbone)
    parameters = Parameters.of(backbone.named_parameters(), precision=kind, muon=muon)
    load = Load.of(batch, decode_batch=decode_batch, max_new_tokens=max_new_tokens)
    architecture = Architecture.of(backbone.hf.config)
    adapters = AdapterBytes.of(backbone, autocast="mixed" in precision)
    tried = CHOICES if checkpointing == AUTO else (int(checkpointing),)
    for every in tried:
        found = estimate(architecture, parameters, load, precision=kind, checkpoint_every=every, shards=shards, adapters=adapters)
        if available is None or found.total <= FILL * available:
            break
    else:
        every = tried[-1]
    words = {0: "off", 1: "every layer"}.get(every, f"1 layer in {every}")
    text = f"{found.line(available)}; gradient checkpointing {words}{' (chosen)' if checkpointing == AUTO else ''}"
    if available is not None and found.total > FILL * available:
        advice = "a smaller data.batch_size or model.resize.max_pixels" + ("" if every == 1 else ", or model.gradient_checkpointing=1")
        text += f". This {'will' if found.total > available else 'may'} not fit: try {advice}"
    return MemoryPlan(found, every, available, text)


def describe(backbone: Backbone, batch: Batch, **settings: Any) -> str:
    """The plan's text; arguments as of ``plan``."""
    return plan(backbone, batch, **settings).text


def _precision(precision: str, backbone: Backbone) -> str:
    if "mixed" in precision:
        return "bf16" if backbone.hf.dtype == torch.bfloat16 else "mixed"
    return "bf16" if precision.startswith(("bf16", "16")) or backbone.hf.dtype == torch.bfloat16 else "32"


def device_memory(device: torch.device | str) -> float | None:
    """Bytes of a GPU, or of this machine or container for the CPU; None where it cannot be told."""
    device = torch.device(device)
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    if device.type != "cpu":
        return None
    try:
        total = float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, float(text)) if text.isdigit() else total
