"""The wiring: what the configuration says is what the parts get."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hydra.errors import InstantiationException

from coordvlm import build
from coordvlm.contracts import Prediction, Record
from coordvlm.data.filtered import FewerObjects
from coordvlm.data.overfit import FirstBatch
from coordvlm.utils.errors import ConfigError
from tests.compose import compose
from tests.data_root import peer_data
from tests.e2e.test_coco import bccd


def experiment(tmp_path: Path, *overrides: str, split: str = "test") -> build.Experiment:
    return build.build_experiment(compose(tmp_path / "run", *overrides), split=split)


def test_a_wrong_data_folder_is_found_before_the_weights_are_read(tmp_path: Path) -> None:
    with pytest.raises(InstantiationException, match=r"data\.root must be a folder"):
        experiment(tmp_path, "model=qwen3vl_8b", f"model.path={tmp_path / 'none'}", "data=coco", f"data.root={tmp_path / 'nowhere'}")


@pytest.mark.parametrize(
    ("limit", "batch", "shown"),
    [(None, 4, 10), (1.0, 4, 10), (1, 4, 4), (2, 4, 8), (3, 4, 10), (9, 4, 10), (0, 4, 0), (0.5, 4, 4), (0.34, 4, 4)],
)
def test_only_what_a_limited_loader_gives_out_is_scored(limit: float | None, batch: int, shown: int) -> None:
    assert build.first_batches(np.arange(10), limit, batch).tolist() == list(range(shown))


def test_truths_follow_the_limits(tmp_path: Path) -> None:
    mine = experiment(tmp_path, "trainer.limit_test_batches=2", "trainer.limit_val_batches=1", "data.eval_batch_size=7")
    assert mine.truth.image_ids.tolist() == list(range(14))
    assert mine.val_truth.image_ids.tolist() == mine.data.val_ids()[:7].tolist()
    assert (mine.split, mine.title) == ("test", "14 test images")
    whole = experiment(tmp_path)
    assert (len(whole.truth.image_ids), len(whole.val_truth.image_ids)) == (500, 200)
    assert whole.protocol["hash"] != mine.protocol["hash"]


@pytest.mark.parametrize(
    ("override", "same"),
    [("optim.lr=0.1", True), ("data.eval_batch_size=8", True), ("metrics.num_replicates=3", True), ("metrics.backend=pycocotools", False),
     ("decode.grammar=true", False), ("decode.readout=argmax", False), ("decode.score=one", False), ("data.source.num_test=499", False),
     ("decode.max_new_tokens=9", False), ("model.max_source_pixels=1000000", False)],
)
def test_the_protocol_changes_with_what_decides_a_result(tmp_path: Path, override: str, same: bool) -> None:
    fixed = () if override.startswith("decode.max") else ("decode.max_new_tokens=20",)
    mine, plain = experiment(tmp_path, override, *fixed), experiment(tmp_path, "decode.max_new_tokens=20")
    assert (mine.protocol["hash"] == plain.protocol["hash"]) == same


def test_a_token_budget_fits_the_longest_training_answers(tmp_path: Path) -> None:
    mine = experiment(tmp_path)
    split = mine.source.split("train")
    longest = max(len(mine.model.target.build(split.sample(i, 0), epoch=0).ids) for i in range(50))
    assert longest < mine.decode["max_new_tokens"] <= 3 * longest
    assert mine.module.answerer.decoder.max_new_tokens == mine.decode["max_new_tokens"]


def test_too_many_objects_and_overfitting_change_the_source(tmp_path: Path) -> None:
    few = ("data.source.num_train=50",)
    limited = experiment(tmp_path, *few, "sequence.max_objects=2")
    assert isinstance(limited.source, FewerObjects)
    assert limited.data.source is limited.source
    first = experiment(tmp_path, *few, "sequence.max_objects=2", "overfit=true", "data.batch_size=6")
    assert isinstance(first.source, FirstBatch)
    assert first.truth.image_ids.tolist() == first.val_truth.image_ids.tolist()
    assert np.bincount(first.truth.ann_image_id).max() <= 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("decode.readout=mean", "decode.readout must be one of argmax, expectation, local"),
        ("sequence.format=json", "sequence.format='json' does not fit its target, which writes 'objects'"),
        ("sequence.on_too_many=ignore", "on_too_many must be"),
        ("trainer.limit_test_batches=0", "leaves no image"),
        ("data.on_error=ignore", "on_error must be raise or skip"),
    ],
)
def test_what_cannot_be_built_is_refused(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        experiment(tmp_path, override)


def test_the_prompt_of_a_class_list_is_part_of_the_contract(tmp_path: Path) -> None:
    plain, listed = (experiment(tmp_path, f"data.source.class_list={mode}").model.contract for mode in ("none", "all"))
    assert (plain.class_list, listed.class_list) == (False, True)
    assert plain.hash() != listed.hash()


def test_perfect_predictions_on_real_annotations_score_what_the_zero_area_box_leaves(tmp_path: Path) -> None:
    """BCCD val holds one box without area, which nothing can match."""
    peer_data()
    mine = experiment(tmp_path, *bccd("data.on_error=skip"))
    names = dict(zip(mine.truth.category_ids.tolist(), mine.truth.category_names, strict=True))
    metric = mine.module.test_metrics["local"]
    for image_id, size in zip(mine.truth.image_ids.tolist(), mine.truth.image_wh.astype(int).tolist(), strict=True):
        rows = np.flatnonzero(mine.truth.ann_image_id == image_id)
        records = tuple(
            Record(names[int(mine.truth.ann_category_id[a])], tuple(mine.truth.ann_xyxy_px[a].tolist()), 1.0, "ok")  # type: ignore[arg-type]
            for a in rows
        )
        metric.update([Prediction(image_id, (size[0], size[1]), records)])  # type: ignore[operator]
    assert len(mine.truth.image_ids) == 87
    assert metric.compute().metrics["AP"].value == pytest.approx(0.9966, abs=5e-5)  # type: ignore[operator]
