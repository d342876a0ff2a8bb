"""The check that a loss is a number, without making the host wait for the device at every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from coordvlm.losses.finite import refuse_non_finite
from coordvlm.losses.weighted_sum import LossOutput


@dataclass(frozen=True)
class _Pending:
    """A verdict on its way to the host. ``ready``: an event behind the copy; None where there is nothing to wait for."""

    bad: Tensor
    ready: Any
    loss: LossOutput
    ids: Sequence[int | str]
    step: int


@dataclass
class FiniteGuard:
    """Stops before the optimiser step, naming term and samples.

    On the CPU a loss is looked at at once. On a GPU the verdict is copied to the host behind the forward and read before the optimiser
    step, when the whole backward has been queued already: the host waits for the end of the *forward*, which is long past by then, and
    never empties the queue. Of several ranks the one with the bad loss stops; the others meet its broken connection.

    Args:
        deferred: None: by device. Tests set it.
    """

    deferred: bool | None = None
    _pending: list[_Pending] = field(default_factory=list)

    def watch(self, loss: LossOutput, ids: Sequence[int | str], *, step: int) -> None:
        """Of one micro-batch, after its forward. Raises ``NonFiniteLossError`` here when the check costs nothing."""
        on_gpu = loss.total.is_cuda
        if not (on_gpu if self.deferred is None else self.deferred):
            refuse_non_finite(loss, ids, step=step)
            return
        bad, ready = ~torch.isfinite(loss.total.detach()), None
        if on_gpu:
            bad = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(bad, non_blocking=True)
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record()
        self._pending.append(_Pending(bad, ready, loss, ids, step))

    def settle(self) -> None:
        """Before the optimiser step: raise ``NonFiniteLossError`` for the first bad loss since the last call."""
        pending, self._pending = self._pending, []
        for one in pending:
            if one.ready is not None:
                one.ready.synchronize()
            if bool(one.bad):
                refuse_non_finite(one.loss, one.ids, step=one.step)
