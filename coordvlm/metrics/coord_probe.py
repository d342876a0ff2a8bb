"""Teacher-forced diagnostics of coordinate distributions: they explain a result, they do not rank it.

At T = 1, whatever the recipe, under the same names in training and validation. Raw values are kept and pooled over batches and ranks
before any mean or quantile is taken; nothing waits for the device before ``compute``.

Shapes: N slots, M boxes, R text rows, K bins.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric

from coordvlm.contracts import Batch, ModelOutput
from coordvlm.coords.boxes import iou, order_corners
from coordvlm.coords.grid import Grid
from coordvlm.coords.readout import upcast
from coordvlm.utils import collectives

#: Columns of the slot table, in order.
SLOT = (
    "expected_abs_err", "argmax_abs_err", "w1_to_delta", "token_acc", "token_acc_top5", "p_gt", "margin", "coord_mass", "entropy",
    "std_bins",
)
AXES = ("x1", "y1", "x2", "y2")
#: COCO's buckets of box area in source px.
SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, float("inf"))}
WITHIN = (2, 8, 16)
#: What is reported per slot and per size, too.
_SPLIT = ("expected_bin_mae", "argmax_bin_mae", "token_acc")


class CoordProbe(Metric):
    """SPEC 4.5. ``update(output, batch)`` with the fields in ``needs``; ``compute()`` -> name -> value, NaN where nothing was seen.

    | name | of each slot | pooled by |
    |---|---|---|
    | ``expected_bin_mae``, ``expected_bin_abs_err_p50``, ``_p90`` | distance of E[k] to the target bin | mean, quantiles |
    | ``argmax_bin_mae``, ``within_2``, ``_8``, ``_16`` | distance of the most likely coordinate bin | mean, share within |
    | ``w1_to_delta`` | ``E_p abs(k - y)`` | mean |
    | ``token_acc`` | the target is the most likely token of the whole vocabulary | mean |
    | ``token_acc_top5`` | it is among the five most likely coordinate bins | mean |
    | ``p_gt_mean`` | its probability in the whole vocabulary | mean |
    | ``margin_mean`` | its score minus that of the best other bin, nats | mean |
    | ``coord_mass`` | probability on coordinates | mean |
    | ``entropy``, ``std_bins`` | of the distribution over bins, nats and bins | mean |
    | ``iou_argmax``, ``iou_expected`` | of each box, decoded either way, with its unquantised truth | mean |
    | ``text_coord_mass``, ``text_token_acc`` | of each text row: probability on coordinates; target most likely | mean |

    and ``x1/..``, ``small/..``: the two mean errors and ``token_acc`` by axis and by COCO size of the box.

    Args:
        grid: bin values, for the boxes.
    """

    needs = frozenset({"slot_logits", "slot_lse", "slot_correct", "text_lse", "text_coord_lse", "text_correct"})
    full_state_update = False

    def __init__(self, grid: Grid) -> None:
        super().__init__(sync_on_compute=False)
        self.grid = grid
        self._rows: dict[str, list[Tensor]] = {"slot": [], "box": [], "text": []}

    def reset(self) -> None:
        super().reset()
        self._rows = {"slot": [], "box": [], "text": []}

    @torch.no_grad()
    def update(self, output: ModelOutput, batch: Batch) -> None:
        """Add a micro-batch; tensors stay on its device."""
        given: dict[str, Tensor] = {name: getattr(output, name) for name in self.needs}
        assert all(isinstance(x, Tensor) for x in given.values()), f"the probe names in `needs` what it reads: {sorted(self.needs)}"
        s = upcast(given["slot_logits"].detach())
        table = slot_statistics(s, upcast(given["slot_lse"].detach()), given["slot_correct"], batch.slot_bin)
        self._rows["slot"].append(torch.cat((table, self._kinds(batch, s.device)[:, None]), 1))
        self._rows["box"].append(self._boxes(s, batch))
        mass = (upcast(given["text_coord_lse"].detach()) - upcast(given["text_lse"].detach())).exp()
        self._rows["text"].append(torch.stack((mass, given["text_correct"].to(mass.dtype)), -1))

    def _kinds(self, batch: Batch, device: torch.device) -> Tensor:
        """Axis + 4 x size bucket of each slot, float[N]."""
        sides = torch.tensor(batch.sizes, dtype=torch.float32, device=device).repeat(1, 2)  # [B, 4]
        px = batch.slot_value[batch.box_slot] * sides[batch.box_sample]
        area = (px[:, 2] - px[:, 0]) * (px[:, 3] - px[:, 1])
        bucket = sum((area >= low).long() for low, _ in list(SIZES.values())[1:])
        of_slot = torch.zeros_like(batch.slot_bin)
        of_slot[batch.box_slot.flatten()] = torch.as_tensor(bucket, device=device).repeat_interleave(4)
        return (batch.slot_axis.long() + 4 * of_slot).float()

    def _boxes(self, s_NK: Tensor, batch: Batch) -> Tensor:
        values = self.grid.bin_values(s_NK.dtype).to(s_NK.device)
        true = batch.slot_value[batch.box_slot]
        reads = (values[s_NK.argmax(-1)], s_NK.softmax(-1) @ values)
        ious = [iou(order_corners(read[batch.box_slot]), true) for read in reads]
        return torch.stack(ious, -1)

    def compute(self) -> dict[str, float]:
        """Pooled over all batches and ranks; every rank returns the same. One transfer from the device."""
        widths = {"slot": len(SLOT) + 1, "box": 2, "text": 2}
        pooled = {name: torch.cat([torch.zeros(0, widths[name]), *(x.cpu().float() for x in rows)]) for name, rows in self._rows.items()}
        return summarise(_over_ranks(pooled))


def slot_statistics(s_NK: Tensor, lse_N: Tensor, correct_N: Tensor, bin_N: Tensor) -> Tensor:
    """float[N, len(SLOT)] in the order of ``SLOT``.

    Args:
        s_NK: scores of the coordinate bins. lse_N: normaliser over the whole vocabulary. correct_N: bool, target is the most likely token.
    """
    if not len(s_NK):
        return s_NK.new_zeros((0, len(SLOT)))
    k = torch.arange(s_NK.shape[1], device=s_NK.device, dtype=s_NK.dtype)
    p, y = s_NK.softmax(-1), bin_N.to(s_NK.dtype)
    mean = p @ k
    target = s_NK.gather(1, bin_N[:, None])
    others = s_NK.scatter(1, bin_N[:, None], float("-inf"))
    top5 = (s_NK > target).sum(-1) < 5
    variance = (p * (k - mean[:, None]).square()).sum(-1)
    columns = (
        (mean - y).abs(),
        (s_NK.argmax(-1).to(y.dtype) - y).abs(),
        (p * (k - y[:, None]).abs()).sum(-1),
        correct_N.to(y.dtype),
        top5.to(y.dtype),
        (target.squeeze(1) - lse_N).exp(),
        target.squeeze(1) - others.amax(-1),
        (s_NK.logsumexp(-1) - lse_N).exp(),
        torch.special.entr(p).sum(-1),
        variance.sqrt(),
    )
    return torch.stack(columns, -1)


def summarise(rows: Mapping[str, Tensor]) -> dict[str, float]:
    """Names of SPEC 4.5 from the pooled tables ``slot`` [N, S + 1], ``box`` [M, 2] and ``text`` [R, 2]."""
    slot, box, text = rows["slot"], rows["box"], rows["text"]
    columns = dict(zip(SLOT, slot[:, : len(SLOT)].unbind(-1), strict=True))
    kind = slot[:, -1].long()
    out = _errors(columns, torch.ones_like(kind, dtype=torch.bool))
    for q in (50, 90):
        out[f"expected_bin_abs_err_p{q}"] = _quantile(columns["expected_abs_err"], q / 100)
    for radius in WITHIN:
        out[f"within_{radius}"] = _mean((columns["argmax_abs_err"] <= radius).float())
    for name, column in (("p_gt_mean", "p_gt"), ("margin_mean", "margin")):
        out[name] = _mean(columns[column])
    for name in ("w1_to_delta", "token_acc_top5", "coord_mass", "entropy", "std_bins"):
        out[name] = _mean(columns[name])
    out["iou_argmax"], out["iou_expected"] = _mean(box[:, 0]), _mean(box[:, 1])
    out["text_coord_mass"], out["text_token_acc"] = _mean(text[:, 0]), _mean(text[:, 1])
    groups = {axis: kind % 4 == i for i, axis in enumerate(AXES)} | {size: kind // 4 == i for i, size in enumerate(SIZES)}
    for group, mask in groups.items():
        out |= {f"{group}/{name}": value for name, value in _errors(columns, mask).items() if name in _SPLIT}
    return out


def _errors(columns: Mapping[str, Tensor], mask: Tensor) -> dict[str, float]:
    names = {"expected_bin_mae": "expected_abs_err", "argmax_bin_mae": "argmax_abs_err", "token_acc": "token_acc"}
    return {name: _mean(columns[column][mask]) for name, column in names.items()}


def _mean(x: Tensor) -> float:
    return float(x.double().mean()) if len(x) else float("nan")


def _quantile(x: Tensor, q: float) -> float:
    """Linear interpolation; ``torch.quantile`` refuses more than 16 million values."""
    if not len(x):
        return float("nan")
    values = x.double().sort().values
    at = q * (len(values) - 1)
    low = int(at)
    high = min(low + 1, len(values) - 1)
    return float(values[low] + (values[high] - values[low]) * (at - low))


def _over_ranks(rows: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """All ranks' rows. A collective when a process group is up, also for a rank without rows."""
    parts = collectives.gather(dict(rows))
    return {name: torch.cat([part[name] for part in parts]) for name in rows}
