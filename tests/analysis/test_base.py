from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordvlm.analysis.base import open_base
from coordvlm.contracts import Evaluation, Interval
from coordvlm.metrics.replicates import save_replicates
from coordvlm.utils.errors import CoordVLMError

IMAGES = np.arange(40)
PROTOCOL = {"data": "abc", "split": "test", "readout": "local", "grammar": False, "max_new_tokens": 64, "hash": "h1"}


def write(folder: Path, values: np.ndarray, *, seed: int = 0, what: str = "base model, untouched", **protocol: Any) -> Evaluation:
    """An evaluation whose AP is the mean of ``values``, one per image, with honest replicates."""
    folder.mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng(seed).integers(0, len(values), (400, len(values)))
    replicates = values[draws].mean(1)
    low, high = np.percentile(replicates, [2.5, 97.5])
    nan = float("nan")
    evaluation = Evaluation(
        {"AP": Interval(float(values.mean()), low, high), "px_mean": Interval(nan), "extra": Interval(2.0)}, {"images": len(values)},
        replicates={"AP": replicates, "px_mean": np.full(400, nan)},
    )
    metrics = {n: {"value": None if np.isnan(m.value) else m.value, "low": None, "high": None} for n, m in evaluation.metrics.items()}
    (folder / "metrics.json").write_text(json.dumps({"metrics": metrics, "protocol_values": {**PROTOCOL, **protocol}}))
    record = {"status": "finished", "choices": {"model": "tiny", "loss": "ce"}, "evaluated": {"what": what} if what else {}}
    (folder / "run.json").write_text(json.dumps(record))
    save_replicates(folder / "bootstrap.npz", evaluation, image_ids=IMAGES, seed=seed)
    return evaluation


def test_the_difference_is_paired(tmp_path: Path) -> None:
    """A constant gain on every image is certain, however much images differ among themselves."""
    values = np.random.default_rng(1).uniform(0, 0.6, 40)
    write(tmp_path / "base", values)
    tuned = write(tmp_path / "tuned", values + 0.25)
    base = open_base(str(tmp_path / "base"))
    assert base is not None
    found = base.compare(tuned, tmp_path / "tuned")
    both = found.metrics["AP"]
    assert both.difference.value == pytest.approx(0.25)
    assert both.difference.low == pytest.approx(0.25)
    assert both.difference.high == pytest.approx(0.25)
    assert both.tuned.high - both.tuned.low > 0.05
    assert both.p_value < 0.01
    assert found.sentence == "Tuned beats base by 25.0 AP [25.0, 25.0]."
    assert (found.name, found.num_images) == ("tiny (base model, untouched)", 40)
    assert found.metrics["extra"].difference.value == 0
    assert np.isnan(found.metrics["px_mean"].difference.value)


def test_the_same_evaluation_cannot_be_told_apart_from_itself(tmp_path: Path) -> None:
    evaluation = write(tmp_path / "base", np.linspace(0, 1, 40))
    base = open_base(str(tmp_path / "base"))
    assert base is not None
    assert base.compare(evaluation, tmp_path / "base").verdict == "warn"


@pytest.mark.parametrize("given", ["eval/a", "a"])
def test_a_folder_may_be_named_below_the_outputs(tmp_path: Path, given: str) -> None:
    write(tmp_path / "eval" / "a", np.zeros(40), what="")
    base = open_base(given, outputs=tmp_path)
    assert base is not None
    assert base.folder == tmp_path / "eval" / "a"
    assert base.name == "run a (ce, tiny)"
    assert (base.seed, base.num_replicates) == (0, 400)


def test_no_base_is_none() -> None:
    assert open_base(None) is None


@pytest.mark.parametrize(
    ("given", "broken", "words"),
    [
        ("nowhere", None, "base=nowhere: no such folder; the newest evaluations:\n  .*good"),
        ("empty", None, "is no evaluation, it has no metrics.json and no bootstrap.npz"),
        ("cut", ("bootstrap.npz", None), "is no evaluation, it has no bootstrap.npz"),
        ("cut", ("bootstrap.npz", b"PK\x03\x04"), "bootstrap.npz: must be the replicates of an evaluation"),
        ("cut", ("metrics.json", b"{}"), "metrics.json: must hold metrics and protocol_values of an evaluation"),
        ("cut", ("metrics.json", b"[]"), "metrics.json: must hold metrics"),
        ("cut", ("metrics.json", b"\xff"), "metrics.json: must hold metrics"),
    ],
)
def test_what_is_no_evaluation_is_refused(tmp_path: Path, given: str, broken: tuple[str, bytes | None] | None, words: str) -> None:
    write(tmp_path / "eval" / "good", np.zeros(40))
    write(tmp_path / "cut", np.zeros(40))
    (tmp_path / "empty").mkdir()
    if broken is not None:
        name, content = broken
        if content is None:
            (tmp_path / "cut" / name).unlink()
        else:
            (tmp_path / "cut" / name).write_bytes(content)
    with pytest.raises(CoordVLMError, match=words):
        open_base(given, outputs=tmp_path)


@pytest.mark.parametrize(
    ("here", "words"),
    [
        ({"readout": "argmax"}, "readout: 'local' in base, 'argmax' here"),
        ({"max_new_tokens": 99, "data": "xyz"}, "data: 'abc' in base, 'xyz' here\n  max_new_tokens: 64 in base, 99 here"),
        ({"casefold": True}, "casefold: None in base, True here"),
        ({"seed": 3}, "metrics.seed: 0 in base, 3 here"),
        ({"num_replicates": 1000}, "metrics.num_replicates: 400 in base, 1000 here"),
    ],
)
def test_another_protocol_is_refused_with_each_value_that_differs(tmp_path: Path, here: dict[str, Any], words: str) -> None:
    write(tmp_path / "base", np.zeros(40))
    base = open_base(str(tmp_path / "base"))
    assert base is not None
    bootstrap = {"seed": 0, "num_replicates": 400}
    base.require({**PROTOCOL, "hash": "another"}, **bootstrap)
    mine = {k: here.get(k, v) for k, v in bootstrap.items()}
    with pytest.raises(CoordVLMError, match=re.escape(words)):
        base.require({**PROTOCOL, **{k: v for k, v in here.items() if k not in mine}}, **mine)


def test_without_replicates_here_their_number_does_not_matter(tmp_path: Path) -> None:
    write(tmp_path / "base", np.zeros(40))
    base = open_base(str(tmp_path / "base"))
    assert base is not None
    base.require(PROTOCOL, seed=5, num_replicates=0)
