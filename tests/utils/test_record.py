from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coordvlm.utils.errors import DataError
from coordvlm.utils.record import RunRecord, abandon, config_hash


def test_a_finished_run_says_what_it_was(tmp_path: Path) -> None:
    with RunRecord(tmp_path, command="train", config={"seed": 0}) as record:
        assert RunRecord.read(tmp_path)["status"] == "running"
        with record.time("train"):
            time.sleep(0.02)
        with record.time("train"):
            time.sleep(0.02)
        record.update(dropped={"degenerate": 2}, data={"train": {"sha1": "a"}}, seed=0)
        record.update(data={"val": {"sha1": "b"}})
    data = RunRecord.read(tmp_path)
    assert (data["status"], data["command"], data["seed"], data["error"]) == ("finished", "train", 0, None)
    assert data["dropped"] == {"degenerate": 2}
    assert data["data"] == {"train": {"sha1": "a"}, "val": {"sha1": "b"}}
    assert 0.04 <= data["timings"]["train"] <= data["seconds"] + 0.01
    assert data["config_hash"] == config_hash({"seed": 0})
    assert data["started"] < data["ended"]
    assert {"python", "torch", "lightning", "transformers", "peft", "torchmetrics", "hydra-core", "numpy"} <= set(data["versions"])
    assert data["versions"]["python"] == sys.version.split()[0]
    assert data["peak_memory"]["rss_bytes"] > 1e6
    assert data["hardware"]["cpu_count"] == os.cpu_count()
    assert data["pid"] == os.getpid()


def test_a_failure_is_recorded_and_goes_on(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="so"), RunRecord(tmp_path, command="train") as record, record.time("fit"):
        raise ValueError("so")
    data = RunRecord.read(tmp_path)
    assert (data["status"], data["error"]["type"], data["error"]["message"]) == ("failed", "ValueError", "so")
    assert "test_record.py" in data["error"]["traceback"]
    assert "fit" in data["timings"]


def as_lightning_does() -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        sys.exit(1)


def test_ctrl_c_is_an_interruption_also_as_lightning_reports_it(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), RunRecord(tmp_path / "a", command="train"):
        raise KeyboardInterrupt
    with pytest.raises(SystemExit), RunRecord(tmp_path / "b", command="train"):
        as_lightning_does()
    with pytest.raises(SystemExit), RunRecord(tmp_path / "c", command="train"):
        sys.exit(0)
    with pytest.raises(SystemExit), RunRecord(tmp_path / "d", command="train"):
        sys.exit(2)
    assert [RunRecord.read(tmp_path / x)["status"] for x in "abcd"] == ["interrupted", "interrupted", "finished", "failed"]


def test_a_killed_run_is_dead(tmp_path: Path) -> None:
    start = f"from coordvlm.utils.record import RunRecord; RunRecord({str(tmp_path)!r}, command='train')"
    code = f"{start}; import time; print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert RunRecord.read(tmp_path)["status"] == "running"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "running"
    assert RunRecord.read(tmp_path)["status"] == "dead"


def test_another_process_with_the_same_pid_does_not_bring_a_run_back(tmp_path: Path) -> None:
    RunRecord(tmp_path, command="train")
    file = tmp_path / "run.json"
    data = json.loads(file.read_text())
    if data["pid_started"] is None:
        pytest.skip("start times of processes cannot be read here")
    file.write_text(json.dumps({**data, "pid_started": data["pid_started"] - 1}))
    assert RunRecord.read(tmp_path)["status"] == "dead"
    file.write_text(json.dumps({**data, "hostname": "elsewhere", "pid": 2**22 + 1}))
    assert RunRecord.read(tmp_path)["status"] == "running"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "\udcff"])
def test_a_corrupt_record_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text, errors="surrogateescape")
    with pytest.raises(DataError, match=r"run\.json"):
        RunRecord.read(tmp_path)


def test_a_missing_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"run\.json"):
        RunRecord.read(tmp_path)


def test_the_config_hash_ignores_order_and_output(tmp_path: Path) -> None:
    one = config_hash({"a": 1, "b": [1, None], "paths": {"outputs": "x"}})
    assert one == config_hash({"b": [1, None], "a": 1})
    assert one != config_hash({"a": 1, "b": [1, 0]})
    assert len(one) == 12


def test_a_full_disk_at_the_end_does_not_hide_the_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    record = RunRecord(tmp_path, command="train")
    monkeypatch.setattr("coordvlm.utils.record.atomic_write_json", fail)
    with pytest.raises(ValueError, match="the cause") as caught, record:
        raise ValueError("the cause")
    assert "could not be updated" in caught.value.__notes__[0]


def test_a_record_whose_process_is_gone_is_closed_once(tmp_path: Path) -> None:
    abandon(tmp_path, "failed", "Killed", "process 0: gone")  # nothing to close
    RunRecord(tmp_path, command="train")
    for message in ("process 0: gone", "too late"):
        abandon(tmp_path, "failed", "Killed", message)
    data = RunRecord.read(tmp_path)
    assert (data["status"], data["error"]["message"]) == ("failed", "process 0: gone")


def test_other_ranks_keep_their_record_to_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with RunRecord(tmp_path, command="train") as record:
        record.update(seed=1)
    assert record.data["status"] == "finished"
    assert not list(tmp_path.iterdir())


def test_a_scheduler_that_ends_a_run_interrupts_it(tmp_path: Path) -> None:
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    with pytest.raises(SIGTERMException), RunRecord(tmp_path, command="train"):
        raise SIGTERMException
    assert RunRecord.read(tmp_path)["status"] == "interrupted"
