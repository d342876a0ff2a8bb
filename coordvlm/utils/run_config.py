"""What ``eval`` and ``predict`` compose: the saved configuration of a trained run, or for ``run=null`` a base model's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from coordvlm.utils.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

#: Groups that a trained run brings with it.
OF_THE_RUN = ("model", "adapter", "sequence", "coords")
#: Groups and keys of ``train`` that mean nothing where nothing is trained.
OF_TRAINING = ("loss", "adapter", "augment", "optim", "logger", "init", "resume", "inspect")
#: Why there is no counting with ``run=null``.
UNTRAINED = (
    "an untouched base model cannot count: points and their end are read by heads (x, y, done) that only a training has values for; "
    "train one with python -m coordvlm.train data=dots (or points, fsc147), and name it with run="
)
#: Settings of ``decode`` that runs of before have not written down.
_OF_DRAWING = ("samples", "retries", "temperature", "top_p", "seed")
_SHOWS = frozenset({"--help", "-h", "--cfg", "-c", "--info", "-i", "--hydra-help", "--shell-completion", "-sc"})


def saved_config(trained_run: Path) -> DictConfig:
    """The resolved configuration of a run.

    Raises:
        ConfigError: it has none, or one that cannot be read.
    """
    from omegaconf import OmegaConf

    saved = trained_run / "config.yaml"
    if not saved.is_file():
        raise ConfigError(f"{trained_run} has no config.yaml, so the model cannot be built again")
    try:
        config = OmegaConf.load(saved)
        if not OmegaConf.is_dict(config) or not {"model", "sequence", "coords"} <= set(config):
            raise ValueError("it is not the configuration of a run")
    except Exception as error:  # YAML's and OmegaConf's own classes
        raise ConfigError(f"{saved} cannot be read, so the model cannot be built again: {error}") from error
    return config  # type: ignore[return-value]


def require_setting(config: DictConfig, group: str, key: str) -> None:
    """Refuse a setting of another task. Settings that drawing answers needs may be new to a run from before there were any.

    Args:
        config: of a trained run. group: ``decode``, ``metrics``; whatever is set of other groups passes.
    Raises:
        ConfigError: names the settings that the run has.
    """
    task = config.get("task", "detect")
    if group not in ("decode", "metrics") or key in config[group] or (key in _OF_DRAWING and task != "count"):
        return
    has = ", ".join(str(k) for k in config[group] if not str(k).startswith("_"))
    raise ConfigError(f"{group}.{key} means nothing to this run, whose task is {task}; its {group} has {has}")


def base_arguments(
    argv: Sequence[str], *, config: str, does: str, idle: Sequence[str] = OF_TRAINING, of_the_run: Sequence[str] = OF_THE_RUN
) -> list[str]:
    """``run=null`` has groups and keys of its own; what does not go with ``run=`` is refused in a sentence.

    Args:
        config: what is composed for ``run=null``. does: what the command does with a model, as in "scores". idle: groups and keys
            that then mean nothing. of_the_run: groups that a trained run brings.
    Raises:
        ConfigError: a model, sequence or grid beside a trained run; settings of a training, or no model, beside ``run=null``.
    """
    given = {a.partition("=")[0].lstrip("+~"): a.partition("=")[2].strip("\"'") for a in argv if "=" in a and not a.startswith("-")}
    if {"-cn", "--config-name"} & set(argv):
        return list(argv)
    if given.get("run", "") != "null":
        if found := _of(of_the_run, given):
            brings = "brings its own model, sequence and coords: they decide what its numbers mean"
            subject = f"run={given['run']}" if "run" in given else "a trained run"
            raise ConfigError(f"{found} is for run=null, which {does} a base model as it is; {subject} {brings}")
        return list(argv)
    if found := _of(idle, given):
        raise ConfigError(f"{found} has no effect with run=null, which {does} a base model as it is: nothing is trained")
    if not {"model", "experiment"} & set(given) and not _SHOWS & set(argv):
        raise ConfigError(f"run=null {does} a base model as it is: say which, with model=... (and sequence=, coords= as it writes boxes)")
    return ["-cn", config, *argv]


def _of(groups: Sequence[str], given: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in given.items() if key.partition(".")[0].partition("@")[0] in groups)
