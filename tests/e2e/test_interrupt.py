"""Runs that do not end well: Ctrl-C, a loss that is no number, a full disk, an output folder that cannot be written."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.commands import FAST, Ran, call, refusal, train


def fail(outputs: Path, *argv: str) -> Ran:
    return call(outputs, "train", *FAST, *argv)


@pytest.fixture
def diverging(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the third step on, the l1 of the second sample's boxes is NaN."""
    from coordvlm.losses.l1 import L1

    forward, calls = L1.forward, []

    def broken(self: L1, slots: Any) -> Any:
        out = forward(self, slots)
        calls.append(1)
        if not torch.is_grad_enabled() or len(calls) < 3:
            return out
        item = torch.where(out.item_sample == 1, torch.nan, out.per_item)
        return type(out)(sum=out.sum * torch.nan, logs=out.logs, per_item=item, item_sample=out.item_sample)

    monkeypatch.setattr(L1, "forward", broken)


def test_a_loss_that_is_no_number_stops_the_run_and_names_term_and_samples(tmp_path: Path, diverging: None) -> None:
    ran = fail(tmp_path, "loss=hybrid", "trainer.val_check_interval=1")
    message = refusal(ran)
    assert ran.status == 1
    assert "the loss is not finite" in message
    assert "l1 = nan (samples " in message
    record = ran.record
    assert record["status"] == "failed"
    assert record["error"]["type"] == "NonFiniteLossError"
    assert "l1 = nan" in record["error"]["message"]
    page = (ran.run / "report.html").read_text()
    assert "failed" in page
    assert "l1 = nan" in page
    state = torch.load(ran.run / "checkpoints" / "last" / "trainer.ckpt", weights_only=True)
    assert state["global_step"] >= 1  # of the steps before; the weights were not touched since
    assert not (ran.run / "metrics.json").exists()


def test_a_failed_evaluation_is_told_on_the_page_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("coordvlm.callbacks.finish.evaluate_run", broken)
    ran = fail(tmp_path, "trainer.max_steps=1")
    assert ran.status == 1
    assert ran.record["status"] == "failed"
    assert "failed" in (ran.run / "report.html").read_text()
    assert "RuntimeError: a bug" in ran.err
    assert (ran.run / "checkpoints" / "last" / "trainer.ckpt").is_file()


def test_an_output_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ran = train(tmp_path, *FAST, f"paths.outputs={tmp_path / 'file'}")
    assert ran.status == 2
    assert f"{tmp_path / 'file'}" in refusal(ran)
    assert "cannot write" in ran.err


@pytest.fixture
def small_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The second checkpoint meets a limit of 1 MB per file: a real error of the system, below the libraries that write."""
    from coordvlm.callbacks import trained_weights

    save, calls = trained_weights.save_file, []
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(*args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) > 2:  # last and best of the first validation
            resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, limits[1]))
        save(*args, **kwargs)

    monkeypatch.setattr(trained_weights, "save_file", full)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_is_a_clear_error_and_the_earlier_checkpoint_stays(tmp_path: Path) -> None:
    ran = fail(tmp_path, "trainer.val_check_interval=1")
    message = refusal(ran)
    assert ran.status == 1
    assert str(ran.run / "checkpoints" / "last") in message
    assert "cannot write: File too large" in message
    assert ran.record["status"] == "failed"
    assert {p.name for p in (ran.run / "checkpoints").iterdir()} == {"last", "best"}
    for name in ("last", "best"):
        assert torch.load(ran.run / "checkpoints" / name / "trainer.ckpt", weights_only=True)["global_step"] == 1


def test_no_space_is_told_with_path_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("coordvlm.callbacks.trained_weights.save_file", full)
    ran = fail(tmp_path)
    message = refusal(ran)
    assert str(ran.run / "checkpoints" / "last") in message
    assert "No space left on device; needed unknown bytes, free " in message
    assert not list((ran.run / "checkpoints").iterdir())


def interrupt(outputs: Path, *argv: str, stage: str, signals: int = 1) -> tuple[int, str, Path]:
    """Start a real process in a group of its own, wait for a stage, send Ctrl-C to the whole group as a terminal does."""
    environment = {**os.environ, "COORDVLM_OUTPUTS": str(outputs), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "coordvlm.train", *argv]
    with (outputs / "out").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not list(outputs.glob(f"train/*/{stage}")):
            assert process.poll() is None, (outputs / "out").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(0.5)
        for _ in range(signals):
            os.killpg(process.pid, signal.SIGINT)
        status = process.wait(timeout=60)
    finally:
        if process.poll() is None:
            process.kill()
    (folder,) = outputs.glob("train/*")
    return status, (outputs / "out").read_text(), folder


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_keeps_a_checkpoint_that_can_be_resumed(tmp_path: Path, workers: int) -> None:
    options = ("debug=fast", f"data.num_workers={workers}", "trainer.max_steps=100000", "trainer.val_check_interval=50000",
               "trainer.accumulate_grad_batches=2")
    status, text, folder = interrupt(tmp_path, *options, stage="log.csv")
    assert status == 130, text
    assert "Traceback" not in text
    assert f"resume={folder}" in text
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "interrupted"
    assert "interrupted" in (folder / "report.html").read_text()
    done = torch.load(folder / "checkpoints" / "last" / "trainer.ckpt", weights_only=True)["global_step"]
    assert done >= 1
    resumed = train(tmp_path, f"resume={folder}", f"trainer.max_steps={done + 2}", "trainer.limit_test_batches=1")
    assert resumed.status == 0, resumed.err
    assert resumed.record["steps"] == done + 2
