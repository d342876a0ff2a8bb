"""What a training step of the foveated model costs: deep beside shallow queries, both passes, step by step in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from coordvlm.analysis.bench_input import Spread
from coordvlm.contracts import ClipBatch
from coordvlm.models.foveated.model import ARMS, Foveated

_NEEDS = frozenset({"text_nll"})


@dataclass(frozen=True)
class StepTime:
    """ms of one training step (two passes, their gradients, AdamW).

    Args:
        cpu_ms: of this process's own time, which other programs do not touch. wall_ms: by the clock.
    """

    cpu_ms: Spread
    wall_ms: Spread


def measure_steps(models: Mapping[str, Foveated], batch: ClipBatch, *, warmup: int, steps: int) -> tuple[dict[str, StepTime], Spread]:
    """The models train on one batch in turns, so that what else the machine does hits them alike.

    Args:
        models: name -> model; the first two are compared. warmup: steps of each before the clock starts. steps: that are timed.
    Returns:
        Per name its time, and own time of the first model over that of the second, of steps side by side.
    """
    optimizers = {name: torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=1e-5) for name, m in models.items()}
    own: dict[str, list[float]] = {name: [] for name in models}
    wall: dict[str, list[float]] = {name: [] for name in models}
    for number in range(warmup + steps):
        order = list(models) if number % 2 else list(models)[::-1]
        for name in order:
            before = time.process_time(), time.perf_counter()
            _step(models[name], batch, optimizers[name])
            after = time.process_time(), time.perf_counter()
            if number >= warmup:
                own[name].append(1000 * (after[0] - before[0]))
                wall[name].append(1000 * (after[1] - before[1]))
    first, second = list(models)[:2]
    ratios = [a / b for a, b in zip(own[first], own[second], strict=True)]
    low, *_, high = statistics.quantiles(ratios, n=10) if len(ratios) > 1 else ratios * 2
    return (
        {name: StepTime(Spread.of(own[name]), Spread.of(wall[name])) for name in models},
        Spread(statistics.median(ratios), low, high),
    )


def _step(model: Foveated, batch: ClipBatch, optimizer: torch.optim.Optimizer) -> None:
    outputs = model(batch, _NEEDS, ARMS)
    losses = [output.text_nll.mean() for passes in outputs.values() for output in passes]
    torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
