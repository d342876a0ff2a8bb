"""Going on with a sweep that was stopped: whose folder it is, what it was, which of its jobs are done."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from coordvlm.utils.errors import ConfigError, DataError
from coordvlm.utils.files import atomic_write_json
from coordvlm.utils.locations import outputs_root
from coordvlm.utils.record import FILE_NAME, RunRecord
from coordvlm.utils.runs import TRAINER_STATE, find_checkpoint
from coordvlm.utils.sweep import JOBS_FILE, JobResult

SWEEP_FILE = "sweep.json"
LOCK_FILE = "sweep.lock"
#: Attempts at a job that did not finish, ``<job>_1`` ...: their logs, and the checkpoint the next one began with.
EARLIER = "earlier"
#: Seconds that the jobs of a killed sweep get to save and stop.
PATIENCE = 60.0
#: Where output goes, how fast it is made and what is said about it changes no result.
_IMMATERIAL = ("paths", "resume", "notes", "num_threads")


# ------------------------------------------------------------------ command line
def expand(command: str, args: argparse.Namespace) -> None:
    """``sweep.parallel=n`` and ``resume_sweep=<folder|latest>``, in place.

    ``resume_sweep`` alone means: with that sweep's arguments. What is given now replaces them, key by key.

    Raises:
        ConfigError: no such sweep.
    """
    wanted, overrides = None, []
    for line in args.overrides:
        key, _, value = line.partition("=")
        if key == "resume_sweep":
            wanted = value.strip("\"'")
        elif key == "sweep.parallel":
            overrides.append(f"hydra.launcher.parallel={value}")
        else:
            overrides.append(line)
    args.overrides = overrides
    if wanted in (None, "", "null"):
        return
    outputs = next((line.partition("=")[2].strip("\"'") for line in overrides if line.startswith("paths.outputs=")), None)
    folder = find_sweep(str(wanted), (Path(outputs) if outputs else outputs_root()) / command / "multirun")
    saved = _read_sweep(folder)
    given = {_key(line) for line in overrides} | {"hydra.sweep.dir"}
    from hydra.core.override_parser.types import Quote, QuotedString

    place = QuotedString(str(folder), Quote.single).with_quotes()
    args.overrides = [*(x for x in saved["overrides"] if _key(x) not in given), *overrides, f"hydra.sweep.dir={place}"]
    args.multirun = True
    args.config_name = args.config_name or saved["config_name"]
    args.config_dir = args.config_dir or saved["config_dir"]
    args.config_path = args.config_path or saved["config_path"]


def find_sweep(wanted: str, root: Path) -> Path:
    """A sweep's folder: a path, also relative to ``root``, or ``latest``.

    Raises:
        ConfigError: it is not there or holds no sweep; names the newest ones.
    """
    newest = sorted(_sweeps(root), reverse=True)
    if wanted == "latest" and newest:
        return newest[0][1]
    given = Path(wanted).expanduser()
    found = [folder for folder in (given.absolute(), root / given) if folder.is_dir()] if wanted != "latest" else []
    for folder in found:
        if (folder / SWEEP_FILE).is_file():
            return folder
    there = "".join(f"\n  {folder}" for _, folder in newest[:5])
    hint = f"; the newest sweeps:{there}" if there else f"; there are no sweeps under {root}"
    reason = f"{found[0]} is not the folder of a sweep: it has no {SWEEP_FILE}" if found else "no such folder"
    raise ConfigError(f"resume_sweep={wanted}: {reason}{hint}")


def newest_sweep(root: Path) -> Path | None:
    """The sweep below ``root`` that started last; None if there is none."""
    return max(_sweeps(root), default=(0.0, None))[1]


def _sweeps(root: Path) -> Iterator[tuple[float, Path]]:
    for file in root.glob(f"*/{SWEEP_FILE}"):
        try:
            yield datetime.fromisoformat(_read_sweep(file.parent)["started"]).timestamp(), file.parent
        except (DataError, ValueError):
            continue


def _read_sweep(folder: Path) -> dict[str, Any]:
    file = folder / SWEEP_FILE
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the arguments of the sweep: {error}", where=file) from error
    if not isinstance(data, dict) or not {"overrides", "config_name", "config_dir", "config_path", "started"} <= set(data):
        raise DataError("must hold overrides, config_name, config_dir, config_path and started", where=file)
    return data


def write_sweep(folder: Path, *, overrides: Sequence[str], config_name: str, config_path: str | None, config_dir: str | None) -> None:
    """Keep what ``resume_sweep`` needs."""
    kept = [line for line in overrides if _key(line) not in ("hydra.sweep.dir", "hydra.mode")]
    names = {"config_name": config_name, "config_path": config_path, "config_dir": config_dir}
    atomic_write_json(folder / SWEEP_FILE, {"started": datetime.now().astimezone().isoformat(), **names, "overrides": kept})


def _key(line: str) -> str:
    return line.partition("=")[0].lstrip("+~")


# ------------------------------------------------------------------------- lock
def lock(folder: Path, patience: float = PATIENCE) -> int | None:
    """Take the sweep's folder for this process and the jobs that inherit the descriptor; the system gives it back when all are gone.

    Returns:
        The open descriptor; None on systems without such locks.
    Raises:
        ConfigError: another sweep, or a job that outlived it, still works there.
    """
    try:
        import fcntl
    except ImportError:
        return None
    handle = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    deadline = time.monotonic() + patience
    told = False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            holder = os.pread(handle, 100, 0).decode(errors="replace").strip()
            if time.monotonic() > deadline or _lives(holder):
                os.close(handle)
                raise ConfigError(
                    f"{folder}: process {holder or '?'} or one of its jobs still works on this sweep; wait for it or stop it"
                ) from None
            if not told:
                print(f"waiting for the jobs of process {holder or '?'} to stop", flush=True)
                told = True
            time.sleep(0.2)
    os.ftruncate(handle, 0)
    os.pwrite(handle, str(os.getpid()).encode(), 0)
    return handle


def _lives(holder: str) -> bool:
    if not holder.isdigit():
        return False
    try:
        os.kill(int(holder), 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


# --------------------------------------------------------------------- attempts
@dataclass(frozen=True)
class Before:
    """What earlier attempts at a job left.

    Args:
        finished: nothing is left to do. metric: of the finished job.
        checkpoint: the attempt to go on from, None to begin anew.
        seconds: of all attempts, as far as they told. commit: of the code of the last one.
        changed: ``key: then -> now`` where the configuration of the last one differs.
    """

    finished: bool = False
    metric: float | None = None
    checkpoint: Path | None = None
    seconds: float = 0.0
    commit: str | None = None
    changed: tuple[str, ...] = ()


def read_results(sweep: Path) -> list[JobResult]:
    """The jobs in ``jobs.json``, their folders where the sweep is now; empty if there is none.

    Raises:
        DataError: it is corrupt.
    """
    file = sweep / JOBS_FILE
    if not file.is_file():
        return []
    try:
        jobs = [JobResult(**job) for job in json.loads(file.read_text(encoding="utf-8"))]
        return [replace(job, overrides=tuple(job.overrides), folder=str(sweep / Path(job.folder).name)) for job in jobs]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"must be the jobs of a sweep ({error}); without this file the sweep goes on, too", where=file) from error


def look_back(folder: Path, config: Mapping[str, Any]) -> Before:
    """What was done of the job that belongs to ``folder``.

    Args:
        config: the job's resolved configuration as it is now.
    """
    attempts = [x for x in (folder, *reversed(_earlier(folder))) if x.is_dir()]
    if not attempts:
        return Before()
    record = _record(attempts[0])
    changed = tuple(_changed(attempts[0], config))
    seconds = sum(_record(attempt).get("seconds") or 0.0 for attempt in attempts)
    commit = (record.get("git") or {}).get("commit")
    if record.get("status") == "finished" and attempts[0] == folder:
        from coordvlm.utils.sweep_process import read_result

        return Before(finished=True, metric=read_result(folder).get("metric"), seconds=seconds, commit=commit, changed=changed)
    for attempt in attempts:
        found = find_checkpoint(attempt, ("last",))
        if found is not None and (found / TRAINER_STATE).is_file():
            changed = tuple(_changed(attempt, config))
            return Before(checkpoint=None if changed else attempt, seconds=seconds, commit=commit, changed=changed)
    return Before(seconds=seconds)


def set_aside(folder: Path) -> Path | None:
    """Move an unfinished attempt out of the way; returns where it is now."""
    if not folder.is_dir():
        return None
    place = folder.parent / EARLIER / f"{folder.name}_{len(_earlier(folder)) + 1}"
    place.parent.mkdir(exist_ok=True)
    os.rename(folder, place)
    return place


def _earlier(folder: Path) -> list[Path]:
    found = [x for x in (folder.parent / EARLIER).glob(f"{folder.name}_*") if x.name.rpartition("_")[2].isdigit()]
    return sorted(found, key=lambda x: int(x.name.rpartition("_")[2]))


def _record(folder: Path) -> dict[str, Any]:
    try:
        return RunRecord.read(folder / FILE_NAME)
    except DataError:
        return {}


def _changed(folder: Path, config: Mapping[str, Any]) -> Iterator[str]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        loaded = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"), resolve=True)
    except (OSError, OmegaConfBaseException, YAMLError, ValueError) as error:
        yield f"config.yaml: cannot be read ({type(error).__name__})"
        return
    then, now = dict(_leaves(loaded)), dict(_leaves(config))
    for key in sorted(then.keys() | now.keys()):
        if key.partition(".")[0] in _IMMATERIAL or (key == "seed" and now.get(key) is None):  # null draws one
            continue
        if then.get(key, ...) != now.get(key, ...):
            yield f"{key}: {then.get(key, 'not there')!r} -> {now.get(key, 'not there')!r}"


def _leaves(tree: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, tree
