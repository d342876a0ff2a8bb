"""Commands called in this process, with their output and the folder they made."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from coordvlm import eval as eval_command
from coordvlm import predict as predict_command
from coordvlm import train as train_command

#: A run of about two seconds through every stage.
FAST = ("debug=fast", "trainer.limit_test_batches=1", "data.eval_batch_size=4", "decode.max_new_tokens=8", "metrics.num_replicates=10")
_COMMANDS = {"train": train_command.cli, "eval": eval_command.cli, "predict": predict_command.cli}


@dataclass(frozen=True)
class Ran:
    """What a command left: exit status, output, and the run folder it made (None if none)."""

    status: int
    out: str
    err: str
    folder: Path | None

    @property
    def run(self) -> Path:
        assert self.folder is not None, self.err
        return self.folder

    @property
    def record(self) -> dict[str, Any]:
        return self.json("run.json")

    def json(self, name: str) -> dict[str, Any]:
        data = json.loads((self.run / name).read_text(encoding="utf-8"))
        assert isinstance(data, dict)
        return data


def call(outputs: Path, command: str, *argv: str, page: bool = True) -> Ran:
    """``python -m coordvlm.<command> argv`` with output under ``outputs``.

    Args:
        page: False leaves the report's page empty, which is half the time of a fast run.
    """
    before = set(_folders(outputs, command))
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setenv("COORDVLM_OUTPUTS", str(outputs))
        patch.delenv("COORDVLM_DEBUG", raising=False)
        if not page:
            patch.setattr("coordvlm.callbacks.finish.write_run_report", _no_report)
        status = _COMMANDS[command](list(argv))
    new = sorted(set(_folders(outputs, command)) - before)
    return Ran(status, out.getvalue(), err.getvalue(), new[-1] if new else None)


def train(outputs: Path, *argv: str) -> Ran:
    return call(outputs, "train", *argv)


def predict(outputs: Path, *argv: str) -> Ran:
    return call(outputs, "predict", *argv)


def evaluate(outputs: Path, *argv: str) -> Ran:
    return call(outputs, "eval", *argv)


def finished(outputs: Path, *argv: str, page: bool = False) -> Ran:
    """A fast training run that must end well."""
    ran = call(outputs, "train", *FAST, *argv, page=page)
    assert ran.status == 0, ran.err
    assert ran.record["status"] == "finished"
    return ran


def refusal(ran: Ran) -> str:
    """The one clear line of a run that must not end well."""
    assert ran.status in (1, 2), (ran.status, ran.err)
    assert "Traceback" not in ran.err, ran.err
    lines = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, ran.err
    return ran.err[ran.err.index("error: ") :]


def losses(folder: Path) -> list[dict[str, str]]:
    """Rows of log.csv without the wall time."""
    from coordvlm.callbacks.csv_log import read_rows

    return [{name: value for name, value in row.items() if name != "time"} for row in read_rows(folder / "log.csv")]


def _no_report(path: Path, summary: object) -> Path:
    path.write_text("")
    return path


def _folders(outputs: Path, command: str) -> list[Path]:
    root = outputs / command
    return [p for p in root.glob("*") if p.name != "multirun"] + list(root.glob("multirun/*/[0-9]*_*"))
