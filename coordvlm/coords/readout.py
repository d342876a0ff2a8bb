"""From scores over bins to one number: the read-outs of a coordinate slot. Pure, differentiable where they can be.

Shapes: N slots, K bins; leading axes may be more or fewer than one. Scores are logits over the K coordinate columns in
bin order; ``values_K`` is ``Grid.bin_values()``, so results are normalised coordinates.

Weighted means are multiplied and summed, never ``p @ v``: a matrix product runs in bf16 under autocast and in TF32 where
that is allowed, and 10 bits of mantissa are a whole bin of 1000.
"""

from __future__ import annotations

import torch
from torch import Tensor


def upcast(x: Tensor) -> Tensor:
    """At least float32; float64 stays float64."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _mean(logits: Tensor, values: Tensor) -> Tensor:
    p = torch.softmax(logits, -1)
    return (p * values.to(p)).sum(-1)


def expectation(logits_NK: Tensor, values_K: Tensor, temperature: float = 1.0) -> Tensor:
    """``sum_k softmax(s / T)_k v_k``, float[N]. ``d c_hat / d s_k = p_k (v_k - c_hat) / T``."""
    return _mean(upcast(logits_NK) / temperature, values_K)


def argmax(logits_NK: Tensor, values_K: Tensor) -> Tensor:
    """Value of the highest bin, float[N]; no gradient."""
    return values_K.to(upcast(logits_NK))[logits_NK.argmax(-1)]


def local_expectation(logits_NK: Tensor, values_K: Tensor, window: int = 16, temperature: float = 1.0) -> Tensor:
    """Expectation over the bins within +-``window`` of the mode, renormalised there, float[N].

    Sub-bin precision without averaging two modes: mass far from the mode has no say.
    """
    s_NK = upcast(logits_NK) / temperature
    bins_K = torch.arange(s_NK.shape[-1], device=s_NK.device)
    far_NK = (bins_K - s_NK.argmax(-1, keepdim=True)).abs() > window
    return _mean(s_NK.masked_fill(far_NK, float("-inf")), values_K)


def topk_expectation(logits_NK: Tensor, values_K: Tensor, k: int, temperature: float = 1.0) -> Tensor:
    """Expectation over the ``k`` most likely bins, renormalised among them, float[N]. ``k`` in [1, K]."""
    top_Nk = (upcast(logits_NK) / temperature).topk(k, -1)
    return _mean(top_Nk.values, values_K.to(top_Nk.values)[top_Nk.indices])


def straight_through(logits_NK: Tensor, values_K: Tensor, temperature: float = 1.0) -> Tensor:
    """Value of ``argmax`` with the gradient of ``expectation``, float[N]. Source: Bengio et al. 2013, arXiv:1308.3432."""
    mean_N = expectation(logits_NK, values_K, temperature)
    return argmax(logits_NK, values_K) + (mean_N - mean_N.detach())


def mass_near(logits_NK: Tensor, lse_N: Tensor, bins_N: Tensor, radius: int) -> Tensor:
    """Probability within +-``radius`` bins of ``bins_N`` under the distribution whose normaliser is ``lse_N``, float[N]."""
    s_NK = upcast(logits_NK)
    bins_K = torch.arange(s_NK.shape[-1], device=s_NK.device)
    far_NK = (bins_K - bins_N[:, None]).abs() > radius
    return (s_NK.masked_fill(far_NK, float("-inf")).logsumexp(-1) - upcast(lse_N)).exp()
