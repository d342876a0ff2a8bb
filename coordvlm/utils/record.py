"""run.json: what was run, on what, how long it took and how it ended. Every change replaces the file as a whole."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import socket
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from coordvlm.utils import environment, launch, locations, logs
from coordvlm.utils.errors import DataError, user_error
from coordvlm.utils.files import atomic_write_json

FILE_NAME = "run.json"


class RunRecord:
    """The record of the run of this process, a context manager.

        with RunRecord(run_dir, command="train", config=resolved) as record:
            with record.time("train"):
                ...
            record.update(data={"train": {"sha1": ...}}, dropped={"degenerate": 2})

    On leaving, the status becomes ``finished``; ``interrupted`` after Ctrl-C (also the way Lightning reports it),
    ``failed`` after anything else, with type, message and traceback. A killed process leaves ``running`` behind, with
    its pid and host: ``read`` calls such a run ``dead``.

    Of several ranks only rank 0 writes; the others' records are kept in memory.

    Args:
        run_dir: gets ``run.json``. command: ``train``, ``eval`` ...
        config: the resolved configuration as plain containers, for its hash.
    """

    def __init__(self, run_dir: Path | str, *, command: str, config: Mapping[str, Any] | None = None) -> None:
        self.path = Path(run_dir) / FILE_NAME
        self.writes = logs.process_rank() == 0
        self._start = time.monotonic()
        root = locations.repository()
        self.data: dict[str, Any] = {
            "status": "running",
            "command": command,
            "command_line": shlex.join(launch.command_line()),
            "working_dir": str(Path.cwd()),
            "config_hash": None if config is None else config_hash(config),
            "started": _now(),
            "ended": None,
            "seconds": None,
            "pid": os.getpid(),
            "pid_started": (_process_stat(os.getpid()) or ("", None))[1],
            "hostname": socket.gethostname(),
            "versions": environment.versions(),
            "git": None if root is None else environment.git_state(root),
            "hardware": environment.hardware(),
            "data": {},
            "dropped": {},
            "timings": {},
            "peak_memory": {},
            "error": None,
        }
        self.save()

    def update(self, **fields: Any) -> None:
        """Set fields; a mapping given for a field that holds one is merged into it. Writes the file."""
        for key, value in fields.items():
            old = self.data.get(key)
            self.data[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, Mapping) else value
        self.save()

    @contextmanager
    def time(self, section: str) -> Iterator[None]:
        """Add the wall time of the block to ``timings[section]``, in seconds, also when it fails."""
        start = time.monotonic()
        try:
            yield
        finally:
            timings = self.data["timings"]
            timings[section] = round(timings.get(section, 0.0) + time.monotonic() - start, 4)
            self.save()

    def save(self) -> None:
        if not self.writes:
            return
        self.data["peak_memory"] = environment.peak_memory()
        atomic_write_json(self.path, self.data)

    def close(self, status: str, error: BaseException | None = None) -> None:
        """Write the final state; called on leaving the ``with`` block."""
        if error is not None:
            told = user_error(error) or error
            self.data["error"] = {
                "type": type(told).__name__,
                "message": str(told),
                "traceback": "".join(traceback.format_exception(error)),
            }
        hardware = environment.hardware()
        self.data["hardware"]["gpus"] = hardware["gpus"]
        self.data["hardware"]["load_average_end"] = hardware["load_average"]
        self.data.update(status=status, ended=_now(), seconds=round(time.monotonic() - self._start, 3))
        self.save()

    def __enter__(self) -> RunRecord:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close("finished")
            return
        interrupted = came_from_interrupt(error)
        if isinstance(error, SystemExit) and not error.code and not interrupted:
            self.close("finished")
            return
        try:
            self.close("interrupted" if interrupted else "failed", error)
        except Exception as second:  # a full disk must not hide why the run failed
            error.add_note(f"and {self.path} could not be updated: {second}")

    @staticmethod
    def read(path: Path | str) -> dict[str, Any]:
        """The record in a run folder (or the file itself); ``status`` is ``dead`` if its process is gone from this host.

        Raises:
            DataError: missing or corrupt.
        """
        file = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read the record of a run: {error}", where=file) from error
        if not isinstance(data, dict) or "status" not in data:
            raise DataError("must be the record of a run, a mapping with a status", where=file)
        here = data.get("hostname") == socket.gethostname()
        if data["status"] == "running" and here and not _alive(data.get("pid"), data.get("pid_started")):
            data["status"] = "dead"
        return data


def abandon(run_dir: Path | str, status: str, kind: str, message: str) -> None:
    """Close the record of a process that is gone and could not do it; a record that says how it ended stays."""
    file = Path(run_dir) / FILE_NAME
    if not file.is_file():
        return
    data = json.loads(file.read_text(encoding="utf-8"))
    if data["status"] == "running":
        data.update(status=status, ended=_now(), error={"type": kind, "message": message, "traceback": ""})
        atomic_write_json(file, data)


def came_from_interrupt(error: BaseException) -> bool:
    """Whether Ctrl-C is at or beneath ``error`` (Lightning answers it with ``sys.exit(1)``), or ``SIGTERM`` as Lightning tells it."""
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, KeyboardInterrupt) or type(current).__name__ == "SIGTERMException":
            return True
        current = current.__cause__ or current.__context__
    return False


def config_hash(config: Mapping[str, Any]) -> str:
    """12 hex digits of a resolved configuration, ``paths`` and ``hydra`` left out: where output goes changes no result."""
    rest = {str(key): value for key, value in config.items() if key not in {"paths", "hydra"}}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _alive(pid: object, started: object = None) -> bool:
    """Whether the process exists, is no zombie and, as far as that can be told, is the one that wrote the record."""
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it exists and belongs to someone else
    found = _process_stat(pid)
    return found is None or (found[0] != "Z" and started in (None, found[1]))


def _process_stat(pid: int) -> tuple[str, int] | None:
    """State letter and start time (clock ticks since boot): a pid is given out again, the pair with its start is not."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, IndexError, ValueError):
        return None


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="microseconds")
