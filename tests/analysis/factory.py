"""Run folders without training: made-up answers to real synthetic images, scored and written by the project's own code."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from coordvlm.callbacks.evaluation_writer import readout_table, write_evaluation
from coordvlm.contracts import Contract, GroundTruth, Prediction, Record, ResizeRule, SlotReadout
from coordvlm.data.shapes import Shapes
from coordvlm.metrics.detection import DetectionMetric
from coordvlm.metrics.protocol import protocol_hash
from tests.compose import compose

CONTRACT = Contract(
    "k999", 1000, 999, "objects", "scan", "Describe all objects in the image with their bounding boxes.", False,
    ("<obj_start>", "<obj_end>"), "<|coord_{k}|>", "<|im_end|>", ResizeRule("square", patch=8, merge=2, size=(96, 96)),
)


@lru_cache
def config(*overrides: str) -> DictConfig:
    """The resolved default configuration; as text again and again, since it is the slow part."""
    return OmegaConf.create(OmegaConf.to_container(compose(Path("RUN_FOLDER"), *overrides), resolve=True))


@lru_cache
def truth(num_images: int) -> GroundTruth:
    cfg = OmegaConf.to_container(config().data.source)
    assert isinstance(cfg, dict)
    source = Shapes(**{k: v for k, v in cfg.items() if not str(k).startswith("_")})
    return source.truth("test").subset(list(range(num_images)))


def answers(known: GroundTruth, *, seed: int, noise_px: float, missed: float, duplicated: float, dropped: float) -> list[Prediction]:
    """Every true box with normal noise on its sides; some missed, some twice, some records broken."""
    rng = np.random.default_rng(seed)
    names = dict(zip(known.category_ids.tolist(), known.category_names, strict=True))
    out = []
    for image, size in zip(known.image_ids.tolist(), known.image_wh.tolist(), strict=True):
        records = []
        for a in np.flatnonzero(known.ann_image_id == image):
            box = np.clip(known.ann_xyxy_px[a] + rng.normal(0, noise_px, 4), 0, size * 2)
            name, score = names[int(known.ann_category_id[a])], float(rng.uniform(0.3, 1))
            if rng.uniform() < missed or not (box[:2] < box[2:]).all():
                continue
            if rng.uniform() < dropped:
                records.append(Record(name, None, score, "bad_arity"))
                continue
            norm = box / (size * 2)
            bins = np.floor(999 * norm + 0.5)
            slots = tuple(SlotReadout(int(k), float(k / 999), float(c), float(c)) for k, c in zip(bins, norm, strict=True))
            record = Record(name, tuple(box.tolist()), score, "ok", {"geom": score, "desc": 1.0}, slots)
            records += [record] * (2 if rng.uniform() < duplicated else 1)
        timing = {"seconds": 0.01, "new_tokens": 3.0}
        out.append(Prediction(image, (int(size[0]), int(size[1])), tuple(records), "text", (1, 2, 3), timing=timing))
    return out


def write_run(
    folder: Path, *overrides: str, seed: int = 0, noise_px: float = 2.0, seed_px: float = 0.2, missed: float = 0.05,
    duplicated: float = 0.02, dropped: float = 0.02, images: int = 40, replicates: int = 100, readout: str = "local", steps: int = 100,
    choices: dict[str, str] | None = None, contract: Contract = CONTRACT, protocol: dict[str, Any] | None = None,
) -> Path:
    """A finished training run. Quality is the noise on box sides: ``noise_px`` of the recipe plus a draw of ``seed_px`` by the seed."""
    cfg = OmegaConf.create(OmegaConf.to_container(config(*overrides)))
    OmegaConf.update(cfg, "seed", seed)
    OmegaConf.update(cfg, "data.source.seed", seed)
    OmegaConf.update(cfg, "metrics.num_replicates", replicates)
    folder.mkdir(parents=True)
    text = OmegaConf.to_yaml(cfg).replace("RUN_FOLDER", str(folder))
    (folder / "config.yaml").write_text(text)
    rng = np.random.default_rng([seed, int(noise_px * 1000), len(overrides)])
    noise = max(0.05, noise_px + seed_px * float(rng.normal()))
    known = truth(images)
    predictions = answers(known, seed=int(rng.integers(2**31)), noise_px=noise, missed=missed, duplicated=duplicated, dropped=dropped)
    metric = DetectionMetric(backend="faster", num_replicates=replicates, seed=0, casefold=False, truth=known)
    metric.update(predictions)
    found = metric.compute()
    values = {
        "data": known.digest(), "split": "test", "image_limits": {"max_source_pixels": 10**8}, "backend": "faster", "grammar": False,
        "readout": readout, "max_new_tokens": 40, "score": "geom_desc", **(protocol or {}),
    }
    write_evaluation(
        folder, found, predictions, known, split="test", protocol={**values, "hash": protocol_hash(values)}, selected_on="val",
        timing={"new_tokens_per_image": 3.0, "decode_images_per_second": 50.0}, readouts=readout_table({readout: found, "argmax": found}),
        seed=0, prompt=lambda _: "Find.", sha1=lambda _: None,
    )
    checkpoint = folder / "checkpoints" / "best"
    checkpoint.mkdir(parents=True)
    (checkpoint / "contract.json").write_text(json.dumps(asdict(contract)))
    _write_log(folder / "log.csv", steps, final=float(found.metrics["AP"].value), text_share=0.2 if "loss=ce" in overrides else 0.4)
    picked = choices if choices is not None else {o.partition("=")[0]: o.partition("=")[2] for o in overrides if "." not in o}
    record = {
        "status": "finished", "command": "train", "command_line": "python -m coordvlm.train", "error": None,
        "started": f"2026-01-01T00:00:{seed:02d}+00:00", "seconds": 70.0, "timings": {"train": 60.0},
        "hostname": "box", "git": {"commit": "0123456789abcdef", "dirty": False},
        "peak_memory": {"rss_bytes": 10**9}, "seed": seed, "overrides": [*overrides, f"seed={seed}"], "choices": picked,
        "contract": contract.hash(), "steps": steps, "parameters": {"all": 9, "trained": 9}, "selected": {"on": "val"},
        "protocol": protocol_hash(values),
    }
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def edit(folder: Path, name: str, **changes: Any) -> None:
    """Change fields of a JSON file in a run folder."""
    file = folder / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _write_log(path: Path, steps: int, *, final: float, text_share: float) -> None:
    columns = ["step", "train_total_loss", "train_text_loss", "train_coord_ce_loss", "train_coord_loss", "val/AP", "val/px_median"]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        for step in range(steps):
            total = 5.0 / (step + 1)
            parts = {"train_text_loss": text_share, "train_coord_ce_loss": 0.1, "train_coord_loss": 0.9 - text_share}
            writer.writerow({"step": step, "train_total_loss": total, **{k: v * total for k, v in parts.items()}})
            if (step + 1) % max(1, steps // 4) == 0:
                share = (step + 1) / steps
                writer.writerow({"step": step, "val/AP": final * share, "val/px_median": 8 - 6 * share})
