from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from coordvlm.callbacks.wandb_log import WandbLog, has_key, sweep_name
from coordvlm.utils.errors import ConfigError
from tests.callbacks.wandb_file import read_offline_run

RANK_0: Any = SimpleNamespace(is_global_zero=True)


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user without a key."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "WANDB_CONFIG_DIR", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def make(folder: Path, **changes: Any) -> WandbLog:
    folder.mkdir(exist_ok=True)
    options: dict[str, Any] = {
        "project": "p", "entity": None, "name": None, "group": None, "job_type": None, "tags": [], "notes": "", "mode": "auto",
        "num_images": 2, "max_source_pixels": 10**8, "folder": str(folder),
    }
    return WandbLog(**{**options, **changes})


@pytest.mark.parametrize(
    ("netrc", "settings", "found"),
    [
        (None, None, False), ("api.wandb.ai", None, True), ("example.org", None, False),
        ("example.org", "[default]\nbase_url = https://example.org\n", True), ("api.wandb.ai", "no settings at all", True),
    ],
)
def test_a_key_in_netrc_counts_for_its_server_only(netrc: str | None, settings: str | None, found: bool, tmp_path: Path) -> None:
    if settings:
        (tmp_path / "home" / ".config" / "wandb").mkdir(parents=True)
        (tmp_path / "home" / ".config" / "wandb" / "settings").write_text(settings)
    if netrc:
        (tmp_path / "home" / ".netrc").write_text(f"machine {netrc}\n login user\n password {'0' * 40}\n")
        (tmp_path / "home" / ".netrc").chmod(0o600)
    assert has_key() is found


def test_a_key_in_the_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert has_key()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mode": "online"}, "needs a key"),
        ({"mode": "on"}, "logger.wandb.mode must be one of auto, online, offline, got 'on'"),
        ({"num_images": -1}, "logger.wandb.num_images must be 0 or more, got -1"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_built(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        make(tmp_path / "run", **changes)


def test_a_start_that_fails_ends_the_run_with_the_reason(tmp_path: Path) -> None:
    log = make(tmp_path / "run", project="a/b")
    with pytest.raises(ConfigError, match="W&B cannot start: Invalid project name 'a/b'"):
        log.setup(RANK_0, RANK_0, "fit")
    assert "WANDB_CACHE_DIR" not in os.environ


def test_a_job_in_a_process_of_its_own_knows_its_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COORDVLM_SWEEP_JOB", str(tmp_path / "sweep" / "000_ab" / "result.json"))
    assert sweep_name(tmp_path / "sweep" / "000_ab") == "sweep"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds W&B's process in /proc")
def test_losing_the_service_is_told_once_and_the_next_run_is_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    psutil = pytest.importorskip("psutil")
    log = make(tmp_path / "first")
    log.setup(RANK_0, RANK_0, "fit")
    log.log_metrics({"a": 1.0}, 0)
    for child in psutil.Process().children(recursive=True):
        if child.name().startswith("wandb"):
            child.kill()
            child.wait(10)
    until = time.monotonic() + 10
    while not log._warned and time.monotonic() < until:  # the connection notices a little later
        log.log_metrics({"a": 2.0}, 1)
        time.sleep(0.05)
    for _ in range(3):
        log.log_metrics({"a": 2.0}, 2)
    log.close(ok=True)
    assert len([r for r in caplog.records if r.message.startswith("wandb: logging failed")]) == 1
    second = make(tmp_path / "second")
    second.setup(RANK_0, RANK_0, "fit")
    second.log_metrics({"a": 3.0}, 5)
    second.close(ok=False)
    found = read_offline_run(tmp_path / "second" / "wandb")
    assert [(row["step"], row["a"]) for row in found.history] == [(5, 3.0)]
    assert found.exit_code == 1
    assert found.run.display_name == "second"
