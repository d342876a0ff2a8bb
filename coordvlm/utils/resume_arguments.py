"""``resume=<run>``: the command line of the run that goes on, with what is given now in place of its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coordvlm.utils.errors import ConfigError
from coordvlm.utils.record import RunRecord
from coordvlm.utils.runs import resolve_run


def resumed_arguments(argv: Sequence[str]) -> list[str]:
    """``resume=<run>`` alone means: with that run's settings. Its overrides come first; those given now replace theirs.

    Raises:
        ConfigError: another start is given beside it, or there is no such run.
    """

    def key(argument: str) -> str:
        return argument.partition("=")[0].lstrip("+~")

    given = {key(a): a.partition("=")[2] for a in argv if "=" in a}
    wanted = given.get("resume", "null").strip("\"'")
    if wanted in ("", "null"):
        return list(argv)
    if given.get("init", "null").strip("\"'") not in ("", "null"):
        raise ConfigError(f"init={given['init']} has no effect with resume={wanted}: a run that goes on has its weights; give one of them")
    if idle := [k for k in given if k.partition(".")[0] == "optim"]:
        print(f"warning: {', '.join(idle)} given with resume: optimiser and schedule continue from the checkpoint", file=sys.stderr)
    outputs = given.get("paths.outputs", "").strip("\"'")
    record = RunRecord.read(resolve_run(wanted, outputs=Path(outputs) if outputs else None, prefer=("last",)).run_dir)
    saved = [a for a in record.get("overrides", []) if key(a) not in given]
    if "seed" not in given:  # seed=null chose one
        saved = [f"seed={record['seed']}" if key(a) == "seed" else a for a in saved]
    return _config_file(record, argv) + saved + list(argv)


def _config_file(record: dict[str, Any], argv: Sequence[str]) -> list[str]:
    """The root configuration of a run that began as ``-cd DIR -cn NAME`` (a job of a sweep: it goes on as a single run)."""
    file = record.get("config_file") or {}
    if file.get("name", "train") == "train" or {"-cn", "--config-name", "-cd", "--config-dir"} & set(argv):
        return []
    return [*(["-cd", str(file["folder"])] if file.get("folder") else []), "-cn", str(file["name"]), "--run"]
