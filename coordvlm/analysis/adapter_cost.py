"""What adapters keep for the backward beside what their base keeps, counted like the rest of ``cost``.

Per adapted linear layer with ``i`` inputs, ``o`` outputs and rank ``r``: its input after dropout (i) with the mask (a byte each), the
low-rank state (r); DoRA also keeps both results it scales (2 o) and, unless base and adapter are float32 alike, a copy of the matrix (i o).
Elements have 4 bytes, 2 under autocast.
"""

from __future__ import annotations

from dataclasses import dataclass

from coordvlm.models.adapters import adapted
from coordvlm.models.backbone import Backbone


@dataclass(frozen=True)
class AdapterBytes:
    """Mean over layers: bytes per token of a language layer, per patch of a vision block, and of copied matrices in one of each."""

    language: float = 0.0
    vision: float = 0.0
    language_copies: float = 0.0
    vision_copies: float = 0.0

    @classmethod
    def of(cls, backbone: Backbone, *, autocast: bool) -> AdapterBytes:
        """Of a backbone, with an adapter or without; ``autocast``: whether steps run under it."""
        if backbone.adapter is None:
            return cls()
        settings, element = backbone.adapter.settings, 2 if autocast else 4
        copies = 2 if autocast else 4 if str(backbone.hf.dtype) != "torch.float32" else 0
        kept, copied = {"language": 0.0, "vision": 0.0}, {"language": 0.0, "vision": 0.0}
        for name, layer in adapted(backbone.hf):
            part = "vision" if "visual." in name else "language"
            inputs, outputs = int(layer.in_features), int(layer.out_features)
            kept[part] += element * (inputs + settings.r) + (inputs if settings.dropout else 0)
            if settings.dora:
                kept[part] += 2 * element * outputs
                copied[part] += copies * inputs * outputs
        layers = {"language": len(backbone.hf.model.language_model.layers), "vision": len(backbone.hf.model.visual.blocks)}
        return cls(*(sums[part] / max(layers[part], 1) for sums in (kept, copied) for part in ("language", "vision")))


NO_ADAPTERS = AdapterBytes()
