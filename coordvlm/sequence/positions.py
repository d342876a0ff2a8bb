"""M-RoPE positions of text with still images, computed in the collator so that the forward never waits for the host."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def rope_positions(
    prompt_ids: NDArray[np.int64], total: int, image_id: int, grid_thw: tuple[int, int, int], merge: int
) -> NDArray[np.int64]:
    """int64[3, total]: temporal, height and width position of every token of a sample with one image.

    Text advances all three together; image tokens keep the temporal position and spread over rows and columns; the text after an image
    starts at the largest position used so far plus one. All Qwen-VL families agree on this for still images.

    Args:
        prompt_ids: int64[p] with the image expanded. total: prompt plus answer length.
        grid_thw: patch grid before merging. merge: merge factor.
    """
    _, grid_h, grid_w = grid_thw
    h, w = grid_h // merge, grid_w // merge
    start = int(np.argmax(prompt_ids == image_id))
    stop = start + h * w
    positions = np.empty((3, total), dtype=np.int64)
    positions[:, :start] = np.arange(start)
    positions[0, start:stop] = start
    positions[1, start:stop] = start + np.repeat(np.arange(h), w)
    positions[2, start:stop] = start + np.tile(np.arange(w), h)
    positions[:, stop:] = np.arange(total - stop) + start + max(h, w)
    return positions
