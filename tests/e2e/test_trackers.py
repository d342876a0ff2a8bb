"""``logger=all``: a multirun whose jobs are tracked by W&B (offline) and TensorBoard; both are read back."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from coordvlm.callbacks.csv_log import read_curves
from coordvlm.reports.overlay import GREEN
from tests.callbacks.wandb_file import OfflineRun, read_offline_run
from tests.e2e.commands import FAST, Ran, call


@dataclass(frozen=True)
class Tracked:
    """A sweep of two tracked jobs, what W&B would upload of each, and the files that appeared in the home folder."""

    ran: Ran
    jobs: list[Path]
    wandb: list[OfflineRun]
    home: list[Path]


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Tracked:
    home, outputs = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("outputs")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE", "NETRC", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
            patch.delenv(name, raising=False)
        patch.setenv("HOME", str(home))
        patch.chdir(home)
        options = ("logger=all", "logger.wandb.project=boxes", "logger.wandb.tags=[a,b]", "notes=two, of them", "logger.wandb.num_images=3")
        ran = call(outputs, "train", "--multirun", "hydra/launcher=basic", *FAST, *options, "seed=0,1", page=False)
    assert ran.status == 0, ran.err
    jobs = sorted((outputs / "train" / "multirun").glob("*/[0-9]*_*"))
    files = [p for p in home.rglob("*") if p.is_file() and "matplotlib" not in p.parts]
    return Tracked(ran, jobs, [read_offline_run(job / "wandb") for job in jobs], files)


def test_jobs_of_a_sweep_share_a_group(tracked: Tracked) -> None:
    first, second = (x.run for x in tracked.wandb)
    assert (first.run_group, second.run_group) == (tracked.jobs[0].parent.name,) * 2
    assert (first.job_type, second.job_type) == ("train", "train")
    assert (first.display_name, second.display_name) == tuple(job.name for job in tracked.jobs)
    assert (first.project, list(first.tags), first.notes) == ("boxes", ["a", "b"], "two, of them")
    assert [x.exit_code for x in tracked.wandb] == [0, 0]


def test_the_whole_resolved_configuration_is_kept(tracked: Tracked) -> None:
    config = tracked.wandb[1].config
    assert config["seed"] == config["model"]["load"]["seed"] == 1
    assert config["paths"]["run_dir"] == str(tracked.jobs[1])
    assert config["loss"]["lambda_coord"] == 1


def test_curves_have_the_names_and_values_of_the_csv_log(tracked: Tracked) -> None:
    for job, online in zip(tracked.jobs, tracked.wandb, strict=True):
        for name, (steps, values) in read_curves(job / "log.csv").items():
            found = [(row["step"], row[name]) for row in online.history if name in row]
            assert [s for s, _ in found] == steps, name
            assert [float(v) for _, v in found] == pytest.approx(values, nan_ok=True), name


def test_the_summary_holds_the_numbers_of_metrics_json(tracked: Tracked) -> None:
    summary = tracked.wandb[0].summary
    metrics = json.loads((tracked.jobs[0] / "metrics.json").read_text())["metrics"]
    assert metrics["AP"]["value"] is not None
    for name, parts in metrics.items():
        for part, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
            if parts[part] is not None:
                assert summary[f"test/{name}{suffix}"] == pytest.approx(parts[part])
            else:
                assert f"test/{name}{suffix}" not in summary


def test_tables_and_pictures_come_with_every_evaluation(tracked: Tracked) -> None:
    (files,) = (tracked.jobs[0] / "wandb").glob("offline-run-*/files")
    rows = [row for row in tracked.wandb[0].history if "val/images" in row]
    assert [row["step"] for row in rows] == [1, 3]
    tests = [row for row in tracked.wandb[0].history if "test/images" in row]
    assert [(row["step"], row["test/images"]["count"]) for row in tests] == [(3, 3)]
    for row in [*rows, *tests]:
        shown = row.get("val/images") or row["test/images"]
        assert all(caption.startswith("image ") for caption in shown["captions"])
        for name in shown["filenames"]:
            assert _colour_share(Image.open(files / name), GREEN) > 0.002
    tables = [row["test/metrics"] for row in tracked.wandb[0].history if "test/metrics" in row]
    table = json.loads((files / tables[0]["path"]).read_text())
    metrics = json.loads((tracked.jobs[0] / "metrics.json").read_text())["metrics"]
    assert {row[0] for row in table["data"]} == set(metrics)
    assert table["columns"][:4] == ["metric", "value", "low", "high"]


def test_nothing_is_written_outside_the_run_folder_and_one_line_says_how_to_upload(tracked: Tracked) -> None:
    assert not tracked.home
    for job in tracked.jobs:
        (line,) = [x for x in (job / "run.log").read_text().splitlines() if "W&B" in x or " wandb: " in x]
        said, _, folder = line.rpartition("wandb sync ")
        assert said.endswith("W&B: no key, so recorded offline; to upload: ")
        assert Path(folder).parent == job / "wandb"
        assert Path(folder).is_dir()
    assert "wandb:" not in tracked.ran.out + tracked.ran.err  # it says nothing of its own


def test_tensorboard_has_the_same_curves_and_every_evaluation(tracked: Tracked) -> None:
    events = EventAccumulator(str(tracked.jobs[0] / "tensorboard"), size_guidance={"images": 0, "tensors": 0}).Reload()
    tags: Any = events.Tags()
    for name, (steps, values) in read_curves(tracked.jobs[0] / "log.csv").items():
        found = events.Scalars(name)
        assert [x.step for x in found] == steps, name
        assert [x.value for x in found] == pytest.approx(values, nan_ok=True), name
    metrics = json.loads((tracked.jobs[0] / "metrics.json").read_text())["metrics"]
    ap = events.Scalars("test/AP")[0].value
    assert ap == pytest.approx(metrics["AP"]["value"])
    validated = [tag for tag in tags["images"] if tag.startswith("val/image_")]
    assert len(validated) == 8
    assert [x.step for x in events.Images(validated[0])] == [1, 3]
    assert len([tag for tag in tags["images"] if tag.startswith("test/image_")]) == 4
    text = {tag: events.Tensors(f"{tag}/text_summary") for tag in ("config", "val/metrics", "test/metrics")}
    assert b"trainer.max_steps: 4" in text["config"][0].tensor_proto.string_val[0]
    assert b"| **AP** |" in text["test/metrics"][0].tensor_proto.string_val[0]
    plugins = events.summary_metadata
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(plugins)
    start = plugins["_hparams_/session_start_info"].plugin_data.content
    assert b"loss.lambda_coord" in start


def _colour_share(image: Image.Image, colour: tuple[int, int, int]) -> float:
    pixels = np.asarray(image.convert("RGB"))
    return float((pixels == np.array(colour)).all(-1).mean())


def test_a_share_of_a_colour_is_counted() -> None:
    assert math.isclose(_colour_share(Image.new("RGB", (4, 4), GREEN), GREEN), 1.0)
