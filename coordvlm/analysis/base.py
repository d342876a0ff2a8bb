"""``base=<folder>``: an earlier evaluation that this one is compared with, usually of the untouched model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from coordvlm.analysis.bootstrap import paired_difference
from coordvlm.contracts import Evaluation, Interval
from coordvlm.metrics.replicates import load_replicates
from coordvlm.reports.base_beside import BaseComparison, Beside
from coordvlm.utils.errors import ConfigError, DataError
from coordvlm.utils.locations import outputs_root
from coordvlm.utils.record import RunRecord

METRICS, REPLICATES = "metrics.json", "bootstrap.npz"


@dataclass(frozen=True)
class BaseRun:
    """An evaluation on disk.

    Args:
        name: what was evaluated, in words. metrics: its numbers. protocol: its values, with their ``hash``.
        seed, num_replicates: of its bootstrap.
    """

    folder: Path
    name: str
    metrics: Mapping[str, Interval]
    protocol: Mapping[str, Any]
    seed: int
    num_replicates: int

    def require(self, protocol: Mapping[str, Any], *, seed: int, num_replicates: int) -> None:
        """Refuse what cannot be compared, naming every value that differs.

        Args:
            protocol, seed, num_replicates: of the evaluation that is to come.
        """
        differ = [f"{k}: {self.protocol.get(k)!r} in base, {protocol.get(k)!r} here" for k in sorted({*self.protocol, *protocol} - {"hash"})
                  if self.protocol.get(k) != protocol.get(k)]
        if self.num_replicates and num_replicates:
            mine = {"metrics.seed": (self.seed, seed), "metrics.num_replicates": (self.num_replicates, num_replicates)}
            differ += [f"{k}: {theirs!r} in base, {ours!r} here" for k, (theirs, ours) in mine.items() if theirs != ours]
        if differ:
            raise ConfigError(
                f"base={self.folder} was scored under another protocol, so a difference would mean nothing; score both alike:\n  "
                + "\n  ".join(differ)
            )

    def compare(self, evaluation: Evaluation, folder: Path) -> BaseComparison:
        """This evaluation (its files are in ``folder``) beside the base."""
        paired = load_replicates(folder / REPLICATES, self.folder / REPLICATES)
        metrics = {}
        for name, tuned in evaluation.metrics.items():
            if name not in self.metrics:
                continue
            base = self.metrics[name]
            if name in paired:
                found = paired_difference(tuned.value, base.value, *paired[name])
                metrics[name] = Beside(base, tuned, found.difference, found.p_value)
            else:
                metrics[name] = Beside(base, tuned, Interval(tuned.value - base.value))
        return BaseComparison(self.name, str(self.folder), evaluation.counts.get("images", 0), metrics)


def open_base(base: str | None, *, outputs: str | Path | None = None) -> BaseRun | None:
    """Find and read an evaluation; None for none.

    Args:
        base: the folder of an ``eval`` (or ``train``) run; a relative one may also be relative to the output root or its ``eval`` folder.
    Raises:
        ConfigError: no such folder, or no evaluation in it.
    """
    if base is None:
        return None
    root = Path(outputs) if outputs is not None else outputs_root()
    given = Path(base).expanduser()
    places = [p for p in dict.fromkeys((given.absolute(), root / given, root / "eval" / given)) if p.is_dir()]
    if not places:
        raise ConfigError(f"base={base}: no such folder{_recent(root)}")
    folder = next((p for p in places if (p / METRICS).is_file()), places[0])
    if absent := [name for name in (METRICS, REPLICATES) if not (folder / name).is_file()]:
        raise ConfigError(
            f"base={base}: {folder} is no evaluation, it has no {' and no '.join(absent)}; "
            f"python -m coordvlm.eval run=null model=... scores an untouched model{_recent(root)}"
        )
    return _read(folder)


def _read(folder: Path) -> BaseRun:
    try:
        found = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        metrics = {name: Interval(*(_number(m[part]) for part in ("value", "low", "high"))) for name, m in found["metrics"].items()}
        protocol = dict(found["protocol_values"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"must hold metrics and protocol_values of an evaluation ({type(error).__name__}: {error})",
                        where=folder / METRICS) from error
    try:
        with np.load(folder / REPLICATES, allow_pickle=False) as data:
            seed = int(data["seed"])
            lengths = {len(data[key]) for key in data.files if key.startswith("metric/")}
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise DataError(f"must be the replicates of an evaluation ({type(error).__name__}: {error})", where=folder / REPLICATES) from error
    return BaseRun(folder, _name(folder), metrics, protocol, seed, max(lengths, default=0))


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _name(folder: Path) -> str:
    """``tiny (base model, untouched)`` or ``run 2026-01-31_12-00-00 (hybrid, tiny)``."""
    try:
        record = RunRecord.read(folder)
    except DataError:
        return folder.name
    chosen = record.get("choices") or {}
    what = record.get("evaluated") or {}
    if what.get("what"):
        return f"{chosen.get('model', 'a model')} ({what['what']})"
    words = ", ".join(str(chosen[k]) for k in ("experiment", "loss", "model") if chosen.get(k))
    return f"run {Path(what.get('run') or folder).name}" + (f" ({words})" if words else "")


def _recent(root: Path, n: int = 5) -> str:
    found = sorted((p.parent for p in (root / "eval").glob(f"*/{METRICS}")), key=lambda p: p.name, reverse=True)[:n]
    return ("; the newest evaluations:\n" + "\n".join(f"  {p} ({_name(p)})" for p in found)) if found else ""
