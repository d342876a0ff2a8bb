from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import entropy, wasserstein_distance

from coordvlm.contracts import Batch, ModelOutput
from coordvlm.metrics.coord_probe import CoordProbe
from tests.batches import K9, K999, NUM_TEXT, RAGGED, make_batch, output_of, random_logits


def seen(batch: Batch, logits: torch.Tensor, grid: object = K9) -> dict[str, float]:
    probe = CoordProbe(grid)
    probe.update(output_of(logits, batch), batch)
    return probe.compute()


def plain(batch: Batch, logits: torch.Tensor) -> dict[str, np.ndarray]:
    """Each slot by itself, in numpy and scipy."""
    rows = logits.detach().double().flatten(0, 1)[batch.slot_row].numpy()
    columns: dict[str, list[float]] = {}
    for z, y in zip(rows, batch.slot_bin.tolist(), strict=True):
        s = z[NUM_TEXT:]
        k = np.arange(len(s))
        everything = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        p = np.exp(s - s.max()) / np.exp(s - s.max()).sum()
        order = np.argsort(-s)
        mean = (p * k).sum()
        for name, value in {
            "expected": abs(mean - y), "argmax": abs(order[0] - y), "w1_to_delta": wasserstein_distance(k, [y], p),
            "token_acc": float(z.argmax() == NUM_TEXT + y), "token_acc_top5": float(y in order[:5]), "p_gt_mean": everything[NUM_TEXT + y],
            "margin_mean": s[y] - max(s[j] for j in k if j != y), "coord_mass": everything[NUM_TEXT:].sum(), "entropy": entropy(p),
            "std_bins": np.sqrt((p * (k - mean) ** 2).sum()),
        }.items():
            columns.setdefault(name, []).append(value)
    return {name: np.asarray(values) for name, values in columns.items()}


@pytest.mark.parametrize(("grid", "seed"), [(K9, 0), (K9, 1), (K999, 2)])
def test_every_number_against_numpy_and_scipy(grid: object, seed: int) -> None:
    batch = make_batch(RAGGED, grid=grid)
    logits = random_logits(batch, grid=grid, seed=seed, scale=4.0)
    mine, theirs = seen(batch, logits, grid), plain(batch, logits)
    for name in ("w1_to_delta", "token_acc", "token_acc_top5", "p_gt_mean", "margin_mean", "coord_mass", "entropy", "std_bins"):
        assert mine[name] == pytest.approx(theirs[name].mean(), rel=1e-5), name
    assert mine["expected_bin_mae"] == pytest.approx(theirs["expected"].mean(), rel=1e-5)
    assert mine["argmax_bin_mae"] == pytest.approx(theirs["argmax"].mean())
    for q in (50, 90):
        assert mine[f"expected_bin_abs_err_p{q}"] == pytest.approx(np.percentile(theirs["expected"], q), rel=1e-5)
    for radius in (2, 8, 16):
        assert mine[f"within_{radius}"] == pytest.approx((theirs["argmax"] <= radius).mean())
    for axis, name in enumerate(("x1", "y1", "x2", "y2")):
        assert mine[f"{name}/argmax_bin_mae"] == pytest.approx(theirs["argmax"][batch.slot_axis.numpy() == axis].mean())
    rows = logits.detach().flatten(0, 1)[batch.text_row]
    assert mine["text_coord_mass"] == pytest.approx(float(rows.softmax(-1)[:, NUM_TEXT:].sum(-1).mean()), rel=1e-5)
    assert mine["text_token_acc"] == pytest.approx(float((rows.argmax(-1) == batch.text_target).float().mean()))


def test_a_model_that_is_right_and_sure() -> None:
    batch = make_batch(RAGGED, grid=K999)
    logits = random_logits(batch, grid=K999, scale=0.0).detach()
    flat = logits.view(-1, logits.shape[-1])
    flat[batch.slot_row, NUM_TEXT + batch.slot_bin] = 60.0
    flat[batch.text_row, batch.text_target] = 60.0
    mine = seen(batch, logits, K999)
    for name in ("token_acc", "token_acc_top5", "p_gt_mean", "coord_mass", "within_2", "text_token_acc"):
        assert mine[name] == pytest.approx(1.0), name
    for name in ("expected_bin_mae", "argmax_bin_mae", "w1_to_delta", "entropy", "std_bins", "text_coord_mass"):
        assert mine[name] == pytest.approx(0.0, abs=1e-3), name
    assert mine["iou_argmax"] == pytest.approx(mine["iou_expected"], abs=1e-4)
    assert mine["iou_argmax"] > 0.99


def test_sizes_are_those_of_the_source_image() -> None:
    """20 px, 50 px and 200 px squares of a 640 x 480 image; only the small one is predicted wrongly."""
    boxes = tuple((0.1, 0.1, 0.1 + side / 640, 0.1 + side / 480) for side in (20, 50, 200))
    batch = make_batch((boxes,), grid=K999)
    logits = random_logits(batch, grid=K999, scale=0.0).detach()
    flat = logits.view(-1, logits.shape[-1])
    flat[batch.slot_row, NUM_TEXT + batch.slot_bin] = 60.0
    small = batch.slot_row[:4]
    flat[small, NUM_TEXT + batch.slot_bin[:4]] = 0.0
    flat[small, NUM_TEXT + batch.slot_bin[:4] + 7] = 60.0
    mine = seen(batch, logits, K999)
    assert mine["small/argmax_bin_mae"] == pytest.approx(7)
    assert (mine["medium/argmax_bin_mae"], mine["large/argmax_bin_mae"]) == (0, 0)
    assert mine["argmax_bin_mae"] == pytest.approx(7 / 3)


def test_pooling_does_not_depend_on_how_samples_are_batched() -> None:
    """Quantiles over raw errors, not means of quantiles."""
    whole = make_batch(RAGGED, grid=K999)
    logits = random_logits(whole, grid=K999)
    once = seen(whole, logits, K999)
    probe = CoordProbe(K999)
    for b, boxes in enumerate(RAGGED):
        one = make_batch((boxes,), grid=K999)
        probe.update(output_of(logits[b : b + 1, : one.input_ids.shape[1]], one), one)
    assert probe.compute() == pytest.approx(once, rel=1e-6, nan_ok=True)


def test_nothing_seen_is_undefined_and_reset_forgets() -> None:
    batch = make_batch(((),))
    empty = seen(batch, random_logits(batch))
    assert np.isnan(empty["expected_bin_mae"])
    assert np.isnan(empty["iou_expected"])
    assert 0 <= empty["text_token_acc"] <= 1
    full = make_batch(RAGGED)
    probe = CoordProbe(K9)
    probe.update(output_of(random_logits(full), full), full)
    first = probe.compute()
    probe.reset()
    assert all(np.isnan(v) for v in probe.compute().values())
    probe.update(output_of(random_logits(full), full), full)
    assert probe.compute() == pytest.approx(first, nan_ok=True)


def test_a_missing_field_is_refused() -> None:
    batch = make_batch(RAGGED)
    with pytest.raises(AssertionError, match="needs"):
        CoordProbe(K9).update(replace(output_of(random_logits(batch), batch), slot_lse=None), batch)
    assert isinstance(output_of(random_logits(batch), batch), ModelOutput)
