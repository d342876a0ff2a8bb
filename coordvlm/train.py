"""Train a model to say where things are, score the best checkpoint on held-out images, write a report.

python -m coordvlm.train                                   the tiny default on synthetic shapes
python -m coordvlm.train loss=ce|coordexp|hybrid           which way of teaching
python -m coordvlm.train data=coco data.root=/path/to/coco your own COCO JSON
python -m coordvlm.train debug=fast|overfit|inspect        try it, overfit one batch, look at the first batch
python -m coordvlm.train base=outputs/eval/<run>           and say how it differs from an untouched model: see coordvlm.eval run=null
python -m coordvlm.train resume=latest                     go on after an interruption
python -m coordvlm.train init=outputs/train/<run>          start from the weights of another run: another task, prompt or format
python -m coordvlm.train --multirun loss=ce,hybrid seed=0,1
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordvlm.utils import launch
from coordvlm.utils.cli import REFUSED, report_error, run_command
from coordvlm.utils.devices import settle
from coordvlm.utils.errors import CoordVLMError, DataError
from coordvlm.utils.resume_arguments import resumed_arguments

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from coordvlm.build import Experiment
    from coordvlm.contracts import Batch
    from coordvlm.utils.record import RunRecord
    from coordvlm.utils.sweep import JobFailure


def main(cfg: DictConfig) -> float | int | JobFailure | None:
    """One run in ``paths.run_dir``; returns AP, or Acc@0.5 of phrases."""
    from omegaconf import OmegaConf

    from coordvlm.utils.files import atomic_write_text
    from coordvlm.utils.overrides import resolved
    from coordvlm.utils.record import RunRecord
    from coordvlm.utils.seeds import choose_seed

    run_dir = Path(cfg.paths.run_dir)
    if cfg.seed is None:  # kept, so that eval and resume build the same model and data
        cfg.seed = choose_seed(None)
        atomic_write_text(run_dir / "config.yaml", OmegaConf.to_yaml(resolved(OmegaConf.to_container(cfg, resolve=True))))
    choose_seed(cfg.seed)
    if not launch.is_rank() and not cfg.inspect and (num := settle(cfg.trainer).num_processes) > 1:
        return launch.run_ranks("coordvlm.train", cfg, num)
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    with RunRecord(run_dir, command="train", config=plain) as record:
        record.update(seed=cfg.seed, notes=cfg.notes, **choices())
        return _train(cfg, run_dir, record)


def check(cfg: DictConfig) -> None:
    """Refused before anything is built: devices that are not there, unknown strategies and precisions."""
    launch.refuse_foreign_launcher()
    settle(cfg.trainer)
    if cfg.base is not None:
        from coordvlm.analysis.base import open_base

        open_base(cfg.base, outputs=cfg.paths.outputs)
    if cfg.init is not None and cfg.resume is None:  # what is resumed has been started from it
        from coordvlm.utils.runs import resolve_run

        resolve_run(cfg.init, outputs=Path(cfg.paths.outputs))


def choices() -> dict[str, Any]:
    """What was chosen on the command line, for the record."""
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    names = ("experiment", "loss", "model", "adapter", "data", "task", "schedule", "sequence", "coords", "debug")
    chosen = hydra.runtime.choices
    folder = next((s.path for s in hydra.runtime.config_sources if s.provider == "command-line"), None)
    config = {"name": hydra.job.config_name, "folder": folder}
    return {"overrides": list(hydra.overrides.task), "choices": {n: chosen[n] for n in names if chosen.get(n)}, "config_file": config}


def _train(cfg: DictConfig, run_dir: Path, record: RunRecord) -> float | None:
    with record.time("import"):
        import torch

        from coordvlm import build
        from coordvlm.utils.seeds import seed_everything
        from coordvlm.utils.targets import validate_targets

    validate_targets(cfg, build.SUPPLIED)
    if cfg.num_threads is not None:
        torch.set_num_threads(cfg.num_threads)
    with launch.shared_fate(), record.time("build"):
        seed_everything(cfg.seed)
        experiment = build.build_experiment(cfg)
        trainer = build.build_trainer(cfg, run_dir, experiment.model.contract)
    try:
        with launch.shared_fate():
            return _run(cfg, experiment, trainer, run_dir, record)
    except BaseException as error:
        _report_unfinished(error, experiment, run_dir, record)
        raise


def _run(cfg: DictConfig, experiment: Experiment, trainer: Any, run_dir: Path, record: RunRecord) -> float | None:
    from coordvlm.analysis.base import open_base
    from coordvlm.callbacks import finish
    from coordvlm.models.backbone import Backbone
    from coordvlm.modules.trains import what_trains
    from coordvlm.reports.trains import as_text

    controls = finish.control_phrases(cfg.controls, cfg.control_samples)
    backbone, source = experiment.model.backbone, experiment.source
    counts, trains = _data_counts(experiment), what_trains(backbone, experiment.module.optim, precision=settle(cfg.trainer).precision)
    record.update(
        contract=experiment.model.contract.hash(),
        protocol=experiment.protocol["hash"],
        data=dict(source.digests()),
        data_counts=counts,
        dropped={name: rest for name, found in counts.items() if (rest := {k: n for k, n in found.items() if k != "images"})},
        parameters={"all": sum(line["parameters"] for line in trains), "trained": sum(line["trained"] for line in trains)},
        trains=trains,
        decode=experiment.decode,
        data_notes=list(getattr(source, "notes", ())),
    )
    if (base := open_base(cfg.base, outputs=cfg.paths.outputs)) is not None:
        base.require(experiment.protocol, seed=cfg.metrics.seed, num_replicates=cfg.metrics.num_replicates)
    batch = _first_batch(cfg, experiment, run_dir, record)
    if cfg.inspect:
        return None
    if record.writes:
        print(as_text(trains))
    if isinstance(experiment.model.backbone, Backbone):  # the cost model knows the Qwen families alone
        _plan_memory(cfg, experiment, batch, trainer, record)
    _fit(cfg, experiment, trainer, run_dir, record)
    best = _load_best(run_dir, experiment)
    record.update(
        selected={"checkpoint": best, "on": "val", "images": len(experiment.val_truth.image_ids), "by": cfg.callbacks.checkpoint.monitor}
    )
    if not record.writes:  # rank 0 writes down what all ranks decode
        finish.decode_along(trainer, experiment=experiment, loader=experiment.data.test_dataloader(), asked="test", controls=controls)
        return None
    return finish.score_and_report(
        run_dir,
        experiment=experiment,
        trainer=trainer,
        loader=experiment.data.test_dataloader(),
        asked="test",
        record=record,
        title=experiment.title,
        compare=None if base is None else base.compare,
        controls=controls,
    )


def _data_counts(experiment: Experiment) -> dict[str, Any]:
    """Images per split, and what was left out of the targets and why."""
    counts: dict[str, Any] = {}
    for name in ("train", "val", "test"):
        split = experiment.source.split(name)
        counts[name] = {"images": len(split), **experiment.source.dropped(name)}
    return counts


def _plan_memory(cfg: DictConfig, experiment: Experiment, batch: Batch, trainer: Any, record: RunRecord) -> None:
    """Estimate memory before step 0, say so, and settle ``model.gradient_checkpointing=auto``."""
    from dataclasses import asdict

    from coordvlm.analysis.cost import device_memory, plan
    from coordvlm.models.checkpointing import parse_checkpointing
    from coordvlm.utils.devices import settle

    devices = settle(cfg.trainer)
    found = plan(
        experiment.model.backbone,
        batch,
        precision=devices.precision,
        checkpointing=parse_checkpointing(cfg.model.gradient_checkpointing),
        decode_batch=cfg.data.eval_batch_size,
        max_new_tokens=experiment.decode["max_new_tokens"],
        muon=cfg.optim.muon_lr is not None,
        available=device_memory(trainer.strategy.root_device),
        shards=trainer.world_size if devices.strategy == "fsdp" else 1,
    )
    experiment.model.backbone.set_checkpointing(found.checkpoint_every)
    if record.writes:
        print(found.text)
    record.update(memory_estimate={**asdict(found.estimate), "checkpoint_every": found.checkpoint_every, "text": found.text})


def _first_batch(cfg: DictConfig, experiment: Experiment, run_dir: Path, record: RunRecord) -> Batch:
    """The first training batch, asserted and kept as a page; made in this process, so that its errors need no worker."""
    from rich.console import Console

    from coordvlm.callbacks import finish
    from coordvlm.reports.inspect_page import render_batch_text

    images = finish.SplitImages(experiment.source.split("train"), cfg.model.max_source_pixels)
    model = experiment.model
    samples, encoded = {}, []
    for sample in experiment.data.first_samples():
        try:
            encoded.append(model.encoder.encode(sample, epoch=0))
        except DataError:
            if cfg.data.on_error != "skip":
                raise
        else:
            samples[sample.id] = sample
    if not encoded:
        raise DataError("no sample of the first training batch can be read", where="train split")
    batch = model.encoder.collate(encoded)
    if not record.writes:
        return batch
    with record.time("first_batch"):
        pages, checks = experiment.inspect(run_dir / "first_batch.html", batch, samples, images.frame)
    if cfg.inspect:
        render_batch_text(pages, Console(), checks=checks)
        print(f"page: {run_dir / 'first_batch.html'}")
    return batch


def _fit(cfg: DictConfig, experiment: Experiment, trainer: Any, run_dir: Path, record: RunRecord) -> None:
    from coordvlm import build
    from coordvlm.callbacks.checkpoint import TRAINER, FolderCheckpoint, load_trained, steps_done
    from coordvlm.utils.runs import is_checkpoint, resolve_run
    from coordvlm.utils.seeds import seed_rank

    ckpt = None
    if cfg.init is not None and cfg.resume is None:  # what is resumed has been started from it
        ref = resolve_run(cfg.init, outputs=Path(cfg.paths.outputs))
        load_trained(ref.checkpoint_dir, experiment.model.backbone, experiment.model.contract, warm=True)
        record.update(started_from=str(ref.checkpoint_dir))
    if cfg.resume is not None:
        ref = resolve_run(cfg.resume, outputs=Path(cfg.paths.outputs), prefer=("last",))
        load_trained(ref.checkpoint_dir, experiment.model.backbone, experiment.model.contract)
        ckpt = ref.checkpoint_dir / TRAINER
        done = steps_done(ckpt)
        best = ref.run_dir / "checkpoints" / "best"
        build.callback(trainer, FolderCheckpoint).inherit(last=ref.checkpoint_dir, **({"best": best} if is_checkpoint(best) else {}))
        if (log := build.csv_log(trainer)) is not None:
            log.continue_from(ref.run_dir / "log.csv", done)
        record.update(resumed_from=str(ref.checkpoint_dir))
    seed_rank(cfg.seed, trainer.global_rank)
    try:
        with record.time("train"):
            trainer.fit(experiment.module, datamodule=experiment.data, ckpt_path=ckpt, weights_only=True)
    finally:  # also of a run that fails: gradients say why
        record.update(**build.findings(trainer))
    record.update(steps=trainer.global_step, skipped_images=dict(experiment.data.unreadable()))


def _load_best(run_dir: Path, experiment: Experiment) -> str:
    """Load the best checkpoint (the last one when nothing was validated); returns its name."""
    from coordvlm.callbacks.checkpoint import load_trained
    from coordvlm.utils.runs import resolve_run

    folder = resolve_run(run_dir).checkpoint_dir
    load_trained(folder, experiment.model.backbone, experiment.model.contract)
    return folder.name


def _report_unfinished(error: BaseException, experiment: Experiment, run_dir: Path, record: RunRecord) -> None:
    """A failed or interrupted run says so on its page; a second failure here must not hide the first."""
    if not record.writes:
        return
    import logging

    from coordvlm.callbacks import finish
    from coordvlm.utils.record import came_from_interrupt
    from coordvlm.utils.runs import find_checkpoint

    interrupted = came_from_interrupt(error)
    try:
        record.close("interrupted" if interrupted else "failed", error)
        finish.write_report(run_dir, record=record, contract=experiment.model.contract)
    except Exception:
        logging.getLogger(__name__).exception("the report of the unfinished run could not be written")
    if interrupted and find_checkpoint(run_dir):
        print(f"interrupted; go on with: python -m coordvlm.train resume={run_dir}", file=sys.stderr)


def cli(argv: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    if launch.is_rank():
        argv = []  # the supervisor has read it
    try:
        argv = resumed_arguments(argv)
    except CoordVLMError as error:
        return report_error(error, REFUSED)
    return run_command("train", main, check=check, about=__doc__, argv=argv)


if __name__ == "__main__":
    sys.exit(cli(sys.argv[1:]))
