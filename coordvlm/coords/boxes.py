"""Overlap of boxes, paired and pairwise: IoU, GIoU, DIoU and CIoU. Differentiable.

Shapes: N, M boxes, xyxy in any one unit; a degenerate box (no area) overlaps nothing and never yields NaN. Results are
float32, or float64 for float64 boxes: integer and half precision boxes are widened first, because an area leaves their
range (300 x 300 px overflows float16 and int16).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _widen(boxes: Tensor) -> Tensor:
    if boxes.shape[-1] != 4:
        raise ValueError(f"boxes must be xyxy, float[..., 4], got shape {tuple(boxes.shape)}")
    return boxes if boxes.dtype in (torch.float32, torch.float64) else boxes.float()


def area(boxes_N4: Tensor) -> Tensor:
    """float[N] area; negative extents count as zero."""
    boxes_N4 = _widen(boxes_N4)
    return (boxes_N4[..., 2:] - boxes_N4[..., :2]).clamp(min=0).prod(-1)


def order_corners(boxes_N4: Tensor) -> Tensor:
    """Swap crossed corners so that x1 <= x2 and y1 <= y2; the gradient follows the values."""
    low = torch.minimum(boxes_N4[..., :2], boxes_N4[..., 2:])
    high = torch.maximum(boxes_N4[..., :2], boxes_N4[..., 2:])
    return torch.cat((low, high), -1)


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    a, b = _widen(a), _widen(b)
    sides = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    inter = sides.clamp(min=0).prod(-1)
    return inter, area(a) + area(b) - inter


def _ratio(num: Tensor, den: Tensor) -> Tensor:
    """``num / den``, 0 where ``den`` is 0. Asked as ``den == 0`` so that NaN stays NaN and a guard can see it."""
    empty = den == 0
    return torch.where(empty, torch.zeros_like(num), num / torch.where(empty, torch.ones_like(den), den))


def iou(a: Tensor, b: Tensor) -> Tensor:
    """float[...] in [0, 1] for broadcastable boxes float[..., 4]."""
    return _ratio(*_overlap(a, b))


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU in [-1, 1]: ``IoU - (hull - union) / hull``. Source: Rezatofighi et al. 2019, arXiv:1902.09630."""
    a, b = _widen(a), _widen(b)
    inter, union = _overlap(a, b)
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    return _ratio(inter, union) - _ratio(hull - union, hull)


def _diou_parts(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """IoU, squared distance of the centres over the squared diagonal of the hull, and that squared diagonal."""
    hull = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    apart = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2
    diagonal2 = hull.square().sum(-1)
    return _ratio(*_overlap(a, b)), _ratio(apart.square().sum(-1), diagonal2), diagonal2


def diou(a: Tensor, b: Tensor) -> Tensor:
    """Distance IoU in [-1, 1]: ``IoU - centre distance^2 / hull diagonal^2``. Source: Zheng et al. 2019, arXiv:1911.08287."""
    overlap, apart, _ = _diou_parts(_widen(a), _widen(b))
    return overlap - apart


def _aspect(boxes_N4: Tensor, floor: Tensor) -> Tensor:
    sides = torch.maximum(boxes_N4[..., 2:] - boxes_N4[..., :2], floor[..., None])
    return torch.atan2(sides[..., 0], sides[..., 1])


def ciou(a: Tensor, b: Tensor) -> Tensor:
    """Complete IoU in [-2, 1]: ``DIoU - alpha v``, where v compares aspect ratios and ``alpha = v / (1 - IoU + v)``.

    ``v = 4 / pi^2 (arctan(w_b / h_b) - arctan(w_a / h_a))^2``. alpha is a constant to the gradient, as in the paper. For the
    aspect ratio a side counts as at least 1e-7 of the hull's diagonal, so that a box without area has finite value and
    gradient. The gradient of v grows as 1 / size of the box; the paper's code drops that factor, this one keeps it.

    Source: Zheng et al. 2019, arXiv:1911.08287.
    """
    a, b = _widen(a), _widen(b)
    overlap, apart, diagonal2 = _diou_parts(a, b)
    floor = (diagonal2.detach().sqrt() * 1e-7).clamp(min=1e-12)
    v = (_aspect(b, floor) - _aspect(a, floor)).square() * (4 / math.pi**2)
    with torch.no_grad():
        alpha = _ratio(v, (1 - overlap).clamp(min=0) + v)
    return overlap - apart - alpha * v


def pairwise_iou(a_N4: Tensor, b_M4: Tensor) -> Tensor:
    """float[N, M]."""
    return iou(a_N4[:, None], b_M4[None])


def pairwise_giou(a_N4: Tensor, b_M4: Tensor) -> Tensor:
    """float[N, M]."""
    return giou(a_N4[:, None], b_M4[None])


def pairwise_diou(a_N4: Tensor, b_M4: Tensor) -> Tensor:
    """float[N, M]."""
    return diou(a_N4[:, None], b_M4[None])


def pairwise_ciou(a_N4: Tensor, b_M4: Tensor) -> Tensor:
    """float[N, M]."""
    return ciou(a_N4[:, None], b_M4[None])
