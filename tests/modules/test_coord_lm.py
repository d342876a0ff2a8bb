"""The LightningModule in a real trainer on the CPU, with hand-made loaders."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from coordvlm.contracts import Batch, GroundTruth, Sample, Window
from coordvlm.contracts.output import TermOutput
from coordvlm.losses.coord_ce import CoordCE
from coordvlm.losses.coord_error import CoordError
from coordvlm.losses.coord_exp import CoordExp
from coordvlm.losses.giou import GIoU
from coordvlm.losses.l1 import L1
from coordvlm.losses.slots import Slots
from coordvlm.losses.text_ce import TextCE
from coordvlm.losses.weighted_sum import Weighted, WeightedSum
from coordvlm.metrics.detection import DetectionMetric
from coordvlm.models.decode import Decoder
from coordvlm.modules.answerer import Answerer
from coordvlm.modules.coord_lm import CoordLM
from coordvlm.modules.optim import OptimSettings
from coordvlm.sequence.parse import ObjectsParser
from coordvlm.utils.errors import ConfigError, NonFiniteLossError
from tests.models.test_backbone import hf_labels
from tests.tiny import MARKERS, Tiny, hf_inputs, random_sample, tiny

NAMES = ("red circle", "blue square", "dog")
#: Objects and image sizes of eight samples; one image is empty.
SHAPES = ((2, (48, 32)), (0, (32, 32)), (3, (32, 64)), (1, (16, 16)), (5, (64, 32)), (1, (32, 32)), (2, (32, 32)), (4, (48, 48)))


def samples(num: int = 8) -> list[Sample]:
    return [random_sample(i, n, size) for i, (n, size) in enumerate(SHAPES[:num])]


def truth_of(some: Sequence[Sample]) -> GroundTruth:
    boxes = [(s.id, NAMES.index(o.desc), o.box_xyxy_px) for s in some for o in s.objects]
    xyxy = np.asarray([b for *_, b in boxes], dtype=np.float64)
    return GroundTruth(
        image_ids=np.asarray([s.id for s in some]),
        image_wh=np.asarray([(s.width, s.height) for s in some], dtype=np.float64),
        category_ids=np.arange(3),
        category_names=NAMES,
        ann_ids=np.arange(len(boxes)),
        ann_image_id=np.asarray([i for i, *_ in boxes]),
        ann_category_id=np.asarray([c for _, c, _ in boxes]),
        ann_xyxy_px=xyxy,
        ann_area=(xyxy[:, 2] - xyxy[:, 0]) * (xyxy[:, 3] - xyxy[:, 1]),
        ann_iscrowd=np.zeros(len(boxes), dtype=bool),
    )


def recipe(t: Tiny, kind: str) -> WeightedSum:
    decode = CoordExp(t.grid, read="expectation", temperature=1.0, window=16, top_k=8)
    terms = {"text_ce": Weighted(TextCE(), 1.0, "tokens"), "coord_ce": Weighted(CoordCE(), 1.0, "tokens")}
    if kind == "hybrid":
        terms |= {"l1": Weighted(L1(), 5.0), "giou": Weighted(GIoU(), 2.0)}
    return WeightedSum(terms, average="token", decode=decode, monitors={"coordexp": Weighted(CoordError(t.grid), 1.0)})


def module(t: Tiny, kind: str = "hybrid", num: int = 8, **optim: Any) -> CoordLM:
    parser = ObjectsParser(t.tokenizer, t.vocab, t.grid, start=MARKERS[0], end=MARKERS[1], score="geom_desc")
    values = {
        "lr": 1e-3, "group_lr": {}, "weight_decay": 0.0, "betas": (0.9, 0.95), "eps": 1e-8, "schedule": "constant", "warmup": 0,
        "final_lr": 1.0, "clip_norm": None, "muon_lr": None, "muon_momentum": 0.95, **optim,
    }  # fmt: skip
    metrics = [DetectionMetric(backend="faster", num_replicates=0, seed=0, casefold=False, truth=truth_of(samples(num))) for _ in range(3)]
    return CoordLM(
        backbone=t.backbone,
        losses=recipe(t, kind),
        answerer=Answerer(
            Decoder(t.backbone, t.grid.bin_values(), max_new_tokens=12, grammar=None, mass_radius=10, local_window=16), parser
        ),
        val_metric=metrics[0],
        test_metrics={"argmax": metrics[1], "expectation": metrics[2]},
        optim=OptimSettings(**values),
        readout="argmax",
    )


def batches(t: Tiny, sizes: Sequence[int], *, accumulate: int = 1, losses: WeightedSum | None = None) -> list[Batch]:
    """The first samples cut into batches; with ``losses`` they carry their windows."""
    encoded = [t.encoder.encode(s, epoch=0) for s in samples(sum(sizes))]
    starts = np.cumsum([0, *sizes])
    out = [t.encoder.collate(encoded[a:b]) for a, b in zip(starts[:-1], starts[1:], strict=True)]  # noqa: RUF007
    if losses is None:
        return out
    done = []
    for at in range(0, len(out), accumulate):
        window = out[at : at + accumulate]
        counts: Counter[str] = Counter()
        for b in window:
            counts.update(losses.counts(b))
        done += [replace(b, window=Window(i, len(window), dict(counts), accumulate)) for i, b in enumerate(window)]
    return done


class Loader:
    """A list of batches that Lightning does not take for a list of loaders."""

    def __init__(self, items: Sequence[Batch]) -> None:
        self.items = list(items)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


class Gradients(Callback):
    """Of every optimiser step, before clipping."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: CoordLM, optimizer: Any) -> None:
        self.steps.append({n: p.grad.clone() for n, p in pl_module.backbone.named_parameters() if p.grad is not None})


def trainer(*callbacks: Callback, **options: Any) -> lightning.Trainer:
    return lightning.Trainer(
        **{
            "accelerator": "cpu", "devices": 1, "max_epochs": 1, "logger": False, "enable_checkpointing": False,
            "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1, "num_sanity_val_steps": 0,
            "callbacks": list(callbacks), **options,
        }
    )  # fmt: skip


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def first_gradient(sizes: Sequence[int], accumulate: int) -> dict[str, torch.Tensor]:
    t = tiny()
    m, seen = module(t), Gradients()
    trainer(seen, accumulate_grad_batches=accumulate).fit(m, Loader(batches(t, sizes, accumulate=accumulate, losses=m.losses)))
    assert len(seen.steps) == 1
    return seen.steps[0]


@pytest.fixture(scope="module")
def whole() -> dict[str, torch.Tensor]:
    return first_gradient([8], 1)


@pytest.mark.parametrize(
    ("sizes", "accumulate"), [((4, 4), 2), ((1, 7), 2), ((3, 2, 2, 1), 4), ((2, 1, 5), 4), ((8,), 4)], ids=str
)  # fmt: skip
def test_the_gradient_of_a_step_does_not_depend_on_how_it_is_cut(
    whole: dict[str, torch.Tensor], sizes: tuple[int, ...], accumulate: int
) -> None:
    """The last two are windows cut short by the end of the epoch, by which the trainer still divides as if they were whole."""
    cut = first_gradient(sizes, accumulate)
    assert set(cut) == set(whole)
    largest = max(float(g.abs().max()) for g in whole.values())
    assert max(float((cut[n] - whole[n]).abs().max()) for n in whole) <= 1e-5 * largest


def test_training_and_validation_log_the_same_names_and_values_on_equal_data() -> None:
    """One window of three ragged batches against a validation epoch of the same three: their ratio is 1."""
    t, sizes = tiny(), (3, 1, 4)
    m = module(t)
    validated = trainer()
    validated.validate(m, Loader(batches(t, sizes)), verbose=False)
    val = {k.removeprefix("val_"): float(v) for k, v in validated.callback_metrics.items() if k.startswith("val_")}
    fitted = trainer(accumulate_grad_batches=3)
    fitted.fit(m, Loader(batches(t, sizes, accumulate=3, losses=m.losses)))
    train = {k.removeprefix("train_"): float(v) for k, v in fitted.callback_metrics.items() if k.startswith("train_")}
    assert {"total_loss", "text_loss", "coord_loss", "coord_ce_loss", "term/giou", "coordexp_l1", "iou"} <= set(train)
    assert set(train) == set(val)
    assert {k: train[k] / val[k] for k in val} == pytest.approx(dict.fromkeys(val, 1.0), rel=1e-5)


class OfNothing(CoordError):
    """Logs a mean over items of which no batch has any, as of a point where all is marked."""

    def forward(self, slots: Slots) -> TermOutput:
        out = super().forward(slots)
        return replace(out, logs={"of_nothing": (out.sum.detach() * 0, 0)})


def test_a_mean_over_no_item_is_logged_as_undefined_and_not_as_a_perfect_zero() -> None:
    t = tiny()
    m = module(t)
    m.losses.monitors["none"] = OfNothing(t.grid)
    run = trainer()
    run.fit(m, Loader(batches(t, [8], losses=m.losses)), Loader(batches(t, [8])))
    for phase in ("train", "val"):
        assert math.isnan(float(run.callback_metrics[f"{phase}_of_nothing"]))
        assert math.isfinite(float(run.callback_metrics[f"{phase}_total_loss"]))


def test_the_logged_loss_is_weighted_and_adds_up() -> None:
    t = tiny()
    m, run = module(t), trainer()
    run.fit(m, Loader(batches(t, [8], losses=m.losses)))
    got = {k: float(v) for k, v in run.callback_metrics.items()}
    terms = {k: got[f"train_term/{k}"] for k in ("text_ce", "coord_ce", "l1", "giou")}
    assert got["train_coord_loss"] == pytest.approx(5 * terms["l1"] + 2 * terms["giou"], rel=1e-6)
    parts = got["train_text_loss"] + got["train_coord_ce_loss"] + got["train_coord_loss"]
    assert got["train_total_loss"] == pytest.approx(parts, rel=1e-6)
    assert got["lr"] == pytest.approx(1e-3)
    assert got["grad_norm"] > 0


def test_ce_is_hugging_faces_loss() -> None:
    t = tiny()
    batch = batches(t, [8])[0]
    with torch.no_grad():
        inputs = hf_inputs(batch, image_id=t.vocab.image_id, patch_norm=t.backbone.pixel_norm)
        theirs = float(t.backbone.to_hf()(**inputs, labels=hf_labels(batch)).loss)
    m, run = module(t, "ce"), trainer()
    run.fit(m, Loader(batches(t, [8], losses=m.losses)))
    assert float(run.callback_metrics["train_total_loss"]) == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("bad_batch", [0, 1])
@pytest.mark.parametrize("deferred", [False, True])
def test_a_loss_that_is_no_number_stops_before_the_weights_change(bad_batch: int, deferred: bool) -> None:
    """``deferred`` is how a GPU is watched: the verdict is read before the optimiser step, behind the backward."""
    t = tiny()
    m, seen = module(t), Gradients()
    m.guard.deferred = deferred
    loader = batches(t, (4, 4), accumulate=2, losses=m.losses)
    b = loader[bad_batch]
    value = b.slot_value.clone()
    sick = int(b.box_sample[-1])
    value[b.box_slot[-1, 2]] = math.nan
    loader[bad_batch] = replace(b, slot_value=value)
    before = {n: p.detach().clone() for n, p in m.backbone.named_parameters()}
    with pytest.raises(NonFiniteLossError, match=rf"step 0: .*l1 = nan \(samples {b.ids[sick]}\)") as caught:
        trainer(seen, accumulate_grad_batches=2).fit(m, Loader(loader))
    assert "giou = nan" in str(caught.value)
    assert "text_ce" not in str(caught.value)
    assert deferred or not seen.steps
    assert all(torch.equal(p, before[n]) for n, p in m.backbone.named_parameters())


def test_clipping_bounds_the_step_and_logs_the_norm_before_it() -> None:
    t = tiny()
    m = module(t, clip_norm=1e-3)
    norms: list[float] = []

    class After(Callback):
        def on_before_zero_grad(self, trainer: Any, pl_module: CoordLM, optimizer: Any) -> None:
            grads = [p.grad for p in pl_module.backbone.parameters() if p.grad is not None]
            norms.extend([float(torch.nn.utils.get_total_norm(grads))] if grads else [])

    run = trainer(After(), max_epochs=2)
    run.fit(m, Loader(batches(t, [8], losses=m.losses)))
    assert norms
    assert norms[-1] == pytest.approx(1e-3, rel=1e-3)
    assert float(run.callback_metrics["grad_norm"]) > 0.1


def test_a_few_steps_on_one_batch_lower_the_loss() -> None:
    t = tiny()
    m, run, again = module(t, lr=3e-3), trainer(max_epochs=8), trainer()
    loader = batches(t, [8], losses=m.losses)
    again.validate(m, Loader(batches(t, [8])), verbose=False)
    before = float(again.callback_metrics["val_total_loss"])
    run.fit(m, Loader(loader))
    assert float(run.callback_metrics["train_total_loss"]) < 0.8 * before


def test_validation_decodes_every_image_and_logs_what_checkpoints_are_chosen_by() -> None:
    t = tiny()
    m, run = module(t), trainer()
    run.validate(m, Loader(batches(t, (3, 5))), verbose=False)
    assert {"val/AP", "val/AP50", "val/parse_rate", "val/duplicate_rate"} <= set(run.callback_metrics)
    assert sorted(m.val_metric._predictions) == list(range(8))
    assert 0 <= float(run.callback_metrics["val/parse_rate"]) <= 1


def test_a_validation_forgets_the_one_before() -> None:
    t = tiny()
    m, run = module(t), trainer()
    first = run.validate(m, Loader(batches(t, (3, 5))), verbose=False)
    second = run.validate(m, Loader(batches(t, (3, 5))), verbose=False)
    assert first[0] == pytest.approx(second[0], rel=1e-9, nan_ok=True)


def test_one_decode_serves_every_read_out_of_the_test() -> None:
    t = tiny()
    m, run = module(t), trainer()
    calls: list[int] = []
    decode = m.answerer.decoder.decode
    m.answerer.decoder.decode = lambda batch, **how: calls.append(len(batch)) or decode(batch, **how)  # type: ignore[method-assign, func-returns-value]
    run.test(m, Loader(batches(t, (3, 5))), verbose=False)
    assert calls == [3, 5]
    assert [p.sample_id for p in m.predictions] == list(range(8))
    assert set(m.readout_evaluations) == {"argmax", "expectation"}
    assert m.evaluation is m.readout_evaluations["argmax"]


def test_bf16_trains_a_step_and_keeps_the_rows_in_float32() -> None:
    t = tiny()
    m, seen = module(t), Gradients()
    run = trainer(seen, precision="bf16-mixed")
    before = t.backbone.rows.rows_in.detach().clone()
    run.fit(m, Loader(batches(t, [8], losses=m.losses)))
    assert math.isfinite(float(run.callback_metrics["train_total_loss"]))
    assert t.backbone.rows.rows_in.dtype == torch.float32
    assert not torch.equal(before, t.backbone.rows.rows_in)
    exact = first_gradient([8], 1)
    a, b = (torch.cat([g[n].flatten() for n in sorted(g)]) for g in (seen.steps[0], exact))
    assert float(torch.nn.functional.cosine_similarity(a, b, 0)) > 0.99


def test_only_what_trains_is_saved() -> None:
    m = module(tiny(freeze=("vision", "merger")))
    names = set(m.trained_state())
    assert "rows.rows_in" in names
    assert not any(".visual." in n for n in names)
    checkpoint: dict[str, Any] = {"state_dict": {"x": 1}}
    m.on_save_checkpoint(checkpoint)
    assert checkpoint["state_dict"] == {}
    m.load_state_dict({}, strict=m.strict_loading)  # what the trainer does with it on resuming


def test_a_recipe_that_needs_what_tokens_cannot_give_is_refused() -> None:
    class Points(TextCE):
        needs = frozenset({"head_output"})

    t = tiny()
    m = module(t)
    with pytest.raises(ConfigError, match=r"'points' needs \['head_output'\], which the token model does not give"):
        CoordLM(
            backbone=t.backbone,
            losses=WeightedSum({"points": Weighted(Points(), 1.0)}, average="token"),
            answerer=m.answerer,
            val_metric=m.val_metric,
            test_metrics=m.test_metrics,
            optim=m.optim,
            readout="argmax",
        )
