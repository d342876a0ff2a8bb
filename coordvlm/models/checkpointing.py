"""Gradient checkpointing of chosen layers: their activations are computed again in the backward instead of kept.

Done layer by layer on purpose. The library's ``enable_input_require_grads`` hooks the *vision* patch embedding of Qwen2-VL and Qwen2.5-VL,
and a frozen tower then runs a whole backward. Non-reentrant checkpointing needs no input with a gradient, so nothing is hooked here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from coordvlm.utils.errors import ConfigError

AUTO = "auto"


def parse_checkpointing(value: object, where: str = "model.gradient_checkpointing") -> int | str:
    """``off`` (0), ``auto``, or n for every n-th layer; YAML reads ``off`` and ``on`` as booleans, and null means off."""
    if value is None or value is False or value in ("off", "false", 0):
        return 0
    if value is True or value in ("on", "true"):
        return 1
    if value == AUTO:
        return AUTO
    try:
        every = int(str(value))
    except ValueError:
        every = -1
    if every < 1:
        raise ConfigError(f"{where} must be off, auto or a whole number n (every n-th layer), got {value!r}")
    return every


def set_checkpointing(layers: Iterable[nn.Module], every: int) -> int:
    """Checkpoint every ``every``-th of the layers, the first one included, 0: none; returns how many."""
    num = 0
    for index, layer in enumerate(layers):
        if not hasattr(layer, "gradient_checkpointing"):
            raise TypeError(f"{type(layer).__name__} is not a layer that transformers can checkpoint")
        chosen = every > 0 and index % every == 0
        layer.gradient_checkpointing = chosen  # type: ignore[assignment]
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)  # type: ignore[assignment]
        num += chosen
    return num


@contextmanager
def suspended(layers: Iterable[nn.Module]) -> Iterator[None]:
    """No checkpointing inside: the library would drop the key-value cache of a layer that is checkpointed."""
    chosen = [layer for layer in layers if getattr(layer, "gradient_checkpointing", False)]
    for layer in chosen:
        layer.gradient_checkpointing = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for layer in chosen:
            layer.gradient_checkpointing = True  # type: ignore[assignment]
