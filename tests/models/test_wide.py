from __future__ import annotations

import torch
from torch import nn

from coordvlm.models.wide import AtLeastFloat32


class Mixed(AtLeastFloat32):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.full((3,), 1 / 3))
        self.register_buffer("shift", torch.full((3,), 1 / 7))
        self.register_buffer("ids", torch.arange(3))


def test_casting_down_changes_no_bit_and_casting_up_works() -> None:
    model = nn.Sequential(nn.Linear(3, 3), Mixed())
    mixed = model[1]
    before = {n: x.clone() for n, x in (*mixed.named_parameters(recurse=False), *mixed.named_buffers())}
    for cast in (lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.bfloat16()):
        cast(model)
        assert model[0].weight.dtype in (torch.bfloat16, torch.float16)
        now = dict((*mixed.named_parameters(recurse=False), *mixed.named_buffers()))
        assert all(torch.equal(now[n], x) and now[n].dtype == x.dtype for n, x in before.items())
    model.double()
    assert (mixed.scale.dtype, mixed.shift.dtype, mixed.ids.dtype) == (torch.float64, torch.float64, torch.int64)


def test_devices_are_followed() -> None:
    mixed = Mixed().to(device="meta", dtype=torch.bfloat16)
    assert mixed.scale.device.type == "meta"
    assert mixed.scale.dtype == torch.float32
