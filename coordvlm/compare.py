"""Compare runs: which recipe is better, by how much, and how sure that is.

python -m coordvlm.compare runs=outputs/train/multirun/<sweep>         every pair of recipes, seeds are repetitions
python -m coordvlm.compare runs='outputs/train/2026-*' baseline=ce     all against one
python -m coordvlm.compare runs=<folder> metric=px_median readout=local only='loss=ce,hybrid'

Writes compare.html, compare.md and CSV files, of clips also foveation.json. Runs that were evaluated differently are refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordvlm.utils.cli import run_command
from coordvlm.utils.overrides import quote_free_text

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from coordvlm.analysis.compare import Question
    from coordvlm.analysis.runs import Run
    from coordvlm.contracts import GroundTruth
    from coordvlm.reports.compare_data import Comparison

#: Keys whose value is text or a path; ``runs=[a,b]`` is a list all the same.
_TEXT = ("runs", "only", "baseline", "notes")


def main(cfg: DictConfig) -> None:
    """One comparison in ``paths.run_dir``."""
    from omegaconf import OmegaConf

    from coordvlm.utils.record import RunRecord

    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    folder = Path(cfg.paths.run_dir)
    with RunRecord(folder, command="compare", config=plain) as record:
        record.update(notes=cfg.notes)
        _compare(plain, folder, record)


def _compare(cfg: dict[str, Any], folder: Path, record: Any) -> None:
    with record.time("import"):
        from coordvlm.analysis.answers import read_lines
        from coordvlm.analysis.compare import compare
        from coordvlm.analysis.groups import require_one_protocol, restrict
        from coordvlm.analysis.runs import find_folders, read_runs
        from coordvlm.reports.compare_files import write_comparison_files
        from coordvlm.reports.compare_page import write_comparison
    question = _question(cfg)
    with record.time("read"):
        runs, left_out = read_runs(find_folders(cfg["runs"], outputs=Path(cfg["paths"]["outputs"])))
        runs = restrict(runs, cfg["only"]) if runs else runs
        require_one_protocol(runs, reread=cfg["readout"] is not None)
    read: Callable[[Run], Any] = lambda run: read_lines(run.predictions_file)  # noqa: E731
    source = _Source()
    if cfg["readout"] is not None:
        with record.time("read again"):
            runs, read = _reread(runs, cfg["readout"], source)
    with record.time("compare"):
        found = compare(runs, left_out, question, read)
        found = replace(found, command=record.data["command_line"])
    with record.time("images"):
        found = _with_images(found, runs, source)
    with record.time("write"):
        page = write_comparison(folder / "compare.html", found)
        write_comparison_files(folder, found)
    record.update(compared=[run.folder for run in found.runs], left_out=dict(found.left_out))
    _print(found, page)


def _question(cfg: dict[str, Any]) -> Question:
    from coordvlm.analysis.compare import Question

    return Question(
        **{key: cfg[key] for key in ("metric", "metrics", "verdict_metrics", "baseline", "ignore", "coverage", "power")},
        level_shares=cfg["levels"], num_snapshots=cfg["snapshots"], num_pictures=cfg["pictures"],
    )


class _Source:
    """The data source of the runs, built once and only if something needs it."""

    def __init__(self) -> None:
        self._built: Any = None
        self._config: Any = None

    def _load(self, run: Run) -> None:
        if self._built is None:
            from omegaconf import OmegaConf

            from coordvlm import build

            self._config = OmegaConf.load(run.trained / "config.yaml")
            self._built = build.instantiate(self._config.data.source)

    def truth(self, run: Run) -> GroundTruth:
        """Of the images the run was evaluated on."""
        self._load(run)
        truth: GroundTruth = self._built.truth(run.protocol["split"])
        return truth.subset(run.image_ids.tolist())

    def images(self, run: Run) -> Any:
        """Image id -> displayed frame; a ``DataError`` if the data is no longer what the run was evaluated on."""
        from coordvlm.callbacks.split_images import SplitImages
        from coordvlm.utils.errors import DataError

        if (digest := self.truth(run).digest()) != run.protocol["data"]:
            rule = f"must be the data the run was evaluated on ({run.protocol['data']})"
            raise DataError(rule, where=f"data of {run.folder}", value=digest)
        return SplitImages(self._built.split(run.protocol["split"]), self._config.model.max_source_pixels)


def _reread(runs: Sequence[Run], readout: str, source: _Source) -> tuple[list[Run], Callable[[Run], Any]]:
    """Every run by one read-out, and a reader of the new predictions."""
    from coordvlm.analysis.answers import read_lines
    from coordvlm.analysis.rescore import rescore

    out, kept = [], {}
    for run in runs:
        names = ("backend", "num_replicates", "seed")
        settings = {key: run.config[f"metrics.{key}"] for key in names if f"metrics.{key}" in run.config}
        changed, lines = rescore(run, read_lines(run.predictions_file), source.truth(runs[0]), readout, **settings)
        out.append(changed)
        kept[run.folder] = lines
    return out, lambda run: kept[run.folder]


def _with_images(found: Comparison, runs: Sequence[Run], source: _Source) -> Comparison:
    """Images of the data the runs were evaluated on; where they cannot be had, the reason."""
    from coordvlm.utils.errors import user_error

    if not found.disagreements:
        return found
    try:
        images = source.images(runs[0])
        images.load(found.disagreements[0].image_id)
    except Exception as error:  # Hydra wraps what a constructor raises
        known = user_error(error) or (error if isinstance(error, OSError | KeyError | ValueError) else None)
        if known is None:
            raise
        return replace(found, no_image=f"The images cannot be had here: {known}")
    return replace(found, load_image=images.load)


def _print(found: Comparison, page: Path) -> None:
    from coordvlm.reports.compare_sections import by_weight
    from coordvlm.reports.compare_words import lead, verdict

    for look in found.foveation.verdicts if found.foveation is not None else ():
        print(look.words)
    if lead(found):
        print(lead(found))
    for pair in by_weight(found):
        print(verdict(found, pair))
    for note in found.notes:
        print(f"note: {note}")
    for folder, reason in found.left_out:
        print(f"left out: {folder}: {reason.removeprefix(f'{folder}: ')}")
    print(f"report: {page}")


def cli(argv: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    lists = [a for a in argv if a.partition("=")[2].startswith("[")]
    quoted = [a if a in lists else quote_free_text([a], _TEXT)[0] for a in argv]
    return run_command("compare", main, about=__doc__, argv=quoted)


if __name__ == "__main__":
    sys.exit(cli(sys.argv[1:]))
