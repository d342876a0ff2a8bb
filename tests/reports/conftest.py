"""A made-up run: images with coloured boxes, predictions that are near, far, missed, of the wrong class or dropped."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from coordvlm.contracts import (
    Contract,
    Evaluation,
    GroundTruth,
    Interval,
    MatchedPairs,
    Prediction,
    Record,
    ResizeRule,
)
from coordvlm.reports.run_report import RunSummary

NAMES = ("red circle", "blue square", "<script>alert(1)</script>", "evil \u202e\x00 & \"name\" '漢字' 🙂")
SIDE = 96


def make_contract() -> Contract:
    resize = ResizeRule("square", patch=8, merge=2, size=(96, 96))
    return Contract(
        "k999", 1000, 999, "objects", "scan", "Describe all objects in the image with their bounding boxes.", False,
        ("<obj_start>", "<obj_end>"), "<|coord_{k}|>", "<|im_end|>", resize,
    )


def make_run(num_images: int = 12, *, seed: int = 0) -> RunSummary:
    rng = np.random.default_rng(seed)
    boxes, owner, category, predictions, pairs = [], [], [], [], []
    for image in range(1, num_images + 1):
        records = []
        for _ in range(int(rng.integers(1, 4))):
            x, y = rng.uniform(2, 50, 2)
            w, h = rng.uniform(18, 44, 2)
            cls = int(rng.integers(len(NAMES)))
            true = np.array([x, y, x + w, y + h])
            boxes.append(true)
            owner.append(image)
            category.append(cls)
            fate = rng.uniform()
            noise = rng.normal(0, 1.2 if fate < 0.8 else 12, 4)
            if fate > 0.95:
                records.append(Record(NAMES[cls], None, 0.3, "bad_arity"))
                continue
            guess = np.clip(true + noise, 0, SIDE)
            records.append(Record(NAMES[cls], tuple(guess.tolist()), float(rng.uniform(0.4, 1)), "ok"))
            iou = iou_of(true, guess)
            if iou >= 0.5:
                pairs.append((image, len(records) - 1, len(boxes), iou, guess, true))
        flags = frozenset({"truncated"}) if image % 7 == 0 else frozenset()
        predictions.append(Prediction(image, (SIDE, SIDE), tuple(records), flags=flags, timing={"seconds": 0.02, "tokens": 19.0}))
    truth = make_truth(num_images, np.array(boxes), owner, category)
    matched = MatchedPairs(*(np.array([p[i] for p in pairs]) for i in range(6)))
    xy = (matched.pred_xyxy_px - matched.true_xyxy_px).reshape(-1, 2)
    metrics = {
        name: Interval(0.6 + 0.3 * rng.uniform(), 0.55, 0.95)
        for name in (
            "AP", "AP50", "AP75", "AP_medium", "AP_score1", "AP50_score1", "AR1", "AR10", "F1_50", "F1_75", "F1_mean", "parse_rate",
        )
    }
    metrics |= {"AP_small": Interval(float("nan")), "px_mean": Interval(1.9, 1.5, 2.4), "px_median": Interval(1.4, 1.2, 1.7),
                "pck_5": Interval(0.97, 0.95, 0.98), "pck_10": Interval(1.0, 1.0, 1.0), "pck_2": Interval(0.71, 0.69, 0.74)}
    recall = np.linspace(0, 1, 101)
    evaluation = Evaluation(
        metrics, {"images": num_images, "predictions": sum(len(p.kept) for p in predictions), "unknown_desc": 3},
        per_class={name: {"AP": 0.7 - 0.1 * i, "AP50": 0.9, "num_true": 10.0} for i, name in enumerate(NAMES)},
        pairs=matched, best_iou=np.clip(1 - rng.exponential(0.12, len(boxes)), 0, 1), px_error=np.hypot(*xy.T), px_error_xy=xy,
        pr_curve={"0.5": np.stack([recall, 1 - 0.4 * recall**6], 1), "0.75": np.stack([recall, 0.95 - 0.7 * recall**3], 1)},
        best_threshold=0.42,
    )
    steps = list(range(1, 1501))
    decay = np.exp(-np.array(steps) / 350) * 5 + 0.05
    terms = (("total_loss", 1.5), ("coord_loss", 1.0), ("l1", 0.1))
    loss = {f"train_{n}": (steps, (decay * f * rng.lognormal(0, 0.15, 1500)).tolist()) for n, f in terms}
    terms = (("total_loss", 1.6), ("coord_loss", 1.1))
    val = {f"val_{n}": (steps[249::250], (decay[249::250] * f).tolist()) for n, f in terms}
    extra = {
        "val/AP": (steps[249::250], [0.02, 0.2, 0.42, 0.55, 0.61, 0.63]), "val/AP50": (steps[249::250], [0.1, 0.4, 0.7, 0.8, 0.86, 0.88]),
        "lr": (steps, np.cos(np.linspace(0, 1.57, 1500)).tolist()), "val/coord_probe/entropy": ([250, 500], [3.0, 2.0]),
        "train/empty": ([1, 2], [float("nan")] * 2),
    }
    info = {
        "status": "finished", "command": "train", "command_line": "python -m coordvlm.train loss=hybrid experiment=shapes",
        "choices": {"experiment": "shapes_hybrid", "loss": "hybrid", "model": "tiny", "data": "shapes"},
        "seed": 0, "git": {"commit": "0123456789abcdef0123", "dirty": True},
        "started": "2025-03-01T10:00:00+00:00", "ended": "2025-03-01T10:08:21.123456+00:00", "seconds": 501.2, "hostname": "box",
        "versions": {"python": "3.11.2", "torch": "2.11.0", "transformers": "5.17.0", "coordvlm": "0.1.0"},
        "timings": {"load": 3.2, "train": 421.0, "decode": 31.5, "eval": 4.25, "train_images_per_s": 114.2},
        "peak_memory": {"rss_bytes": 1_204_500_000},
        "hardware": {"load_average": [1.9, 1.5, 1.1], "cpu_usable": 2, "gpus": []},
        "dropped": {"degenerate": 3, "clipped": 12},
        "data": {"train": {"sha1": "a1b2c3d4e5f6", "images": 2000}, "test": {"sha1": "<b>0</b>"}},
    }
    return RunSummary(
        run_info=info, contract=make_contract(), evaluation=evaluation, curves=loss | val | extra, predictions=predictions, truth=truth,
        load_image=lambda image_id: draw_image(truth, image_id), readout="expectation", split="test", selected_on="val (200 images)",
        protocol="beefcafe0123", readouts={"argmax": {"AP": 0.61, "AP50": 0.88, "px_mean": 2.1}, "expectation": {"AP": 0.63, "AP50": 0.88}},
    )


def make_truth(num_images: int, boxes: np.ndarray, owner: list[int], category: list[int]) -> GroundTruth:
    boxes = boxes.reshape(-1, 4)
    return GroundTruth(
        np.arange(1, num_images + 1), np.full((num_images, 2), float(SIDE)), np.arange(1, len(NAMES) + 1), NAMES,
        np.arange(1, len(boxes) + 1), np.array(owner, dtype=np.int64), np.array(category, dtype=np.int64) + 1, boxes,
        (boxes[:, 2:] - boxes[:, :2]).prod(1), np.zeros(len(boxes), dtype=bool),
    )


def iou_of(a: np.ndarray, b: np.ndarray) -> float:
    inter = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    return float(inter / ((a[2:] - a[:2]).prod() + np.clip(b[2:] - b[:2], 0, None).prod() - inter))


def draw_image(truth: GroundTruth, image_id: int) -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), (235, 232, 225))
    draw = ImageDraw.Draw(image)
    mine = truth.ann_image_id == image_id
    for box, cls in zip(truth.ann_xyxy_px[mine].tolist(), truth.ann_category_id[mine].tolist(), strict=True):
        colour = ("#c8553d", "#3a6ea5", "#f0b429", "#4c9f70")[cls - 1]
        (draw.ellipse if cls % 2 else draw.rectangle)(box, fill=colour)
    return image


@pytest.fixture(scope="session")
def run() -> RunSummary:
    return make_run()
