"""One process per device: started together, ended together.

The process of the command line becomes a supervisor without torch. It writes the composed configuration down, starts the ranks with the
same module and waits; every rank reads that configuration instead of composing again, so all of them mean the same run folder, seed and
settings. Ranks start before anything heavy is imported and build in parallel.

If a rank fails, the others are given a moment to notice (their collectives break) and are then ended: nothing hangs. Ctrl-C and
``SIGTERM`` are passed on once to each rank; a rank whose supervisor is gone ends itself.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordvlm.utils.devices import usable_cpus
from coordvlm.utils.errors import ConfigError, CoordVLMError, user_error
from coordvlm.utils.files import atomic_write_json, atomic_write_text

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from coordvlm.utils.sweep import JobFailure

#: Environment of a rank: the folder it shares with its supervisor and the other ranks.
JOB = "COORDVLM_JOB"
#: Seconds that ranks get to end by themselves after one failed, and again after they were asked to.
GRACE = 20.0
#: Words in an error that may be another rank's doing: its connection is gone.
_SECOND_HAND = ("gloo", "nccl", "connection", "process group", "peer", "broken pipe", "tcpstore", "monitoredbarrier")


class RankError(CoordVLMError):
    """Another rank failed; this one only noticed."""


def is_rank() -> bool:
    """Whether this process is one of several that a supervisor started."""
    return JOB in os.environ


def command_line() -> Sequence[str]:
    """What the user typed: the supervisor's arguments in a rank."""
    if is_rank():
        return shlex.split((Path(os.environ[JOB]) / "command").read_text(encoding="utf-8"))
    return [Path(sys.executable).name, *sys.orig_argv[1:]]


def refuse_foreign_launcher() -> None:
    """Several processes started from outside would each think the run is theirs.

    Raises:
        ConfigError: under torchrun, or srun with several tasks.
    """
    if is_rank():
        return
    for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        if os.environ.get(name, "").isdigit() and int(os.environ[name]) > 1:
            raise ConfigError(
                f"{name}={os.environ[name]}: several processes were started from outside (torchrun, srun); start one, "
                "it starts a process per device itself (trainer=ddp trainer.devices=...)"
            )


def run_ranks(module: str, cfg: DictConfig, num: int) -> float | int | JobFailure | None:
    """Run ``python -m module`` as ``num`` ranks of the run that ``cfg`` describes; what rank 0 returned.

    Raises:
        KeyboardInterrupt: a rank ended by Ctrl-C.
        RankError: a rank was killed, so that no rank could say why.
    """
    folder = Path(tempfile.mkdtemp(prefix="coordvlm-job-"))
    try:
        _write_job(folder, cfg)
        ranks = _Ranks(module, folder, Path(str(cfg.paths.run_dir)), num)
        ranks.wait()
        return _outcome(folder, ranks, Path(str(cfg.paths.run_dir)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_job(folder: Path, cfg: DictConfig) -> None:
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from coordvlm.utils.overrides import resolved

    atomic_write_text(folder / "config.yaml", OmegaConf.to_yaml(resolved(OmegaConf.to_container(cfg, resolve=True))))
    atomic_write_text(folder / "hydra.yaml", OmegaConf.to_yaml(HydraConfig.get()))  # unresolved: a sweep's folder is made when read
    atomic_write_text(folder / "command", shlex.join(command_line()))


def load_job() -> DictConfig:
    """In a rank: the configuration, with Hydra's own in its place. A thread ends this process when the supervisor is gone."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig, OmegaConf

    folder = Path(os.environ[JOB])
    cfg = OmegaConf.load(folder / "config.yaml")
    assert isinstance(cfg, DictConfig)
    whole = OmegaConf.create({"hydra": OmegaConf.load(folder / "hydra.yaml"), **cfg})
    HydraConfig.instance().cfg = whole  # type: ignore[assignment]
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    return cfg


def _end_with(supervisor: int) -> None:
    while os.getppid() == supervisor:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)


def leave(value: object, status: int) -> int:
    """The end of a rank: hand rank 0's value over. A failed rank does not wait for its peers' connections to close.

    Returns:
        ``status``.
    """
    folder = Path(os.environ[JOB])
    if os.environ["RANK"] == "0" and isinstance(value, int | float):
        atomic_write_json(folder / "result.json", value)
    if status:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


@contextmanager
def shared_fate() -> Iterator[None]:
    """Around what ranks do together: the error that leaves it is the one that came first, whichever rank it came from.

    A broken collective is what the other ranks see of a failure, so such an error waits for the cause to be told. Without ranks it
    changes nothing.

    Raises:
        RankError: in place of a broken collective.
    """
    try:
        yield
    except BaseException as error:
        if not is_rank():
            raise
        folder, rank = Path(os.environ[JOB]), int(os.environ["RANK"])
        if not _second_hand(error):
            told = user_error(error) or error
            _tell(folder, rank, "KeyboardInterrupt" if _interrupted(error) else type(told).__name__, str(told))
            raise
        deadline = time.monotonic() + GRACE / 2
        while time.monotonic() < deadline:
            for other, failure in _failures(folder):
                if other != rank and failure["kind"] == "KeyboardInterrupt":
                    raise KeyboardInterrupt from error
                if other != rank:
                    raise RankError(f"process {other}: {failure['message']}") from error
            time.sleep(0.1)
        _tell(folder, rank, type(error).__name__, str(error))
        raise


def _interrupted(error: BaseException) -> bool:
    from coordvlm.utils.record import came_from_interrupt

    return came_from_interrupt(error)


def _second_hand(error: BaseException) -> bool:
    if isinstance(error, CoordVLMError) or not isinstance(error, RuntimeError | OSError) or user_error(error) or _interrupted(error):
        return False
    text = f"{type(error).__name__} {error}".lower()
    return any(word in text for word in _SECOND_HAND)


def _tell(folder: Path, rank: int, kind: str, message: str) -> None:
    if folder.is_dir() and not (folder / f"failed.{rank}.json").exists():
        atomic_write_json(folder / f"failed.{rank}.json", {"kind": kind, "message": message, "at": time.time()})


def _failures(folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for file in sorted(folder.glob("failed.*.json")):
        yield int(file.name.split(".")[1]), json.loads(file.read_text(encoding="utf-8"))


class _Ranks:
    """The processes. Rank 0 has the console; what others print goes to ``run.rank<r>.log``."""

    def __init__(self, module: str, folder: Path, run_dir: Path, num: int) -> None:
        self.folder = folder
        shared = {
            **os.environ, JOB: str(folder), "WORLD_SIZE": str(num), "NODE_RANK": "0",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, usable_cpus() // num)),
        }  # fmt: skip
        self.processes: list[subprocess.Popen[bytes]] = []
        for rank in range(num):
            environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            output: Mapping[str, Any] = {}
            if rank:
                output = {"stdout": (run_dir / f"run.rank{rank}.log").open("ab"), "stderr": subprocess.STDOUT}
            command = [sys.executable, "-m", module]
            # a group of its own: the terminal's Ctrl-C reaches the supervisor alone, which passes it on once
            self.processes.append(subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, process_group=0, **output))
            if rank:
                output["stdout"].close()
        self.signals = 0

    def wait(self) -> None:
        previous = {}
        if threading.current_thread() is threading.main_thread():
            previous = {number: signal.signal(number, self._pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._wait()
        finally:
            for process in self.processes:
                if process.poll() is None:
                    process.kill()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _wait(self) -> None:
        deadline, asked = float("inf"), False
        while running := [p for p in self.processes if p.poll() is None]:
            for rank, process in enumerate(self.processes):
                code = process.poll()
                if code and deadline == float("inf"):
                    deadline = time.monotonic() + GRACE
                if code is not None and code < 0 and not self.signals and not asked:
                    name = signal.Signals(-code).name
                    why = " (out of memory?)" if name == "SIGKILL" else ""
                    _tell(self.folder, rank, "Killed", f"it was ended by {name}{why}")
            if time.monotonic() > deadline:
                for process in running:
                    process.kill() if asked else process.terminate()
                asked, deadline = True, time.monotonic() + GRACE / 4
            time.sleep(0.05)

    def _pass_on(self, number: int, frame: object) -> None:
        self.signals += 1
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number if self.signals < 3 else signal.SIGKILL)


def _outcome(folder: Path, ranks: _Ranks, run_dir: Path) -> float | int | JobFailure | None:
    from coordvlm.utils.record import abandon
    from coordvlm.utils.sweep import JobFailure

    codes = [p.returncode for p in ranks.processes]
    if not any(codes):
        file = folder / "result.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None  # type: ignore[no-any-return]
    told = dict(_failures(folder))
    if 130 in codes or ranks.signals:
        abandon(run_dir, "interrupted", "KeyboardInterrupt", "ended by a signal")
        raise KeyboardInterrupt
    rank = min(told, key=lambda r: told[r]["at"], default=next(r for r, code in enumerate(codes) if code))
    failure = told.get(rank, {"kind": "RankError", "message": f"it ended with status {codes[rank]}"})
    abandon(run_dir, "failed", failure["kind"], f"process {rank}: {failure['message']}")
    if codes[0] is not None and codes[0] > 0:  # rank 0 has said why, on this console
        return JobFailure(codes[0], failure["kind"], failure["message"])
    raise RankError(f"process {rank}: {failure['message']} (its output: {run_dir / f'run.rank{rank}.log'})" if rank else
                    f"process 0: {failure['message']}")


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
