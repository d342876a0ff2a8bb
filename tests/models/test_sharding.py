"""In one process, where nothing is sharded; two real ones are in ``tests/e2e/test_ddp.py``."""

from __future__ import annotations

import copy

import torch
from torch import nn

from coordvlm.models import sharding
from coordvlm.modules.joint import JointOptimizer


def test_nothing_is_sharded_until_it_is_asked_for() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    assert sharding.units(model) == []
    sharding.gather_weights(model)
    sharding.release_weights(model)
    value = torch.ones(2)
    assert sharding.like(value, model[0].bias) is value
    assert sharding.whole({"a": [value, 3]})["a"][0] is value


def test_the_state_of_a_joint_optimiser_goes_through_unchanged() -> None:
    model = nn.Linear(3, 2)
    joint = JointOptimizer(torch.optim.AdamW([model.bias], lr=0.1), torch.optim.SGD([model.weight], lr=0.1, momentum=0.9))
    model(torch.ones(1, 3)).sum().backward()
    joint.step()
    state = copy.deepcopy(joint.state_dict())
    laid = sharding.scatter_optimizer_state(joint, sharding.whole(state))
    assert laid["optimizers"][0]["param_groups"] == state["optimizers"][0]["param_groups"]
    for mine, theirs in zip(laid["optimizers"], state["optimizers"], strict=True):
        for index, moments in theirs["state"].items():
            assert all(torch.equal(mine["state"][index][key], x) for key, x in moments.items() if isinstance(x, torch.Tensor))
    joint.load_state_dict(laid)
