"""The end of a run: score a split, write what was found, draw the report, print the table."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import lightning
from rich.console import Console

from coordvlm.callbacks import phrase_findings
from coordvlm.callbacks.count_findings import write_count_findings
from coordvlm.callbacks.csv_log import read_curves
from coordvlm.callbacks.evaluation_writer import readout_table, write_evaluation
from coordvlm.callbacks.foveation_findings import write_foveation_findings
from coordvlm.callbacks.split_images import SplitImages as SplitImages
from coordvlm.callbacks.tracker import close_trackers
from coordvlm.contracts import ClipTruth, Contract, Evaluation, GroundTruth, PhraseTruth, PointTruth, Sample
from coordvlm.metrics.counting_tables import CountingTables
from coordvlm.metrics.looking import FoveationFindings
from coordvlm.reports.base_beside import BaseComparison, beside_table, comparison_to_json
from coordvlm.reports.run_report import RunSummary, write_run_report
from coordvlm.reports.summary import PhraseFindings
from coordvlm.reports.tables import metric_table, primary
from coordvlm.utils.errors import ConfigError
from coordvlm.utils.files import atomic_write_json
from coordvlm.utils.record import RunRecord


def evaluate_run(
    run_dir: Path,
    *,
    module: Any,
    trainer: lightning.Trainer,
    loader: Any,
    images: SplitImages,
    truth: GroundTruth,
    split: str,
    protocol: Mapping[str, Any],
    selected_on: str,
    prompt_text: Callable[[Sample], str],
    record: RunRecord,
) -> Evaluation:
    """Decode a split with the weights that are loaded and write metrics, predictions and replicates."""
    started = time.perf_counter()
    with record.time("evaluate"):
        trainer.test(module, dataloaders=loader, verbose=False)
    evaluation: Evaluation = module.evaluation
    seconds = sum(float(p.timing.get("seconds", 0.0)) for p in module.predictions)
    tokens = sum(float(p.timing.get("new_tokens", 0.0)) for p in module.predictions)
    count = max(len(module.predictions), 1)
    timing = {
        "evaluate_seconds": time.perf_counter() - started,
        "decode_seconds": seconds,
        "decode_images_per_second": count / max(seconds, 1e-9),
        "new_tokens_per_image": tokens / count,
    }
    sample = lru_cache(maxsize=1)(images.sample)  # prompt and hash of one image are asked for one after the other
    with record.time("write"):
        write_evaluation(
            run_dir,
            evaluation,
            module.predictions,
            truth,
            split=split,
            protocol=protocol,
            selected_on=selected_on,
            timing=timing,
            readouts=readout_table(module.readout_evaluations),
            seed=module.test_metrics[module.readout].seed,
            prompt=lambda i: prompt_text(sample(i)),
            sha1=images.sha1,
        )
    record.update(evaluation=timing)
    return evaluation


def write_report(
    run_dir: Path,
    *,
    record: RunRecord,
    contract: Contract,
    evaluation: Evaluation | None = None,
    module: Any = None,
    truth: GroundTruth | None = None,
    images: SplitImages | None = None,
    split: str = "",
    selected_on: str = "",
    protocol: Mapping[str, Any] | None = None,
    log: Path | None = None,
    base: BaseComparison | None = None,
    phrases: PhraseFindings | None = None,
    counting: CountingTables | None = None,
    foveation: FoveationFindings | None = None,
) -> Path:
    """Draw the page from what there is; what is missing is named on it."""
    summary = RunSummary(
        run_info=record.data,
        contract=contract,
        evaluation=evaluation,
        curves=read_curves(log or run_dir / "log.csv"),
        predictions=module.predictions if module is not None else (),
        truth=truth,
        load_image=images.load if images is not None else None,
        readouts=readout_table(module.readout_evaluations) if module is not None else {},
        readout=module.readout if module is not None else "",
        split=split,
        selected_on=selected_on,
        protocol="" if protocol is None else protocol["hash"],
        base=base,
        phrases=phrases,
        counting=counting,
        foveation=foveation,
    )
    return write_run_report(run_dir / "report.html", summary)


def print_result(
    evaluation: Evaluation, module: Any, report: Path, *, title: str, base: BaseComparison | None = None,
    phrases: PhraseFindings | None = None,
) -> None:
    """The metric table, what was found of the phrases, and where the report is."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    console.print(metric_table(evaluation.metrics, readout_table(module.readout_evaluations), title=title))
    for sentence in () if phrases is None else (*(c.sentence for c in phrases.controls.values()), phrases.offset.sentence):
        console.print(sentence, markup=False, highlight=False)
    if base is not None:
        console.print(beside_table(base))
    console.print(f"report: {report}", highlight=False, soft_wrap=True)


def score_and_report(
    run_dir: Path,
    *,
    experiment: Any,
    trainer: lightning.Trainer,
    loader: Any,
    asked: str,
    record: RunRecord,
    title: str,
    log: Path | None = None,
    selected_on: str = "val",
    compare: Callable[[Evaluation, Path], BaseComparison] | None = None,
    controls: int = 0,
) -> float:
    """What ``train`` and ``eval`` end with: score the loaded weights, close the record, draw the page, print the table.

    Args:
        experiment: a ``build.Experiment``. loader: of the images that ``experiment.truth`` holds.
        asked: the split's name as asked for (``experiment.split`` says what stands in for it).
        log: the CSV log to draw curves from; default: this run's.
        selected_on: the data that the checkpoint was chosen on; "" for a model that was not chosen.
        compare: sets this evaluation, written to a folder, beside the base that was given.
        controls: phrases on which the controls of grounding are run, at most; 0: none. ``decode_along`` is told the same.
    Returns:
        What the task is judged by: AP, or Acc@0.5.
    """
    module, contract = experiment.module, experiment.model.contract
    images = SplitImages(experiment.source.split(asked), experiment.cfg.model.max_source_pixels)
    scored: dict[str, Any] = {
        "module": module,
        "truth": experiment.truth,
        "images": images,
        "split": experiment.split,
        "selected_on": selected_on,
        "protocol": experiment.protocol,
        "record": record,
    }
    evaluation = evaluate_run(run_dir, trainer=trainer, loader=loader, prompt_text=experiment.prompt_of, **scored)
    phrases = _look_into(run_dir, experiment, trainer, images, asked, controls, record)
    counting = None
    if isinstance(experiment.truth, PointTruth):
        with record.time("findings"):
            counting = write_count_findings(
                run_dir, experiment.truth, module.predictions, evaluation, log=log or run_dir / "log.csv", record=record.data
            )
    foveation = None
    if isinstance(experiment.truth, ClipTruth):
        with record.time("findings"):
            foveation = write_foveation_findings(run_dir, experiment, asked=asked)
    close_trackers(trainer, ok=True)  # a failure above has closed them already
    record.update(skipped_images=dict(experiment.data.unreadable()))
    base = compare(evaluation, run_dir) if compare is not None else None
    if base is not None:
        atomic_write_json(run_dir / "base.json", comparison_to_json(base))
        record.update(base={"folder": base.folder, "sentence": base.sentence})
    record.close("finished")
    report = write_report(
        run_dir, contract=contract, evaluation=evaluation, log=log, base=base, phrases=phrases, counting=counting, foveation=foveation,
        **scored,
    )
    print_result(evaluation, module, report, title=title, base=base, phrases=phrases)
    return float(evaluation.metrics[primary(evaluation.metrics)].value)


def _look_into(
    run_dir: Path, experiment: Any, trainer: lightning.Trainer, images: SplitImages, asked: str, controls: int, record: RunRecord
) -> PhraseFindings | None:
    """What is looked into when phrases were evaluated; None for other truths."""
    if not isinstance(experiment.truth, PhraseTruth):
        return None
    with record.time("findings"):
        found = phrase_findings.write_findings(run_dir, experiment, phrase_findings.kinds_of(images, experiment.truth.image_ids.tolist()))
    if not controls:
        return found
    with record.time("controls"):
        done = phrase_findings.run_controls(experiment, trainer, asked=asked, samples=controls)
    phrase_findings.write_controls(run_dir, done)
    return replace(found, controls=done)


def control_phrases(on: bool, samples: Any) -> int:
    """Phrases of each control: ``control_samples`` where ``controls`` is on, else 0.

    Raises:
        ConfigError: not an integer of at least 1.
    """
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise ConfigError(f"control_samples must be an integer of at least 1, got {samples!r}; controls=false leaves the controls out")
    return samples if on else 0


def decode_along(trainer: lightning.Trainer, *, experiment: Any, loader: Any, asked: str, controls: int = 0) -> None:
    """What a process that writes nothing does meanwhile: the same decodes as ``score_and_report``."""
    trainer.test(experiment.module, dataloaders=loader, verbose=False)
    if controls and isinstance(experiment.truth, PhraseTruth):
        phrase_findings.run_controls(experiment, trainer, asked=asked, samples=controls)
