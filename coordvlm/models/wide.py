"""Modules that stay at least float32 when the model around them is cast down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound="AtLeastFloat32")


class AtLeastFloat32(nn.Module):
    """``.to(bfloat16)``, ``.half()`` and the like move parameters and buffers of this module, but never below float32."""

    def _apply(self: M, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> M:
        def careful(tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point():
                return fn(tensor)
            target = fn(torch.empty(0, dtype=tensor.dtype, device=tensor.device))
            if torch.finfo(target.dtype).bits >= 32 or torch.finfo(tensor.dtype).bits < 32:
                return fn(tensor)
            return tensor.to(device=target.device)

        applied: Any = super()._apply(careful, recurse)  # type: ignore[no-untyped-call]
        return applied  # type: ignore[no-any-return]
