"""A command of two processes that does what its ``phrase`` says, without torch.

``<what>:<rank>``: the rank fails with a user's error (``fail``), with a bug (``bug``), kills itself (``kill``), waits for Ctrl-C
(``wait``), hangs and hears nothing (``hang``), or waits for the others to fail and then meets a broken collective (``notice``).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordvlm.utils import launch
from coordvlm.utils.cli import run_command
from coordvlm.utils.errors import DataError

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(cfg: DictConfig) -> Any:
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from coordvlm.utils.record import RunRecord

    if not launch.is_rank():
        return launch.run_ranks("tests.utils.rank_command", cfg, 2)
    folder, rank = Path(cfg.paths.run_dir), os.environ["RANK"]
    todo = {word.partition(":")[2]: word.partition(":")[0] for word in str(cfg.phrase).split()}.get(rank, "")
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    with RunRecord(folder, command="train", config=plain) as record, launch.shared_fate():
        record.update(rank=int(rank), overrides=list(HydraConfig.get().overrides.task))
        record.update(phrase=cfg.phrase, threads=os.environ["OMP_NUM_THREADS"])
        (folder / f"here.{rank}").write_text(f"{os.getpid()}")
        print(f"the console of rank {rank}")
        if todo == "fail":
            raise DataError("must be a number", where="file.json", value=7)
        if todo == "bug":
            raise ZeroDivisionError("a bug")
        if todo == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if todo == "hang":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if todo in ("hang", "wait"):
            time.sleep(60)
        if todo == "notice":
            other = folder / f"here.{1 - int(rank)}"
            while not other.exists():
                time.sleep(0.02)
            time.sleep(0.2)
            raise RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:38614")
    return 0.25 + int(rank)


if __name__ == "__main__":
    sys.exit(run_command("train", main))
