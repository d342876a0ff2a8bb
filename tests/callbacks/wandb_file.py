"""Reads ``run-*.wandb``, the file that ``wandb sync`` uploads: protocol buffers in LevelDB's log format.

Source of the format: https://github.com/google/leveldb/blob/main/doc/log_format.md; W&B puts seven bytes before the first block.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_BLOCK, _HEADER = 32768, 7
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    """What an upload would show: the run's settings, rows of its history in order, its summary, and how it ended."""

    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None


def read_offline_run(folder: Path, *, wait_s: float = 20.0) -> OfflineRun:
    """The one offline run under ``folder`` (``<run>/wandb``), once it says how it ended: W&B's process writes a little later."""
    (file,) = folder.glob("offline-run-*/run-*.wandb")
    until = time.monotonic() + wait_s
    while (found := _read(file)).exit_code is None and time.monotonic() < until:
        time.sleep(0.05)
    return found


def _read(file: Path) -> OfflineRun:
    found = OfflineRun()
    for data in _records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run = record.run
            found.config |= {x.key: json.loads(x.value_json) for x in record.run.config.update}
        elif kind == "history":
            found.history.append(_items(record.history.item))
        elif kind == "summary":
            found.summary |= _items(record.summary.update)
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


def _items(items: Any) -> dict[str, Any]:
    """Nested values lie flat in the file: one item per leaf, with the keys on the way to it."""
    found: dict[str, Any] = {}
    for item in items:
        *parents, last = item.nested_key or [item.key]
        node = found
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = json.loads(item.value_json)
    return found


def _records(data: bytes) -> Iterator[bytes]:
    position, parts = _HEADER, b""
    while position + _HEADER <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < _HEADER:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + _HEADER])
        if position + _HEADER + length > len(data):
            return  # still being written
        part = data[position + _HEADER : position + _HEADER + length]
        position += _HEADER + length
        parts = part if kind in (_FULL, _FIRST) else parts + part
        if kind in (_FULL, _LAST):
            yield parts
