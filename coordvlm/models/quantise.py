"""QLoRA: an adapter on a language model in 4 or 8 bits (bitsandbytes), arXiv:2305.14314. On CUDA; what happens elsewhere is a setting.

Nothing is cast up afterwards as peft's ``prepare_model_for_kbit_training`` does: norms and embeddings are frozen here, adapters and
new-token rows are float32 already, and checkpointing (see ``checkpointing``) needs no gradient at the embeddings.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch

from coordvlm.models.adapters import Lora
from coordvlm.utils.devices import Devices
from coordvlm.utils.errors import ConfigError

#: Kept as they are: the tower is small and sees every pixel, and the head works on chosen rows of its weight.
WHOLE = ("model.visual", "lm_head")
BITS, TYPES, POLICIES = (4, 8), ("nf4", "fp4"), ("full_precision", "refuse")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class QLora(Lora):
    """Settings of an adapter on a quantised language model.

    Args:
        bits: 4 or 8. quant_type: of 4 bits: ``nf4`` or ``fp4``. double_quant: of 4 bits: the scales are quantised too.
        without_cuda: on other devices: ``full_precision`` (a warning, then the same adapter on whole weights) or ``refuse``.
    """

    bits: int
    quant_type: str
    double_quant: bool
    without_cuda: str

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value, options in (("bits", self.bits, BITS), ("quant_type", self.quant_type, TYPES)):
            if value not in options:
                raise ConfigError(f"adapter.{name} must be one of {', '.join(map(str, options))}, got {value!r}")
        if self.without_cuda not in POLICIES:
            raise ConfigError(f"adapter.without_cuda must be one of {', '.join(POLICIES)}, got {self.without_cuda!r}")


@dataclass(frozen=True)
class Quantisation:
    """How weights are read: bits as in ``QLora``, computed with in bfloat16, onto this CUDA device."""

    bits: int
    quant_type: str
    double_quant: bool
    device: int

    def arguments(self) -> dict[str, Any]:
        """For ``from_pretrained``."""
        from transformers import BitsAndBytesConfig

        config = BitsAndBytesConfig(
            load_in_4bit=self.bits == 4,
            load_in_8bit=self.bits == 8,
            llm_int8_skip_modules=list(WHOLE),
            bnb_4bit_compute_dtype=torch.bfloat16,
            bnb_4bit_quant_type=self.quant_type,
            bnb_4bit_use_double_quant=self.double_quant,
        )
        return {"quantization_config": config, "device_map": {"": self.device}}


def installed() -> bool:
    """Whether there is a bitsandbytes."""
    return importlib.util.find_spec("bitsandbytes") is not None


def settle_quantisation(adapter: Lora | None, devices: Devices, load: Callable[..., Any]) -> Quantisation | None:
    """What the weights are read in on these devices; None: whole.

    Args:
        load: what reads them; it must take ``quantise`` if they are to be quantised.
    Raises:
        ConfigError: quantisation that is refused elsewhere than on CUDA, or cannot be had: sharded weights, a model made on the spot, no
            bitsandbytes.
    """
    if not isinstance(adapter, QLora):
        return None
    wanted = f"adapter.bits={adapter.bits}"
    if devices.accelerator != "gpu":
        found = f"{wanted} needs a CUDA device, and this run uses {devices.accelerator}"
        if adapter.without_cuda == "refuse":
            raise ConfigError(f"{found}; adapter.without_cuda=full_precision trains the same adapter on whole weights")
        log.warning("%s: the base stays in full precision", found)
        return None
    if devices.strategy == "fsdp":
        raise ConfigError(f"{wanted} does not go with trainer.strategy=fsdp: packed weights are not shared out here; use ddp")
    function = getattr(load, "func", load)
    if "quantise" not in signature(function).parameters:
        raise ConfigError(f"{wanted} is for published weights; this model is made by {function.__name__}, which cannot quantise")
    if not installed():
        raise ConfigError(f"{wanted} needs the package bitsandbytes; install it with: pip install 'coordvlm[qlora]'")
    rank = int(os.environ.get("LOCAL_RANK", "0")) if devices.num_processes > 1 else 0
    return Quantisation(adapter.bits, adapter.quant_type, adapter.double_quant, devices.indices[rank])
