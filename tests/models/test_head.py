"""The chunked log-normaliser against autograd through whole logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from coordvlm.models.head import CHUNK_BYTES, full_logits, lse_and_target

V, E, K, D = 50, 14, 12, 8
SHADOW = (3, 40, 41)
Parts = dict[str, Tensor]


def parts(num: int = 9, dtype: torch.dtype = torch.float32, rows_dtype: torch.dtype | None = None, seed: int = 0) -> Parts:
    g = torch.Generator().manual_seed(seed)
    shadow = torch.zeros(V, dtype=torch.bool)
    shadow[list(SHADOW)] = True
    live = [i for i in range(V + E) if i not in SHADOW]
    return {
        "h": torch.randn((num, D), generator=g, dtype=torch.float64).to(dtype).requires_grad_(),
        "base": torch.randn((V, D), generator=g, dtype=torch.float64).to(dtype).requires_grad_(),
        "rows": torch.randn((E, D), generator=g, dtype=torch.float64).to(rows_dtype or dtype).requires_grad_(),
        "shadow": shadow,
        "target": torch.tensor(live)[torch.randint(len(live), (num,), generator=g)],
    }


def chunked(p: Parts, chunk_bytes: int = CHUNK_BYTES) -> tuple[Tensor, Tensor, Tensor]:
    return lse_and_target(p["h"], p["base"], p["rows"], p["shadow"], p["target"], K, chunk_bytes)[:3]


def naive(p: Parts) -> tuple[Tensor, Tensor, Tensor]:
    """Whole logits of the live columns only, through autograd."""
    live = ~p["shadow"]
    z = torch.cat((p["h"] @ p["base"][live].T, p["h"] @ p["rows"].T), -1)
    column = torch.cat((live.cumsum(0) - 1, int(live.sum()) + torch.arange(E)))
    new = z[:, int(live.sum()) :]
    return z.logsumexp(-1), z.gather(1, column[p["target"]][:, None]).squeeze(1), new[:, :K].logsumexp(-1)


def gradients(p: Parts, out: tuple[Tensor, ...]) -> list[Tensor]:
    weights = (1.0, -0.7, 0.3)
    total = sum(w * (x * torch.linspace(0.5, 1.5, len(x)).to(x)).sum() for w, x in zip(weights, out, strict=True))
    return list(torch.autograd.grad(total, [p["h"], p["base"], p["rows"]]))


@pytest.mark.parametrize("chunk_bytes", [1, 4 * (V + E) * 2, CHUNK_BYTES])
def test_values_and_gradients_equal_whole_logits_however_it_is_cut(chunk_bytes: int) -> None:
    p = parts(dtype=torch.float64)
    mine, theirs = chunked(p, chunk_bytes), naive(p)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)
    for a, b in zip(gradients(p, mine), gradients(p, theirs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def test_float32_agrees_too() -> None:
    p = parts()
    for a, b in zip(gradients(p, chunked(p)), gradients(p, naive(p)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_gradients_pass_gradcheck() -> None:
    p = parts(num=4, dtype=torch.float64)

    def f(h: Tensor, base: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return lse_and_target(h, base, rows, p["shadow"], p["target"], K, 4 * (V + E) * 3)[:3]

    assert torch.autograd.gradcheck(f, (p["h"], p["base"], p["rows"]))


@pytest.mark.parametrize("output", [0, 1, 2])
def test_each_output_alone_gives_its_own_gradient(output: int) -> None:
    p = parts(dtype=torch.float64)
    mine = torch.autograd.grad(chunked(p)[output].sum(), [p["h"], p["base"], p["rows"]])
    theirs = torch.autograd.grad(naive(p)[output].sum(), [p["h"], p["base"], p["rows"]], allow_unused=True)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, atol=1e-12, rtol=1e-12)


def test_a_shadowed_column_neither_counts_nor_learns() -> None:
    p = parts(dtype=torch.float64)
    before = chunked(p)
    grad = gradients(p, before)[1]
    assert torch.equal(grad[list(SHADOW)], torch.zeros_like(grad[list(SHADOW)]))
    with torch.no_grad():
        p["base"][list(SHADOW)] = 100.0
    for a, b in zip(before, chunked(p), strict=True):
        assert torch.equal(a, b)


def test_no_rows_give_no_values_and_zero_gradients() -> None:
    p = parts(num=0)
    out = chunked(p)
    assert [x.shape for x in out] == [(0,)] * 3
    for g, name in zip(gradients(p, out), ("h", "base", "rows"), strict=True):
        assert torch.equal(g, torch.zeros_like(p[name]))


def test_large_logits_stay_finite() -> None:
    p = parts()
    with torch.no_grad():
        p["h"] *= 1e4
    out = chunked(p)
    assert all(bool(torch.isfinite(x).all()) for x in out)
    assert all(bool(torch.isfinite(g).all()) for g in gradients(p, out))
    assert bool((out[0] >= out[1]).all())


def test_bf16_weights_give_float32_values_and_gradients_in_their_own_dtypes() -> None:
    p = parts(dtype=torch.bfloat16, rows_dtype=torch.float32)
    exact = {k: v.detach().double().requires_grad_() if v.is_floating_point() else v for k, v in p.items()}
    mine = chunked(p)
    assert {x.dtype for x in mine} == {torch.float32}
    for a, b in zip(mine, naive(exact), strict=True):
        torch.testing.assert_close(a.double(), b, atol=0.05, rtol=0.01)  # logits up to 9 with 8 bits of mantissa
    got = gradients(p, mine)
    assert [g.dtype for g in got] == [torch.bfloat16, torch.bfloat16, torch.float32]
    for a, b in zip(got, gradients(exact, naive(exact)), strict=True):
        assert float((a.double() - b).norm() / b.norm()) < 0.02


def test_new_rows_are_not_rounded_to_the_weights_dtype() -> None:
    """Two coordinate rows that bf16 cannot tell apart."""
    p = parts(num=1, dtype=torch.bfloat16, rows_dtype=torch.float32)
    with torch.no_grad():
        p["rows"][0] = p["rows"][0].bfloat16().float()
        p["rows"][1] = p["rows"][0] * (1 + 2**-12)
    assert torch.equal(p["rows"][0].bfloat16(), p["rows"][1].bfloat16())
    targets = [torch.tensor([V]), torch.tensor([V + 1])]
    a, b = (lse_and_target(p["h"], p["base"], p["rows"], p["shadow"], y, K)[1] for y in targets)
    assert not torch.equal(a, b)


def test_autocast_changes_nothing() -> None:
    p = parts()
    want = chunked(p)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = chunked(p)
    for a, b in zip(want, got, strict=True):
        assert torch.equal(a, b)


def test_a_frozen_table_gets_no_gradient_and_the_others_keep_theirs() -> None:
    p = parts(dtype=torch.float64)
    want = gradients(p, chunked(p))
    p["base"].requires_grad_(False)
    chunked(p)[0].sum().backward()
    assert p["base"].grad is None
    assert p["h"].grad is not None
    assert p["rows"].grad is not None
    p["h"].grad = p["rows"].grad = None
    out = chunked(p)
    weights = (1.0, -0.7, 0.3)
    sum(w * (x * torch.linspace(0.5, 1.5, len(x)).to(x)).sum() for w, x in zip(weights, out, strict=True)).backward()
    torch.testing.assert_close(p["h"].grad, want[0])
    torch.testing.assert_close(p["rows"].grad, want[2])


def test_whole_logits_have_dead_columns_at_minus_infinity() -> None:
    p = parts()
    z = full_logits(p["h"], p["base"], p["rows"], p["shadow"])
    assert z.shape == (9, V + E)
    assert torch.nonzero(torch.isinf(z).all(0)).flatten().tolist() == list(SHADOW)
    torch.testing.assert_close(z.logsumexp(-1), chunked(p)[0])


@pytest.mark.parametrize("chunk_bytes", [1, CHUNK_BYTES])
def test_the_most_likely_target_is_said_to_be_so(chunk_bytes: int) -> None:
    """Half of the targets are made the best live column; shadowed columns never are, and a tie counts."""
    p = parts(num=12)
    z = full_logits(p["h"], p["base"], p["rows"], p["shadow"]).detach()
    target = torch.where(torch.arange(12) % 2 == 0, z.argmax(-1), p["target"])
    p["base"].data[3] = p["base"].data[4]  # a tie of two columns
    z = full_logits(p["h"], p["base"], p["rows"], p["shadow"]).detach()
    correct = lse_and_target(p["h"], p["base"], p["rows"], p["shadow"], target, K, chunk_bytes)[3]
    assert correct.tolist() == (z.gather(1, target[:, None])[:, 0] >= z.amax(-1)).tolist()
    assert 0 < int(correct.sum()) < 12
    assert not correct.requires_grad
