"""Which run ``run=`` and ``resume=`` mean: a run folder, a checkpoint folder, or ``latest``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from coordvlm.utils.errors import ConfigError, DataError
from coordvlm.utils.files import recover_folder
from coordvlm.utils.locations import outputs_root
from coordvlm.utils.record import FILE_NAME, RunRecord

CHECKPOINTS = "checkpoints"
#: What a folder must hold to be a checkpoint; ``trainer.ckpt`` is needed for resuming only.
CHECKPOINT_FILES = ("trained.safetensors", "contract.json")
TRAINER_STATE = "trainer.ckpt"


@dataclass(frozen=True)
class RunRef:
    """A run and one checkpoint of it. For a checkpoint that was copied out of its run both are the same folder."""

    run_dir: Path
    checkpoint_dir: Path


def resolve_run(run: str | Path, *, outputs: Path | None = None, prefer: Sequence[str] = ("best", "last")) -> RunRef:
    """Find a run and its checkpoint.

    Args:
        run: a run folder, a checkpoint folder, or ``latest``: the train run that started last and has a checkpoint, jobs of
            multiruns included. A relative path may also be relative to the output root or its ``train`` folder.
        outputs: output root (``paths.outputs``); default ``outputs_root()``.
        prefer: names of checkpoints in order of preference, then the newest step. ``resume`` wants ``("last",)``, then the rest.
    Raises:
        ConfigError: nothing there; lists the newest runs that could be meant.
    """
    root = Path(outputs) if outputs is not None else outputs_root()
    if str(run) == "latest":
        for folder, _ in train_runs(root):
            if checkpoint := find_checkpoint(folder, prefer):
                return RunRef(folder, checkpoint)
        raise ConfigError(f"run=latest: no train run with a checkpoint under {root}{_newest(root)}")
    given = Path(run).expanduser()
    for folder in dict.fromkeys((given.absolute(), root / given, root / "train" / given)):
        if not folder.is_dir():
            continue
        if is_checkpoint(folder):
            in_run = folder.parent.name == CHECKPOINTS
            return RunRef(folder.parent.parent if in_run else folder, folder)
        if checkpoint := find_checkpoint(folder, prefer):
            return RunRef(folder, checkpoint)
        kind = "a run without a checkpoint" if (folder / FILE_NAME).is_file() else "neither a run nor a checkpoint"
        raise ConfigError(f"run={run}: {folder} is {kind} ({CHECKPOINTS}/<name>/{{{','.join(CHECKPOINT_FILES)}}}){_newest(root)}")
    raise ConfigError(f"run={run}: no such folder{_newest(root)}")


def is_checkpoint(folder: Path) -> bool:
    return all((folder / name).is_file() for name in CHECKPOINT_FILES)


def find_checkpoint(run_dir: Path, prefer: Sequence[str] = ("best", "last")) -> Path | None:
    """The first of ``prefer`` that exists, else best, last, the newest step; None without any."""
    folder = run_dir / CHECKPOINTS
    if not folder.is_dir():
        return None
    for name in {*prefer, "best", "last"}:
        recover_folder(folder / name)
    named = [folder / name for name in dict.fromkeys((*prefer, "best", "last"))]
    steps = sorted((x for x in folder.iterdir() if x.is_dir() and _step(x) is not None), key=lambda x: _step(x) or 0, reverse=True)
    return next((x for x in [*named, *steps] if is_checkpoint(x)), None)


def _step(folder: Path) -> int | None:
    """The number at the end of ``500``, ``step_000500`` or ``step=500``."""
    match = re.fullmatch(r"(?:step[_=-]?)?(\d+)", folder.name)
    return int(match[1]) if match else None


def train_runs(outputs: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """(folder, record) of every train run under the output root, the one that started last first. Unreadable records are skipped."""
    found = []
    for pattern in ("train/*/", "train/multirun/*/*/"):
        for file in outputs.glob(pattern + FILE_NAME):
            try:
                record = RunRecord.read(file)
                started = datetime.fromisoformat(str(record["started"])).timestamp()
            except (DataError, KeyError, ValueError):
                continue
            if record.get("command") == "train":
                found.append((started, file.parent, record))
    for _, folder, record in sorted(found, key=lambda item: (item[0], str(item[1])), reverse=True):
        yield folder, record


def _newest(root: Path, n: int = 5) -> str:
    lines = []
    for folder, record in train_runs(root):
        state = "" if find_checkpoint(folder) else ", no checkpoint"
        lines.append(f"  {folder} ({record['status']}{state})")
        if len(lines) == n:
            break
    return ("; the newest train runs:\n" + "\n".join(lines)) if lines else f"; there are no train runs under {root}"
