"""Measure this machine, and write what was found into a run folder.

python -m coordvlm.bench case=input                       images and annotations to batches, on one core
python -m coordvlm.bench case=input input.num_images=32 input.passes=3
python -m coordvlm.bench case=foveated data=grid_symbols    training steps of the foveated model with deep and with shallow queries
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordvlm.utils.cli import run_command

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from coordvlm.analysis.bench_foveated import StepTime
    from coordvlm.analysis.bench_input import InputSpeed, Spread

CASES = ("input", "foveated")


def check(cfg: DictConfig) -> None:
    """Refuse what no benchmark is named for."""
    from coordvlm.utils.errors import ConfigError
    from coordvlm.utils.overrides import hint, nearest

    if cfg.case not in CASES:
        raise ConfigError(f"case must be one of {', '.join(CASES)}, got {cfg.case!r}{hint(nearest(str(cfg.case), CASES))}")
    if (cfg.case == "foveated") != (cfg.task == "video"):
        right = "data=grid_symbols" if cfg.case == "foveated" else "data=shapes"
        raise ConfigError(f"case={cfg.case} does not measure task={cfg.task}: add {right}")
    if not isinstance(cfg.foveated.warmup, int) or cfg.foveated.warmup < 0:
        raise ConfigError(f"foveated.warmup must be an integer of at least 0, got {cfg.foveated.warmup!r}")
    if not isinstance(cfg.foveated.steps, int) or cfg.foveated.steps < 1:
        raise ConfigError(f"foveated.steps must be an integer of at least 1, got {cfg.foveated.steps!r}")
    for key in ("num_images", "num_objects", "batch_size", "passes"):
        if not isinstance(cfg.input[key], int) or cfg.input[key] < 1:
            raise ConfigError(f"input.{key} must be an integer of at least 1, got {cfg.input[key]!r}")
    if len(cfg.input.size) != 2 or min(cfg.input.size) < 64:
        raise ConfigError(f"input.size must be a width and a height of at least 64 px, got {list(cfg.input.size)}")


def main(cfg: DictConfig) -> float:
    """One benchmark in ``paths.run_dir``; returns its headline figure."""
    from omegaconf import OmegaConf

    from coordvlm.utils.record import RunRecord

    run_dir = Path(cfg.paths.run_dir)
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    with RunRecord(run_dir, command="bench", config=plain) as record:
        record.update(notes=cfg.notes)
        return {"input": _input, "foveated": _foveated}[cfg.case](cfg, run_dir, record)


def _input(cfg: DictConfig, run_dir: Path, record: Any) -> float:
    """Images per second of one core for the slowest resize rule: of this process's own time, whatever else the machine does."""
    import tempfile

    with record.time("import"):
        import torch

        from coordvlm import build
        from coordvlm.analysis import bench_input
        from coordvlm.contracts import ResizeRule
        from coordvlm.sequence.collate import SequenceEncoder
        from coordvlm.utils.files import atomic_write_json

    torch.set_num_threads(1)
    setting = cfg.input
    with record.time("build"):
        encoder = build.build_model(cfg).encoder
    assert isinstance(encoder, SequenceEncoder), "bench composes detection"
    before = bench_input.load_average()
    with tempfile.TemporaryDirectory() as folder:
        with record.time("write_images"):
            file = bench_input.write_images(
                Path(folder), num_images=setting.num_images, size=tuple(setting.size), num_objects=setting.num_objects,
                quality=setting.quality, seed=cfg.seed,
            )
            kilobytes = sum(p.stat().st_size for p in Path(folder).glob("*.jpg")) / setting.num_images / 1e3
        split = bench_input.read_split(file)
        found = {}
        for name, values in setting.rules.items():
            rule = ResizeRule(mode="smart", size=None, **values)
            with record.time(str(name)):
                found[str(name)] = bench_input.measure_input(split, encoder, rule, batch_size=setting.batch_size, passes=setting.passes)
    after = bench_input.load_average()
    atomic_write_json(run_dir / "bench.json", {
        "case": cfg.case, "images": {"size": list(setting.size), "kilobytes": kilobytes, "objects": setting.num_objects},
        "passes": setting.passes, "load_average": {"before": before, "after": after},
        "results": {name: bench_input.as_plain(speed) for name, speed in found.items()},
    })
    _show(cfg, found, kilobytes, before, after)
    print(f"written: {run_dir / 'bench.json'}")
    return min(speed.per_cpu_s.median for speed in found.values())


def _show(cfg: DictConfig, found: dict[str, InputSpeed], kilobytes: float, before: Any, after: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    from coordvlm.analysis.bench_input import PARTS

    width, height = cfg.input.size
    title = f"{width} x {height} JPEG, {kilobytes:.0f} kB, {cfg.input.num_objects} objects: images per second on one core (min - max)"
    table = Table("resize rule", "model sees", "of own time", "by the clock", *[f"{p} ms" for p in PARTS], title=title)
    for name, speed in found.items():
        rates = [f"{s.median:.0f} ({s.low:.0f} - {s.high:.0f})" for s in (speed.per_cpu_s, speed.per_s)]
        table.add_row(name, "{} x {}".format(*speed.model_size), *rates, *[f"{speed.part_ms[p]:.2f}" for p in PARTS])
    console = Console(width=140)
    console.print(table)
    if before is not None:
        console.print(f"median of {cfg.input.passes} passes; load average {before[0]:.1f} before, {after[0]:.1f} after: "
                      "the clock counts what other programs took, own time does not")


def _foveated(cfg: DictConfig, run_dir: Path, record: Any) -> float:
    """Own time of a training step with deep queries over that with shallow ones; median of steps side by side, on one core."""
    with record.time("import"):
        import torch
        from omegaconf import OmegaConf

        from coordvlm import build
        from coordvlm.analysis import bench_foveated, bench_input
        from coordvlm.build.video import build_clip_model
        from coordvlm.contracts import ClipBatch
        from coordvlm.utils.files import atomic_write_json

    torch.set_num_threads(1)
    with record.time("build"):
        built = {}
        for depth in ("deep", "shallow"):
            mine = OmegaConf.merge(cfg, {"model": {"attention": {"depth": depth}}})
            built[depth] = build_clip_model(mine)  # type: ignore[arg-type]
        split = build.instantiate(cfg.data.source).split("train")
        encoder = built["deep"].encoder
        batch = encoder.collate([encoder.encode(split.sample(i, 0), epoch=0) for i in range(cfg.data.batch_size)])  # type: ignore[arg-type]
        assert isinstance(batch, ClipBatch)
    before = bench_input.load_average()
    with record.time("steps"):
        found, ratio = bench_foveated.measure_steps(
            {depth: model.backbone for depth, model in built.items()}, batch,  # type: ignore[misc]
            warmup=cfg.foveated.warmup, steps=cfg.foveated.steps,
        )
    after = bench_input.load_average()
    atomic_write_json(run_dir / "bench.json", {
        "case": cfg.case, "steps": cfg.foveated.steps, "batch_size": cfg.data.batch_size, "frames": batch.num_frames,
        "load_average": {"before": before, "after": after}, "results": {name: asdict(x) for name, x in found.items()},
        "deep_over_shallow": asdict(ratio),
    })
    _show_steps(cfg, found, ratio, before, after)
    print(f"written: {run_dir / 'bench.json'}")
    return ratio.median


def _show_steps(cfg: DictConfig, found: dict[str, StepTime], ratio: Spread, before: Any, after: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{cfg.model.name}, {cfg.data.batch_size} clips of {cfg.model.num_frames} frames: ms per training step on one core (min - max)"
    table = Table("queries", "own time", "by the clock", title=title)
    for name, time in found.items():
        table.add_row(name, *[f"{s.median:.1f} ({s.low:.1f} - {s.high:.1f})" for s in (time.cpu_ms, time.wall_ms)])
    console = Console(width=140)
    console.print(table)
    spread = f"{ratio.median:.2f} (tenths {ratio.low:.2f} - {ratio.high:.2f})"
    console.print(f"own time of deep over that of shallow: {spread} of {cfg.foveated.steps} pairs of steps")
    if before is not None:
        console.print(f"load average {before[0]:.1f} before, {after[0]:.1f} after")


if __name__ == "__main__":
    sys.exit(run_command("bench", main, check=check, about=__doc__))
