"""Ask a trained run about images: where is what a phrase names, what is there and where, or how many of something there are.

python -m coordvlm.predict run=latest images=photos/ phrase="the cup left of the plate"
python -m coordvlm.predict run=latest images='photos/*.jpg' phrases=phrases.txt      each line asked of each image
python -m coordvlm.predict run=latest phrases=asked.jsonl                           lines with "image" and "phrase"; or CSV
python -m coordvlm.predict run=outputs/train/<run> images=photos/ task=detect
python -m coordvlm.predict run=outputs/train/<run> images=photos/ task=count phrase="red dot" gif=true
python -m coordvlm.predict run=null model=qwen3vl_4b sequence=json_digits coords=qwen1000 task=ground images=a.jpg phrase="a cup"
                                                                                     an untouched base model
Writes predictions.jsonl (boxes or points in source pixels), overlays/, and errors.jsonl where an image could not be read.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordvlm.utils import launch
from coordvlm.utils.asked import Request, read_requests
from coordvlm.utils.cli import REFUSED, report_error, run_command
from coordvlm.utils.errors import ConfigError, CoordVLMError
from coordvlm.utils.overrides import quote_free_text
from coordvlm.utils.run_config import OF_TRAINING, UNTRAINED, base_arguments

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from coordvlm.build.predictor import Predictor
    from coordvlm.callbacks.answering import Summary
    from coordvlm.callbacks.counting_answers import CountSummary
    from coordvlm.utils.record import RunRecord

#: What is composed for ``run=null``.
BASE_CONFIG = "predict_base"
#: Groups and keys that decide nothing where no data are read and nothing is scored.
_IDLE = (*OF_TRAINING, "data", "metrics", "callbacks", "overfit", "base")
_TASKS = ("detect", "ground", "count")
#: Tasks that are told what to look for.
_BY_PHRASE = ("ground", "count")


def main(cfg: DictConfig) -> None:
    """Answer every request; results in ``paths.run_dir``."""
    from omegaconf import OmegaConf

    from coordvlm.utils.record import RunRecord

    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    requests = read_requests(cfg.images, phrase=cfg.phrase, phrases=cfg.phrases)
    with RunRecord(Path(cfg.paths.run_dir), command="predict", config=plain) as record:
        record.update(notes=cfg.notes)
        _predict(cfg, requests, record)


def _predict(cfg: DictConfig, requests: Sequence[Request], record: RunRecord) -> None:
    with record.time("import"):
        import torch

        from coordvlm.callbacks.answering import answer_all
        from coordvlm.callbacks.counting_answers import count_all
    if cfg.num_threads is not None:
        torch.set_num_threads(cfg.num_threads)
    with record.time("build"):
        predictor, who, source = _open(cfg)
        predictor.require(_asked(cfg, requests, predictor.task), who=who)
        _require_options(cfg, predictor.task, who)
    record.update(
        predicted_with=source, contract=predictor.model.contract.hash(), decode=predictor.settings,
        device={"device": str(predictor.device), "precision": predictor.precision},
    )
    how: dict[str, Any] = {
        "batch_size": None if cfg.batch_size == "auto" else cfg.batch_size, "overlays": cfg.overlays,
        "num_workers": None if cfg.num_workers == "auto" else cfg.num_workers,
    }
    summary: CountSummary | Summary
    with record.time("predict"):
        if predictor.task == "count":
            summary = count_all(predictor, requests, Path(cfg.paths.run_dir), gif=cfg.gif, **how)
        else:
            summary = answer_all(predictor, requests, Path(cfg.paths.run_dir), min_score=cfg.min_score, **how)
    record.update(counts=summary.counts())
    print(summary.sentence())
    if not summary.num_answered:
        raise CoordVLMError(f"none of {len(requests)} requests could be answered; the first: {summary.first_error}")


def _asked(cfg: DictConfig, requests: Sequence[Request], trained: str) -> str:
    """The task that was asked for: as said, else by whether there are phrases; a phrase means what the run was trained for."""
    said = cfg.task if cfg.run is None else cfg.asked_task
    if said is not None:
        return str(said)
    if requests[0].phrase is None:
        return "detect"
    return trained if trained in _BY_PHRASE else "ground"


def _require_options(cfg: DictConfig, task: str, who: str) -> None:
    """Refuse options that would have no effect."""
    if cfg.gif and task != "count":
        raise ConfigError(f"gif=true films a count, and {who} is for task={task}")
    if cfg.min_score and task == "count":
        raise ConfigError(f"min_score={cfg.min_score} is for boxes, and {who} counts: decode.stop_done decides where a count ends")


def _open(cfg: DictConfig) -> tuple[Predictor, str, dict[str, Any]]:
    """The predictor; what it is, in words; the same for the record."""
    from coordvlm.build.predictor import Predictor, open_run

    settings: dict[str, Any] = {"device": cfg.device, "precision": cfg.precision, "classes": tuple(cfg.classes)}
    if cfg.run is None:
        predictor = Predictor(cfg, checkpoint=None, budget=None, **settings)
        return predictor, f"task={predictor.task} as chosen", {"what": f"{cfg.model.name} (base model, untouched)"}
    predictor, ref = open_run(cfg.run, outputs=Path(cfg.paths.outputs), decode=cfg.decode, **settings)
    return predictor, f"run={ref.run_dir}", {"run": str(ref.run_dir), "checkpoint": str(ref.checkpoint_dir)}


def check(cfg: DictConfig) -> None:
    """Refused before anything is built."""
    launch.refuse_foreign_launcher()
    if cfg.run is None and "model" not in cfg:
        raise ConfigError(f"run=null needs a configuration with a model, such as -cn {BASE_CONFIG}")
    task = cfg.task if cfg.run is None else cfg.asked_task
    if task is not None and task not in _TASKS:
        raise ConfigError(f"task must be one of {', '.join(_TASKS)}, got {task!r}")
    asks = cfg.phrase is not None or cfg.phrases is not None
    if task == "detect" and asks:
        raise ConfigError("task=detect names every object and takes no phrase; leave out task=detect, or phrase= and phrases=")
    if task in _BY_PHRASE and not asks:
        does = "looks for" if task == "ground" else "counts"
        raise ConfigError(f'task={task} {does} what a phrase names: add phrase="..." or phrases=<file>')
    if cfg.run is None and task == "count":
        raise ConfigError(UNTRAINED)
    for key, least in (("batch_size", 1), ("num_workers", 0)):
        value = cfg[key]
        if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ConfigError(f"{key} must be auto or an integer of at least {least}, got {value!r}")
    if isinstance(cfg.min_score, bool) or not isinstance(cfg.min_score, int | float) or not math.isfinite(cfg.min_score):
        raise ConfigError(f"min_score must be a number, got {cfg.min_score!r}")
    for key in ("overlays", "gif"):
        if not isinstance(cfg[key], bool):
            raise ConfigError(f"{key} must be true or false, got {cfg[key]!r}")
    read_requests(cfg.images, phrase=cfg.phrase, phrases=cfg.phrases)


def arguments(argv: Sequence[str]) -> list[str]:
    """What Hydra cannot be told directly: ``out=`` is the folder of the run, ``task=`` no choice of a group beside a trained run, and a
    base model that is given a phrase is asked for it.

    Raises:
        ConfigError: the folder holds something already.
    """
    given = {a.partition("=")[0]: a.partition("=")[2] for a in argv if not a.startswith("-")}
    argv = base_arguments(argv, config=BASE_CONFIG, does="asks", idle=_IDLE)
    if BASE_CONFIG in argv and {"phrase", "phrases"} & set(given) and "task" not in given:
        argv = [*argv, "task=ground"]
    if BASE_CONFIG not in argv:  # a trained run brings its task; a group of that name would compose one
        argv = [f"asked_{a}" if a.startswith("task=") else a for a in argv]
    wanted = given.get("out", "null")
    if wanted == "null":
        return argv
    folder = Path(wanted.strip("\"'")).expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"out={wanted}: {folder} exists and is not an empty folder; nothing is written over")
    return [*argv, *quote_free_text([f"hydra.run.dir={folder}"], ["hydra.run.dir"])]


def cli(argv: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    try:
        argv = arguments(argv)
    except CoordVLMError as error:
        return report_error(error, REFUSED)
    return run_command("predict", main, check=check, about=__doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(cli(sys.argv[1:]))
