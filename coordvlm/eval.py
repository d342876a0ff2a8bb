"""Score a checkpoint on a split, with the contract it was trained with.

python -m coordvlm.eval run=latest
python -m coordvlm.eval run=outputs/train/<run> split=val decode.grammar=true
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordvlm.utils.cli import run_command

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(cfg: DictConfig) -> float:
    """One evaluation in ``paths.run_dir``; returns AP."""
    from omegaconf import OmegaConf

    from coordvlm.utils.record import RunRecord
    from coordvlm.utils.runs import resolve_run

    run_dir = Path(cfg.paths.run_dir)
    ref = resolve_run(cfg.run, outputs=Path(cfg.paths.outputs))
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    with RunRecord(run_dir, command="eval", config=plain) as record:
        trained = RunRecord.read(ref.run_dir)
        record.update(
            evaluated={"run": str(ref.run_dir), "checkpoint": str(ref.checkpoint_dir), "status": trained["status"]},
            notes=cfg.notes,
            **{k: trained[k] for k in ("choices", "seed", "contract", "data_counts", "data", "dropped") if k in trained},
        )
        return _evaluate(cfg, merged_config(cfg, ref.run_dir), ref, trained, run_dir, record)


def merged_config(cfg: DictConfig, trained_run: Path) -> DictConfig:
    """The trained run's config with this command's settings on top; null means: as trained."""
    from omegaconf import OmegaConf

    from coordvlm.utils.errors import ConfigError

    saved = trained_run / "config.yaml"
    if not saved.is_file():
        raise ConfigError(f"{trained_run} has no config.yaml, so the model cannot be built again")
    config = OmegaConf.load(saved)
    for group in ("decode", "data", "metrics"):
        for key, value in cfg[group].items():
            if value is not None:
                OmegaConf.update(config, f"{group}.{key}", value)
    if cfg.data.root is not None and OmegaConf.select(config, "data.source.root") is not None:
        OmegaConf.update(config, "data.source.root", cfg.data.root)
    return config  # type: ignore[return-value]


def _evaluate(cfg: DictConfig, config: DictConfig, ref: Any, trained: dict[str, Any], run_dir: Path, record: Any) -> float:
    with record.time("import"):
        import torch

        from coordvlm import build
        from coordvlm.callbacks import finish
        from coordvlm.callbacks.checkpoint import load_trained
        from coordvlm.utils.errors import ConfigError
        from coordvlm.utils.seeds import seed_everything

    if cfg.split not in ("test", "val"):
        raise ConfigError(f"split must be test or val, got {cfg.split!r}")
    if cfg.num_threads is not None:
        torch.set_num_threads(cfg.num_threads)
    with record.time("build"):
        seed_everything(config.seed)
        budget = trained.get("decode", {}).get("max_new_tokens")
        experiment = build.build_experiment(config, split=cfg.split, budget=budget)
        trainer = build.build_trainer(config, run_dir, experiment.model.contract, logged=False)
        load_trained(ref.checkpoint_dir, experiment.model.backbone, experiment.model.contract)
    record.update(protocol=experiment.protocol["hash"], decode=experiment.decode)
    return finish.score_and_report(
        run_dir,
        experiment=experiment,
        trainer=trainer,
        loader=experiment.data.eval_dataloader(cfg.split),
        asked=cfg.split,
        record=record,
        title=f"{experiment.title}, {ref.run_dir.name}",
        log=ref.run_dir / "log.csv",
    )


if __name__ == "__main__":
    sys.exit(run_command("eval", main, about=__doc__))
