"""The localisation floor: the error that the contract imposes before any model makes one.

Two limits, in source pixels. *Numbers*: a true box written in the contract's bins (or digits) and read back; no model that
answers in them does better, unless it reads between the bins (``expectation``, ``local``). *Patches*: the language model sees
one vector per merged patch; half a patch is how far an edge lies from the nearest patch border at most. A model may well be
better than that, since a patch's vector tells where in it an edge is; it is a scale, not a bound.

Shapes: I images, N true boxes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from coordvlm.contracts.contract import Contract
from coordvlm.contracts.sample import GroundTruth
from coordvlm.coords.boxes import iou
from coordvlm.coords.grid import Digits, Grid, to_norm, to_px

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Floor:
    """What an oracle that writes every true box through the contract would score.

    Args:
        error_px: float64[2N], Euclidean corner errors in source px, as ``metrics.pixels`` measures them.
        iou: float64[N], of each true box with itself after writing and reading.
        half_step_px: float64[I, 2], half the distance of two neighbouring numbers along x and y, source px.
        half_patch_px: float64[I, 2], half a merged patch along x and y, source px through the resize rule.
        left_out: annotations without area and crowds, which are no targets.
    """

    error_px: FloatArray
    iou: FloatArray
    half_step_px: FloatArray
    half_patch_px: FloatArray
    left_out: int

    def error_quantile(self, level: float) -> float:
        """Quantile of the oracle's corner error in source px; NaN without boxes."""
        return float(np.quantile(self.error_px, level)) if len(self.error_px) else float("nan")

    @property
    def mean_px(self) -> float:
        """Mean corner error of the oracle, comparable with ``px_mean``; NaN without boxes."""
        return float(self.error_px.mean()) if len(self.error_px) else float("nan")

    @property
    def half_step(self) -> float:
        """Median over images and axes; NaN without images."""
        return float(np.median(self.half_step_px)) if len(self.half_step_px) else float("nan")

    @property
    def half_patch(self) -> float:
        """Median over images and axes; NaN without images."""
        return float(np.median(self.half_patch_px)) if len(self.half_patch_px) else float("nan")


def localisation_floor(truth: GroundTruth, contract: Contract, model_wh: FloatArray) -> Floor:
    """Write every true box through the contract, read it back and measure.

    Args:
        truth: original annotations; a box that leaves the image is written clamped, as in training, and its error counts.
        model_wh: float64[I, 2], (width, height) of each image of ``truth`` as the model sees it, by the contract's resize rule.
    Raises:
        ValueError: sizes that do not belong to these images, or a box that is not finite.
    """
    if model_wh.shape != truth.image_wh.shape:
        raise ValueError(f"model_wh must hold one size per image, {truth.image_wh.shape}, got {model_wh.shape}")
    boxes = truth.ann_xyxy_px.reshape(-1, 4)
    target = ~truth.ann_iscrowd & (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])
    if not np.isfinite(boxes[target]).all():
        bad = truth.ann_ids[target][~np.isfinite(boxes[target]).all(1)]
        raise ValueError(f"annotation {bad[0]} has a box that is not finite: {boxes[truth.ann_ids == bad[0]][0].tolist()}")
    true, index = boxes[target], np.searchsorted(truth.image_ids, truth.ann_image_id[target])
    read = np.empty_like(true)
    for n, (box, i) in enumerate(zip(true, index, strict=True)):
        read[n] = _through(contract, box, truth.image_wh[i], model_wh[i])
    error = read.reshape(-1, 2) - true.reshape(-1, 2)
    if contract.coords == "pixel":
        half_step = truth.image_wh / model_wh / 2
    else:
        half_step = truth.image_wh / contract.scale / 2
    return Floor(
        error_px=np.hypot(error[:, 0], error[:, 1]),
        iou=np.asarray(iou(torch.from_numpy(true), torch.from_numpy(read)).numpy(), dtype=np.float64),
        half_step_px=half_step,
        half_patch_px=truth.image_wh * contract.resize.factor / model_wh / 2,
        left_out=int((~target).sum()),
    )


def _through(contract: Contract, box_px: FloatArray, source_wh: FloatArray, model_wh: FloatArray) -> FloatArray:
    """One box in source px, written and read back."""
    width, height = source_wh.tolist()
    norm = to_norm(box_px, width, height)
    if contract.num_bins:
        grid = Grid(contract.coords, contract.num_bins, contract.scale)
        return to_px(grid.decode(grid.encode_box(norm)), width, height)
    digits, size = Digits(contract.coords), (int(model_wh[0]), int(model_wh[1]))
    return to_px(digits.decode(digits.encode_box(norm, size), size), width, height)
