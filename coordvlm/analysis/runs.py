"""What a comparison reads of a run folder, and why a folder cannot take part.

A run takes part if it finished and left everything a claim needs: configuration, metrics, predictions and bootstrap replicates.
A folder of ``eval`` counts as another evaluation of the run it scored: recipe, seed and curves are that run's; the evaluation
of an untouched base model stands for itself.
"""

from __future__ import annotations

import csv
import glob
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from coordvlm.contracts import Contract
from coordvlm.utils.errors import ConfigError, ContractError, DataError
from coordvlm.utils.record import FILE_NAME, RunRecord
from coordvlm.utils.sweep_resume import newest_sweep

FloatArray = NDArray[np.float64]
#: How deep runs are looked for below a given folder: outputs/<command>/multirun/<sweep>/<job>.
_DEPTH = 4
#: Groups of settings that an ``eval`` may change on top of the run it scores.
_EVAL_GROUPS = ("decode", "metrics", "data")


@dataclass(frozen=True)
class Run:
    """A finished run with its evaluation.

    Args:
        record: ``run.json``. config: dotted key -> value, the run's own folder replaced by ``<run>``.
        values: metric -> value, NaN where undefined. replicates: metric -> float64[B].
        image_ids: int64[I], of the replicates. bootstrap_seed: of their weights.
        protocol: its values. readouts: read-out -> metric -> value. counts: of the evaluation. timing: seconds of it.
        curves: column of log.csv -> (steps, values). contract: None when the checkpoint is gone.
    """

    folder: Path
    record: Mapping[str, Any]
    config: Mapping[str, Any]
    seed: int
    values: Mapping[str, float]
    replicates: Mapping[str, FloatArray] = field(repr=False)
    image_ids: NDArray[np.int64] = field(repr=False)
    bootstrap_seed: int
    protocol: Mapping[str, Any]
    protocol_hash: str
    readouts: Mapping[str, Mapping[str, float]]
    counts: Mapping[str, int]
    timing: Mapping[str, float]
    curves: Mapping[str, tuple[FloatArray, FloatArray]] = field(repr=False)
    contract: Contract | None

    @property
    def name(self) -> str:
        """Folder, with the sweep's before a job's."""
        parent = self.folder.parent
        in_sweep = any((parent / name).is_file() for name in ("sweep.json", "jobs.json"))
        return f"{parent.name}/{self.folder.name}" if in_sweep else self.folder.name

    @property
    def choices(self) -> dict[str, str]:
        """Config group -> chosen option; an untouched base model was taught by no loss."""
        found = self.record.get("choices")
        chosen = {str(k): str(v) for k, v in found.items()} if isinstance(found, Mapping) else {}
        return {"loss": "untouched", **chosen} if "what" in (self.record.get("evaluated") or {}) else chosen

    @property
    def trained(self) -> Path:
        """The folder of the training run; this one for an untouched base model."""
        return _trained(self.folder, self.record)

    @property
    def predictions_file(self) -> Path:
        return self.folder / "predictions.jsonl"


@dataclass(frozen=True)
class LeftOut:
    """A folder that takes no part."""

    folder: Path
    reason: str


def find_folders(asked: str | Sequence[str], *, outputs: Path) -> list[Path]:
    """Run folders, in the order of their names.

    Args:
        asked: folders and glob patterns: runs, sweeps, or any folder above them. A relative one may also be relative to the
            output root or its ``train`` folder; one text may name several, separated by commas. ``latest`` is the sweep that
            started last.
    Raises:
        ConfigError: a place that does not exist, or without any run below it.
    """
    found: dict[Path, None] = {}
    for text in _places(asked):
        roots = (Path.cwd(), outputs, outputs / "train")
        matches = next((m for root in roots if (m := sorted(glob.glob(str(root / Path(text).expanduser()))))), [])
        if not matches and text == "latest":
            sweeps = outputs / "train" / "multirun"
            if (newest := newest_sweep(sweeps)) is None:
                raise ConfigError(f"runs=latest: there is no sweep under {sweeps}; name runs or folders above them")
            matches = [str(newest)]
        if not matches:
            raise ConfigError(f"runs={text}: no such folder, neither here nor under {outputs}")
        runs = [folder for match in matches for folder in _below(Path(match), _DEPTH)]
        if not runs:
            raise ConfigError(f"runs={text}: no run (a folder with {FILE_NAME}) in {', '.join(matches[:5])}")
        found |= dict.fromkeys(folder.absolute() for folder in runs)
    return list(found)


def _places(asked: str | Sequence[str]) -> list[str]:
    if not isinstance(asked, str):
        return [str(x) for x in asked]
    return [asked] if Path(asked).expanduser().exists() else [part.strip() for part in asked.split(",") if part.strip()]


def _below(folder: Path, depth: int) -> Iterator[Path]:
    """Runs in a folder; a folder with a Hydra configuration but without a record is a run that died before it wrote one."""
    if (folder / FILE_NAME).exists() or (folder / ".hydra").is_dir():
        yield folder
    elif depth and folder.is_dir():
        for inner in sorted(x for x in folder.iterdir() if x.is_dir()):
            yield from _below(inner, depth - 1)


def read_runs(folders: Sequence[Path]) -> tuple[list[Run], list[LeftOut]]:
    """The runs that can take part, and the reasons for the rest. Folders of other commands are passed over in silence."""
    runs, rest = [], []
    for folder in folders:
        try:
            if (run := read_run(folder)) is not None:
                runs.append(run)
        except (DataError, ContractError) as error:
            rest.append(LeftOut(folder, str(error)))
    return runs, rest


def read_run(folder: Path) -> Run | None:
    """One run; None for the folder of a command that neither trains nor evaluates.

    Raises:
        DataError: it is unfinished or failed, or a file is missing, corrupt or does not fit the others; says which and why.
    """
    record = RunRecord.read(folder)
    if record.get("command") not in ("train", "eval"):
        return None
    if record["status"] != "finished":
        error = record.get("error")
        words = f": {error.get('type')}: {error.get('message')}" if isinstance(error, Mapping) else ""
        raise DataError(f"only a finished run can be compared, this one is {record['status']}{words}", where=folder)
    trained = _trained(folder, record)
    config = _config(folder, trained)
    metrics = _json(folder / "metrics.json")
    replicates, image_ids, bootstrap_seed = _replicates(folder / "bootstrap.npz")
    if not (folder / "predictions.jsonl").is_file():
        raise DataError("must be there: the run has no predictions", where=folder / "predictions.jsonl")
    try:
        values = {name: _number(entry["value"]) for name, entry in metrics["metrics"].items()}
        protocol, digest = dict(metrics["protocol_values"]), str(metrics["protocol"])
        counts = {name: int(n) for name, n in metrics["counts"].items()}
        timing = {name: _number(v) for name, v in metrics["timing"].items()}
        readouts = {r: {m: _number(v) for m, v in row.items()} for r, row in metrics.get("readouts", {}).items()}
    except (KeyError, TypeError, AttributeError) as error:
        rule = f"must hold metrics, protocol, protocol_values, counts and timing: {error!r}"
        raise DataError(rule, where=folder / "metrics.json") from error
    if not isinstance(seed := record.get("seed", config.get("seed")), int):
        raise DataError("must hold the run's seed", where=folder / FILE_NAME, value=seed)
    return Run(
        folder=folder, record=record, config=config, seed=seed, values=values, replicates=replicates, image_ids=image_ids,
        bootstrap_seed=bootstrap_seed, protocol={k: v for k, v in protocol.items() if k != "hash"}, protocol_hash=digest,
        readouts=readouts, counts=counts, timing=timing, curves=read_log(trained / "log.csv"), contract=_contract(trained),
    )


def _trained(folder: Path, record: Mapping[str, Any]) -> Path:
    scored = (record.get("evaluated") or {}).get("run")
    return folder if scored is None else Path(str(scored))


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read: {error}", where=path) from error
    if not isinstance(data, dict):
        raise DataError("must hold a mapping", where=path)
    return data


def _number(value: object) -> float:
    return float("nan") if value is None else float(value)  # type: ignore[arg-type]


def _replicates(path: Path) -> tuple[dict[str, FloatArray], NDArray[np.int64], int]:
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {key: data[key] for key in data.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"bootstrap replicates cannot be read: {error}", where=path) from error
    found = {key.removeprefix("metric/"): value for key, value in arrays.items() if key.startswith("metric/") and value.size}
    if "image_ids" not in arrays or "seed" not in arrays:
        raise DataError("must hold image_ids and seed", where=path, value=sorted(arrays)[:5])
    if not found:
        raise DataError("holds no replicates (metrics.num_replicates=0), so no difference would have an interval", where=path)
    return found, arrays["image_ids"], int(arrays["seed"])


def _config(folder: Path, trained: Path) -> dict[str, Any]:
    """The resolved configuration as dotted keys; of an evaluation, the trained run's with the evaluation's settings on top."""
    config = _flat(_yaml(trained / "config.yaml"))
    if trained != folder:
        own = _flat(_yaml(folder / "config.yaml"))
        config |= {k: v for k, v in own.items() if k.split(".")[0] in _EVAL_GROUPS and v is not None and k in config}
    places = (str(folder), str(trained))
    return {k: _placeless(v, places) for k, v in config.items()}


def _yaml(path: Path) -> dict[str, Any]:
    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"the configuration cannot be read: {error}", where=path) from error
    if not isinstance(data, dict):
        raise DataError("must hold the resolved configuration", where=path)
    return data


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested mappings by dotted key; lists are leaves, as tuples."""
    if isinstance(value, dict) and value:
        out: dict[str, Any] = {}
        for key, inner in value.items():
            out |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
        return out
    return {prefix: _frozen(value)}


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple((k, _frozen(v)) for k, v in value.items())
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value


def _placeless(value: Any, places: Sequence[str]) -> Any:
    if isinstance(value, str):
        for place in places:
            value = value.replace(place, "<run>")
    return value


def _contract(trained: Path) -> Contract | None:
    """Of the best checkpoint, or any; None when all are gone."""
    files = sorted(trained.glob("checkpoints/*/contract.json"), key=lambda p: (p.parent.name != "best", p.parent.name))
    return Contract.load(files[0]) if files else None


def read_log(path: Path) -> dict[str, tuple[FloatArray, FloatArray]]:
    """log.csv: column -> (steps, finite values); an absent file has none.

    Raises:
        DataError: a cell that is no number.
    """
    if not path.is_file():
        return {}
    columns: dict[str, tuple[list[float], list[float]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for line, row in enumerate(csv.DictReader(file), 2):
            for name, text in row.items():
                if name == "step" or not text:
                    continue
                try:
                    step, value = float(row["step"]), float(text)
                except (KeyError, ValueError, TypeError) as error:
                    raise DataError(f"column {name!r} must hold numbers by step", where=f"{path}:{line}", value=text) from error
                if np.isfinite(value):
                    steps, values = columns.setdefault(name, ([], []))
                    steps.append(step)
                    values.append(value)
    return {name: (np.asarray(steps), np.asarray(values)) for name, (steps, values) in columns.items()}
