"""Which runs are repetitions of one recipe, what the recipes are called, and which runs may be compared at all.

Two runs belong to one group when their configurations differ in nothing but the seed and in what changes no result: paths,
notes, threads, loggers. A group is called after the choices and overrides in which it differs from the others.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coordvlm.analysis.runs import LeftOut, Run
from coordvlm.utils.errors import ConfigError
from coordvlm.utils.overrides import hint, nearest

#: Settings that change no result; a prefix ends in a dot.
NEUTRAL = (
    "paths.", "hydra.", "logger.", "callbacks.progress.", "notes", "resume", "resume_sweep", "sweep.", "inspect", "num_threads",
    "base", "data.num_workers", "trainer.log_every_n_steps", "trainer.enable_progress_bar", "metrics.num_replicates", "metrics.seed",
)
_CONDITION = re.compile(r"([\w./-]+)=(\S*)")


@dataclass(frozen=True)
class Group:
    """Runs of one recipe, by seed.

    Args:
        name: ``loss=hybrid``; of several differences ``loss=ce, trainer.max_steps=200``. short: without what all names share.
    """

    name: str
    short: str
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)


def restrict(runs: Sequence[Run], only: str | None) -> list[Run]:
    """The runs that meet every condition.

    Args:
        only: ``loss=ce,hybrid split=test``: by a choice, a setting, ``seed``, ``contract``, ``protocol`` or one of the protocol's values.
    Raises:
        ConfigError: no condition, a name that no run knows, or nothing left; lists what there is.
    """
    if not only:
        return list(runs)
    if not (conditions := _CONDITION.findall(only)) or _CONDITION.sub("", only).strip(" ;"):
        raise ConfigError(f"only={only!r}: write conditions as name=value or name=value1,value2, separated by spaces")
    kept = list(runs)
    for name, values in conditions:
        wanted = set(values.split(","))
        facts = [_facts(run) for run in runs]
        if not any(name in f for f in facts):
            raise ConfigError(f"only={only!r}: no run knows {name!r}{hint(nearest(name, sorted({k for f in facts for k in f})))}")
        kept = [run for run in kept if str(_facts(run).get(name)) in wanted]
        if not kept:
            there = sorted({str(f[name]) for f in facts if name in f})
            raise ConfigError(f"only={only!r} leaves no run; {name} is one of {', '.join(there)}")
    return kept


def _facts(run: Run) -> dict[str, Any]:
    own = {"protocol": run.protocol_hash, "seed": run.seed, "contract": run.record.get("contract"), "run": run.name}
    return {**run.config, **run.protocol, **run.choices, **own}


def require_one_protocol(runs: Sequence[Run], *, reread: bool = False) -> None:
    """Refuse runs that were measured differently.

    Args:
        reread: predictions are read again with one read-out, so that the runs' own may differ.
    Raises:
        ConfigError: names the values that differ, and which runs have which.
    """
    facts = [_measured(run, reread) for run in runs]
    keys = sorted({key for f in facts for key in f})
    differing = [key for key in keys if len({repr(f.get(key)) for f in facts}) > 1]
    if not differing:
        return
    lines = []
    for key in differing:
        by_value: dict[str, list[str]] = {}
        for run, f in zip(runs, facts, strict=True):
            by_value.setdefault(str(f.get(key, "not recorded")), []).append(run.name)
        lines += [f"  {key}={value}: {_some(names)}" for value, names in by_value.items()]
    hints = [f'keep one kind with only="{differing[0]}=..."']
    if "readout" in differing:
        hints.append("or read all predictions the same way with readout=local")
    raise ConfigError(
        "these runs were evaluated by different protocols, so their numbers do not mean the same:\n" + "\n".join(lines)
        + f"\n{' '.join(hints)}"
    )


def _measured(run: Run, reread: bool) -> dict[str, Any]:
    """What must be equal: the protocol, and the images and weights of the replicates. In counting and for clips the read-out may differ: it
    is the head that the recipe trains, not another reading of one answer."""
    own = {"bootstrap seed": run.bootstrap_seed, "bootstrap replicates": len(next(iter(run.replicates.values())))}
    if reread:
        own = {}
    images = f"{len(run.image_ids)} with checksum {zlib.crc32(np.sort(run.image_ids).tobytes()):08x}"
    free = reread or counted(run) or looked(run)
    return {**{k: v for k, v in run.protocol.items() if not (free and k == "readout")}, **own, "images": images}


def counted(run: Run) -> bool:
    """Whether it is a run of counting."""
    return "samples" in run.counts


def looked(run: Run) -> bool:
    """Whether it is a run of questions about clips."""
    return "clips" in run.counts


def _some(names: Sequence[str], n: int = 4) -> str:
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")


def group_runs(runs: Sequence[Run], *, ignore: Sequence[str]) -> tuple[list[Group], list[LeftOut]]:
    """Groups in the order of their names, runs by seed.

    Args:
        ignore: further settings (dotted keys; a trailing dot takes all below) that make no group of their own.
    Returns:
        The groups, and runs that repeat a seed of their group: the one that started last stays, as counting both would make
        one training look like two.
    """
    keys = differing_keys(runs, ignore=ignore)
    cells: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        cells.setdefault(tuple(repr(run.config.get(k)) for k in keys), []).append(run)
    rest: list[LeftOut] = []
    members = [_one_per_seed(cell, rest) for cell in cells.values()]
    names = _names(members, keys)
    shared = _shared_prefix(names)
    groups = [Group(name, name.removeprefix(shared), tuple(cell)) for name, cell in zip(names, members, strict=True)]
    return sorted(groups, key=lambda g: g.name), rest


def differing_keys(runs: Sequence[Run], *, ignore: Sequence[str] = ()) -> list[str]:
    """Settings that differ between some runs, without those that change no result or that follow the run's seed."""
    neutral = (*NEUTRAL, *ignore)
    keys = sorted({key for run in runs for key in run.config})
    out = []
    for key in keys:
        if any(key == n or (n.endswith(".") and key.startswith(n)) for n in neutral) or _follows_seed(key, runs):
            continue
        if len({repr(run.config.get(key)) for run in runs}) > 1:
            out.append(key)
    return out


def _follows_seed(key: str, runs: Sequence[Run]) -> bool:
    """``seed``, ``data.source.seed``, ``model.load.seed`` ...: interpolated from the run's seed wherever they are there."""
    return key.split(".")[-1] == "seed" and all(run.config[key] == run.seed for run in runs if key in run.config)


def _one_per_seed(cell: Sequence[Run], rest: list[LeftOut]) -> list[Run]:
    newest: dict[int, Run] = {}
    for run in sorted(cell, key=lambda r: str(r.record.get("started"))):
        if (older := newest.get(run.seed)) is not None:
            rest.append(LeftOut(older.folder, f"the same recipe and seed ({run.seed}) as {run.folder}, which started later"))
        newest[run.seed] = run
    return [newest[seed] for seed in sorted(newest)]


def _names(cells: Sequence[Sequence[Run]], keys: Sequence[str]) -> list[str]:
    """A name per group: choices first, then what was overridden, then any other setting, each only if it tells groups apart."""
    if len(cells) < 2:
        return ["all runs" for _ in cells]
    first = [cell[0] for cell in cells]
    overridden = sorted({str(o).lstrip("+~").partition("=")[0] for run in first for o in run.record.get("overrides", [])})
    choices = list(dict.fromkeys(k for run in first for k in run.choices))
    candidates: list[tuple[str, Callable[[Run], Any]]] = [(name, _choice(name)) for name in choices]
    candidates += [(key, _setting(key)) for key in [*(k for k in overridden if k in keys), *sorted(keys, key=lambda k: (k.count("."), k))]]
    chosen: list[tuple[str, Callable[[Run], Any]]] = []
    partition = _partition(first, [])
    for name, value in candidates:
        finer = _partition(first, [*(v for _, v in chosen), value])
        if len(set(finer)) > len(set(partition)):
            chosen.append((name, value))
            partition = finer
    return [", ".join(f"{name}={_shown(v)}" for name, value in chosen if (v := value(run)) is not None) or "default" for run in first]


def _choice(name: str) -> Callable[[Run], Any]:
    return lambda run: run.choices.get(name)


def _setting(key: str) -> Callable[[Run], Any]:
    return lambda run: run.config.get(key)


def _partition(runs: Iterable[Run], values: Sequence[Callable[[Run], Any]]) -> list[str]:
    return [repr([value(run) for value in values]) for run in runs]


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        text = f"[{','.join(map(_shown, value))}]"
    else:
        text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else text[:39] + "…"


def _shared_prefix(names: Sequence[str]) -> str:
    """``loss=`` when every name is one choice of that group."""
    keys = {name.partition("=")[0] for name in names}
    simple = all(", " not in name and "=" in name for name in names)
    return f"{keys.pop()}=" if simple and len(keys) == 1 else ""


def find_group(groups: Sequence[Group], wanted: str) -> Group:
    """The group with this name, short name or choice (``ce`` or ``loss=ce``).

    Raises:
        ConfigError: none or several; lists them.
    """
    exact = [g for g in groups if wanted in (g.name, g.short)]
    found = exact or [g for g in groups if any(wanted in (part, part.partition("=")[2]) for part in g.name.split(", "))]
    if len(found) != 1:
        problem = "several groups" if found else "no group"
        raise ConfigError(f"baseline={wanted}: {problem} of that name; the groups: {'; '.join(g.name for g in found or groups)}")
    return found[0]


def contract_differences(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Field of the coordinate contract -> its value in each group, for those that differ; a missing contract is a dash."""
    flat = [_flat_contract(group) for group in groups]
    fields = list(dict.fromkeys(k for f in flat for k in f))
    return {k: [f.get(k, "–") for f in flat] for k in fields if len({f[k] for f in flat if k in f}) > 1}


def _flat_contract(group: Group) -> dict[str, str]:
    out: dict[str, set[str]] = {}
    for run in group.runs:
        if run.contract is not None:
            values = run.contract.to_dict()
            resize = values.pop("resize")
            assert isinstance(resize, Mapping)
            for key, value in {**values, **{f"resize.{k}": v for k, v in resize.items()}}.items():
                out.setdefault(key, set()).add(str(value))
    return {k: " or ".join(sorted(v)) for k, v in out.items()}
