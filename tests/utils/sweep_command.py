"""A command that does what its ``phrase`` says, for sweeps whose jobs are real processes but train nothing.

``fail:2 kill:3 wait:4`` names the seeds that fail, kill themselves, or wait until the file ``go`` exists; ``together`` waits
for another job; ``deaf`` jobs ignore Ctrl-C. A file ``repaired`` heals failures.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordvlm.utils import locations
from coordvlm.utils.cli import run_command
from coordvlm.utils.errors import DataError

if TYPE_CHECKING:
    from omegaconf import DictConfig

SEEN = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


def main(cfg: DictConfig) -> float:
    from omegaconf import OmegaConf

    from coordvlm.utils.record import RunRecord

    folder, root = Path(cfg.paths.run_dir), Path(os.environ["FAKE_ROOT"])
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    todo = {word.partition(":")[0]: word.partition(":")[2].split(",") for word in str(cfg.phrase).split()}
    mine = {word for word, seeds in todo.items() if str(cfg.seed) in seeds or seeds == [""]}
    seen = {"seed": cfg.seed, "resume": cfg.resume, "phrase": cfg.phrase, "pid": os.getpid(), **{key: os.environ.get(key) for key in SEEN}}
    (root / f"seen_{time.time_ns()}.json").write_text(json.dumps(seen))
    with RunRecord(folder, command="train", config=plain):
        if "fail" in mine and not (root / "repaired").exists():
            raise DataError("must be a number", where="file.json", value=cfg.seed)
        if "kill" in mine and not (root / "repaired").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            if "deaf" in mine:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            if "wait" in mine:
                (folder / "waits").touch()
                _until(lambda: (root / "go").exists())
            if "together" in mine:
                (root / f"here_{cfg.seed}").touch()
                _until(lambda: len(list(root.glob("here_*"))) > 1)
        except KeyboardInterrupt:
            checkpoint = folder / "checkpoints" / "last"
            checkpoint.mkdir(parents=True)
            for name in ("trained.safetensors", "contract.json", "trainer.ckpt"):
                (checkpoint / name).touch()
            raise
    print(f"the console of seed {cfg.seed}")
    return cfg.seed / 2


def _until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def cli(argv: Sequence[str]) -> int:
    return run_command("train", main, argv=argv)


if __name__ == "__main__":
    locations.conf_dir = lambda: Path(os.environ["FAKE_ROOT"]) / "conf"  # type: ignore[assignment]
    sys.exit(cli(sys.argv[1:]))
