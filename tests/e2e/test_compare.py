from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
import time
from pathlib import Path

import pytest

from coordvlm import compare as command
from tests.analysis.factory import edit, write_run
from tests.e2e.commands import Ran, refusal
from tests.reports.html_check import read


def compare(outputs: Path, *argv: str) -> Ran:
    """``python -m coordvlm.compare argv``."""
    out, err = io.StringIO(), io.StringIO()
    before = set((outputs / "compare").glob("*"))
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setenv("COORDVLM_OUTPUTS", str(outputs))
        status = command.cli(list(argv))
    new = sorted(set((outputs / "compare").glob("*")) - before)
    return Ran(status, out.getvalue(), err.getvalue(), new[-1] if new else None)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recipes with two seeds, and a run that failed."""
    root = tmp_path_factory.mktemp("outputs")
    for seed in range(2):
        write_run(root / "train" / f"ce_{seed}", "loss=ce", seed=seed, noise_px=3.0, images=20)
        write_run(root / "train" / f"hybrid_{seed}", "loss=hybrid", seed=seed, noise_px=0.8, images=20)
    shutil.copytree(root / "train" / "ce_0", root / "train" / "broken")
    edit(root / "train" / "broken", "run.json", status="failed", error={"type": "DataError", "message": "no images"})
    return root


@pytest.fixture(scope="module")
def done(outputs: Path) -> Ran:
    ran = compare(outputs, "runs=train", "pictures=2")
    assert ran.status == 0, ran.err
    return ran


def test_one_command_gives_the_answer(done: Ran, outputs: Path) -> None:
    first = done.out.splitlines()[0]
    assert first.startswith("hybrid beats ce by ")
    assert first.endswith("(two seeds: seed noise is poorly known).")
    assert f"left out: {outputs / 'train' / 'broken'}: " in done.out
    assert "DataError: no images" in done.out
    assert done.out.splitlines()[-1] == f"report: {done.run / 'compare.html'}"


def test_it_leaves_a_page_with_pictures_and_tables(done: Ran) -> None:
    read(done.run / "compare.html")
    text = (done.run / "compare.html").read_text(encoding="utf-8")
    assert text.count("<img") == 4  # two images of two groups, drawn from the data source of the runs
    assert done.out.splitlines()[0].split(" [")[0] in text
    assert done.out.splitlines()[0] in (done.run / "compare.md").read_text(encoding="utf-8")
    rows = list(csv.DictReader((done.run / "pairs.csv").open()))
    assert {r["metric"] for r in rows} >= {"AP", "px_median", "duplicate_rate"}
    assert done.record["status"] == "finished"
    assert len(done.record["compared"]) == 4


def test_globs_lists_conditions_baselines_and_readouts(outputs: Path) -> None:
    train = outputs / "train"
    ran = compare(outputs, f"runs={train}/*_*", "baseline=ce", "readout=argmax", "pictures=0", "only=loss=ce,hybrid seed=0")
    assert ran.status == 0, ran.err
    assert "hybrid beats ce by" in ran.out
    assert "(one seed: the interval knows image noise only)" in ran.out
    assert "read again from stored predictions" in (ran.run / "compare.html").read_text(encoding="utf-8")
    ran = compare(outputs, f"runs=[{train / 'ce_0'},{train / 'hybrid_0'}]", "metric=px_median", "pictures=0")
    assert ran.status == 0, ran.err
    assert ran.out.startswith("hybrid beats ce by ")
    assert " px [" in ran.out.splitlines()[0]


@pytest.mark.parametrize("side", [7, 48])
def test_data_that_changed_leaves_ids_instead_of_pictures(outputs: Path, tmp_path: Path, side: int) -> None:
    for name in ("ce_0", "hybrid_0"):
        run = Path(shutil.copytree(outputs / "train" / name, tmp_path / "train" / name))
        config = (run / "config.yaml").read_text()
        (run / "config.yaml").write_text(config.replace("image_size: 96", f"image_size: {side}"))
    ran = compare(tmp_path, "runs=train", "pictures=2")
    assert ran.status == 0, ran.err
    text = (ran.run / "compare.html").read_text(encoding="utf-8")
    assert "The images cannot be had here" in text
    assert "<img" not in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "no value for runs"),
        (("runs=nowhere",), "runs=nowhere: no such folder"),
        (("runs=train/ce_*",), "all 2 runs are one recipe"),
        (("runs=train/broken",), "no run can take part; left out:"),
        (("runs=train", "metric=AP7"), "has no such metric; nearest: AP75"),
        (("runs=train", "baseline=mixed"), "baseline=mixed: no group of that name"),
        (("runs=train", "only=loss=mixed"), "loss is one of ce, hybrid"),
        (("runs=train", "readout=mean"), "readout must be one of argmax, expectation, local"),
        (("runs=train", "coverage=2"), "coverage must lie between 0 and 1"),
        (("runs=train", "metrik=AP"), "no such key metrik"),
    ],
)
def test_what_cannot_be_meant_is_refused(outputs: Path, argv: tuple[str, ...], message: str) -> None:
    assert message in refusal(compare(outputs, *argv))


def test_other_protocols_are_refused_by_name(outputs: Path, tmp_path: Path) -> None:
    for name in ("ce_0", "hybrid_0"):
        shutil.copytree(outputs / "train" / name, tmp_path / "train" / name)
    metrics = json.loads((tmp_path / "train" / "ce_0" / "metrics.json").read_text())
    edit(tmp_path / "train" / "ce_0", "metrics.json", protocol_values={**metrics["protocol_values"], "grammar": True})
    message = refusal(compare(tmp_path, "runs=train"))
    assert "grammar=True: ce_0" in message
    assert "grammar=False: hybrid_0" in message


@pytest.mark.slow
def test_thirty_runs_of_500_images_take_seconds(tmp_path: Path) -> None:
    """Five recipes, six seeds; the runs of a recipe are copies, which are as slow to read. 20 s is for an idle machine."""
    full = {"images": 500, "replicates": 1000, "steps": 2000}
    for number, loss in enumerate(("ce", "coordexp", "hybrid", "coordexp loss.gate=0", "ce loss.average=group")):
        first = write_run(tmp_path / "train" / f"{number}_0", *f"loss={loss}".split(), noise_px=1 + number, **full)  # type: ignore[arg-type]
        for seed in range(1, 6):
            run = Path(shutil.copytree(first, tmp_path / "train" / f"{number}_{seed}"))
            config = (run / "config.yaml").read_text()
            (run / "config.yaml").write_text(config.replace("\nseed: 0", f"\nseed: {seed}").replace("    seed: 0\n", f"    seed: {seed}\n"))
            edit(run, "run.json", seed=seed)
    wall, cpu = time.perf_counter(), time.process_time()
    ran = compare(tmp_path, "runs=train")
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert ran.status == 0, ran.err
    assert len(ran.record["compared"]) == 30
    assert cpu < 20, f"{cpu:.1f} s of work, {wall:.1f} s on the clock, {ran.record['timings']}"
