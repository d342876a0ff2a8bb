"""What trains and what does not: one line per group of parameters, for the console, ``run.json`` and the report."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from coordvlm.models.backbone import Backbone
from coordvlm.modules.optim import GROUPS, OptimSettings, group_of, parameter_groups

_PACKED = {torch.uint8: "4 bit", torch.int8: "8 bit"}


def num_weights(parameter: Tensor) -> int:
    """How many weights a parameter stands for; one in 4 bits has fewer elements than that."""
    state = getattr(parameter, "quant_state", None)
    return int(torch.Size(state.shape).numel()) if state is not None else parameter.numel()


def what_trains(backbone: Backbone, settings: OptimSettings, *, precision: str) -> list[dict[str, Any]]:
    """One mapping per group that the model has.

    Args:
        precision: of the run, ``32-true``, ``bf16-mixed`` or ``bf16-true``; the last one casts weights when training begins.
    Returns:
        ``group``, ``parameters``, ``trained``, ``share`` (of the group's weights that train), ``types`` (of weights, during training) and
        ``lr`` (learning rates, highest first; empty when nothing trains).
    """
    named = list(backbone.named_parameters())
    rates: defaultdict[str, set[float]] = defaultdict(set)
    for trained in parameter_groups(named, settings):
        rates[trained["name"].partition("/")[0]].add(float(trained["lr"]))
    found: dict[str, dict[str, Any]] = {}
    for name, parameter in named:
        group = group_of(name)
        line = found.setdefault(group, {"group": group, "parameters": 0, "trained": 0, "types": set()})
        line["parameters"] += num_weights(parameter)
        line["trained"] += num_weights(parameter) if parameter.requires_grad else 0
        line["types"].add(_type(name, parameter, cast=precision == "bf16-true", adapter=backbone.adapter is not None))
    lines = [found[group] for group in GROUPS if group in found and found[group]["parameters"]]
    return [
        {
            **line,
            "share": line["trained"] / line["parameters"],
            "types": sorted(line["types"]),
            "lr": sorted(rates[line["group"]], reverse=True) if line["trained"] else [],
        }
        for line in lines
    ]


def _type(name: str, parameter: Tensor, *, cast: bool, adapter: bool) -> str:
    kept = name.startswith(("rows.", "heads.")) or (adapter and parameter.requires_grad)  # see ``precision.cast_weights``
    if cast and parameter.is_floating_point() and not kept:
        return "bfloat16"
    return _PACKED.get(parameter.dtype, str(parameter.dtype).removeprefix("torch."))
