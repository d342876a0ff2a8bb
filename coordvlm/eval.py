"""Score a checkpoint on a split, with the contract it was trained with; or a base model as it is.

python -m coordvlm.eval run=latest
python -m coordvlm.eval run=outputs/train/<run> split=val decode.grammar=true
python -m coordvlm.eval run=null model=qwen3vl_4b sequence=json_digits coords=qwen1000 data=coco
                                                           an untouched base model, under the same protocol
python -m coordvlm.eval run=latest base=outputs/eval/<run> the difference to another evaluation, with its interval
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordvlm.utils import launch
from coordvlm.utils.cli import REFUSED, report_error, run_command
from coordvlm.utils.devices import settle
from coordvlm.utils.errors import ConfigError, CoordVLMError
from coordvlm.utils.run_config import OF_THE_RUN, UNTRAINED, base_arguments, require_setting, saved_config

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from coordvlm.utils.record import RunRecord
    from coordvlm.utils.sweep import JobFailure

#: What is composed for ``run=null``.
BASE_CONFIG = "eval_base"
UNTOUCHED = "base model, untouched"


@dataclass(frozen=True)
class Scored:
    """What is evaluated.

    Args:
        name: in words. checkpoint: its folder; None: nothing is loaded into the base model.
        budget: new tokens per image that the run had measured. log: the CSV log of its training. selected_on: see ``metrics.json``.
    """

    name: str
    checkpoint: Path | None = None
    budget: int | None = None
    log: Path | None = None
    selected_on: str = ""


def main(cfg: DictConfig) -> float | int | JobFailure | None:
    """One evaluation in ``paths.run_dir``; returns AP, or Acc@0.5 of phrases."""
    from omegaconf import OmegaConf

    from coordvlm.utils.record import RunRecord
    from coordvlm.utils.runs import resolve_run

    run_dir = Path(cfg.paths.run_dir)
    ref = None if cfg.run is None else resolve_run(cfg.run, outputs=Path(cfg.paths.outputs))
    config = cfg if ref is None else merged_config(cfg, ref.run_dir)
    if not launch.is_rank() and (num := settle(config.trainer).num_processes) > 1:
        return launch.run_ranks("coordvlm.eval", cfg, num)
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    with launch.shared_fate(), RunRecord(run_dir, command="eval", config=plain) as record:
        record.update(notes=cfg.notes)
        if ref is None:
            record.update(evaluated={"what": UNTOUCHED}, seed=cfg.seed, choices=_choices())
            return _evaluate(cfg, config, Scored(f"{cfg.model.name} ({UNTOUCHED})"), run_dir, record)
        trained = RunRecord.read(ref.run_dir)
        record.update(
            evaluated={"run": str(ref.run_dir), "checkpoint": str(ref.checkpoint_dir), "status": trained["status"]},
            **{k: trained[k] for k in ("choices", "seed", "contract", "data_counts", "data", "dropped") if k in trained},
        )
        budget = trained.get("decode", {}).get("max_new_tokens")
        scored = Scored(ref.run_dir.name, ref.checkpoint_dir, budget, ref.run_dir / "log.csv", "val")
        return _evaluate(cfg, config, scored, run_dir, record)


def check(cfg: DictConfig) -> None:
    """Refused before anything is built."""
    launch.refuse_foreign_launcher()
    if not isinstance(cfg.split, str) or cfg.split == "train":
        raise ConfigError(f"split must be test or val, got {cfg.split!r}; some data have further ones to evaluate (RefCOCO: testA, testB)")
    if cfg.run is None and "model" not in cfg:
        raise ConfigError(f"run=null needs a configuration with a model, such as -cn {BASE_CONFIG}")
    if cfg.run is None and cfg.get("task") == "count":
        raise ConfigError(UNTRAINED)
    if cfg.base is not None:
        from coordvlm.analysis.base import open_base

        open_base(cfg.base, outputs=cfg.paths.outputs)


def _choices() -> dict[str, str]:
    """What was chosen on the command line, for the record."""
    from hydra.core.hydra_config import HydraConfig

    chosen = HydraConfig.get().runtime.choices
    return {n: chosen[n] for n in ("experiment", "model", "data", "task", "sequence", "coords", "debug") if chosen.get(n)}


def merged_config(cfg: DictConfig, trained_run: Path) -> DictConfig:
    """The trained run's config with this command's settings on top; null means: as trained."""
    from omegaconf import OmegaConf

    config = saved_config(trained_run)
    for group in ("decode", "data", "metrics", "trainer"):
        for key, value in cfg[group].items():
            if value is not None:
                require_setting(config, group, str(key))
                OmegaConf.update(config, f"{group}.{key}", value)
    OmegaConf.update(config, "augment", None, force_add=True)  # of training samples, whose files may be gone
    if cfg.data.root is not None and OmegaConf.select(config, "data.source.root") is not None:
        OmegaConf.update(config, "data.source.root", cfg.data.root)
    return config


def _evaluate(cfg: DictConfig, config: DictConfig, scored: Scored, run_dir: Path, record: RunRecord) -> float | None:
    """Build what ``config`` says, load the checkpoint if there is one, score it."""
    with record.time("import"):
        import torch

        from coordvlm import build
        from coordvlm.analysis.base import open_base
        from coordvlm.callbacks import finish
        from coordvlm.callbacks.checkpoint import load_trained
        from coordvlm.utils.devices import settle
        from coordvlm.utils.seeds import choose_seed, seed_everything
        from coordvlm.utils.targets import validate_targets

    if (num := settle(config.trainer).num_processes) > 1:
        logging.getLogger(__name__).info("eval runs in one process, on the first of these %d devices", num)
    if scored.checkpoint is None:
        validate_targets(config, build.SUPPLIED)
    if cfg.num_threads is not None:
        torch.set_num_threads(cfg.num_threads)
    with record.time("build"):
        seed_everything(choose_seed(config.seed))
        experiment = build.build_experiment(config, split=cfg.split, budget=scored.budget)
        trainer = build.build_trainer(config, run_dir, experiment.model.contract, logged=False)
        if scored.checkpoint is not None:
            load_trained(scored.checkpoint, experiment.model.backbone, experiment.model.contract)
    experiment.data.trainer = trainer  # says which share of the images is this process's
    controls = finish.control_phrases(cfg.controls, cfg.control_samples)
    if not record.writes:  # rank 0 writes down what all ranks decode
        loader = experiment.data.eval_dataloader(cfg.split)
        finish.decode_along(trainer, experiment=experiment, loader=loader, asked=cfg.split, controls=controls)
        return None
    record.update(protocol=experiment.protocol["hash"], decode=experiment.decode)
    if scored.checkpoint is None:
        record.update(contract=experiment.model.contract.hash(), data=dict(experiment.source.digests()))
        if experiment.model.vocab.num_bins and config.model.rows.init != "existing":
            native = experiment.model.loaded
            logging.getLogger(__name__).warning(
                "an untouched model has never seen coordinate tokens, so sequence=%s scores nothing; %s writes sequence=%s coords=%s",
                experiment.model.contract.format, native.source, native.native_sequence, native.native_coords,
            )
    base = open_base(cfg.base, outputs=cfg.paths.outputs)
    if base is not None:
        base.require(experiment.protocol, seed=config.metrics.seed, num_replicates=config.metrics.num_replicates)
    return finish.score_and_report(
        run_dir,
        experiment=experiment,
        trainer=trainer,
        loader=experiment.data.eval_dataloader(cfg.split),
        asked=cfg.split,
        record=record,
        title=f"{experiment.title}, {scored.name}",
        log=scored.log,
        selected_on=scored.selected_on,
        compare=None if base is None else base.compare,
        controls=controls,
    )


def cli(argv: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    try:
        if launch.is_rank():
            argv = []  # the supervisor has read it
        argv = base_arguments(argv, config=BASE_CONFIG, does="scores", of_the_run=(*OF_THE_RUN, "task")) if argv else []
    except CoordVLMError as error:
        return report_error(error, REFUSED)
    return run_command("eval", main, check=check, about=__doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(cli(sys.argv[1:]))
