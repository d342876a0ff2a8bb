from __future__ import annotations

import warnings

import lightning
import numpy as np
import pytest
import torch

from coordvlm.data.datamodule import CoordDataModule
from coordvlm.utils.errors import ConfigError
from tests.data.fakes import FakeEncoder, annotation, coco_json, load_coco, write_coco
from tests.data.test_shapes import shapes

warnings.filterwarnings("ignore", module="lightning")


def datamodule(**options):
    source = options.pop("source", None) or shapes(image_size=16, side_fraction=(0.25, 0.4), num_shapes=(1, 2), num_train=18)
    defaults = {
        "batch_size": 2, "eval_batch_size": 16, "num_workers": 0, "seed": 0, "count_fn": None, "accumulate": 2, "val_images": 10,
        "on_error": "raise",
    }
    return CoordDataModule(source=source, encoder=FakeEncoder(), **{**defaults, **options})


class Recorder(lightning.LightningModule):
    """Records what it was trained on, and where the optimiser stepped."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.batches, self.steps = [], []

    def training_step(self, batch, batch_idx):
        self.batches.append((self.trainer.current_epoch, batch_idx, batch.ids, batch.window.index, batch.window.size))
        return self.weight.sum()

    def on_before_optimizer_step(self, optimizer):
        self.steps.append(len(self.batches))

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(tmp_path, **options):
    defaults = {"max_epochs": -1, "accumulate_grad_batches": 2, "accelerator": "cpu", "devices": 1, "logger": False,
                "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
                "limit_val_batches": 0, "default_root_dir": tmp_path}
    return lightning.Trainer(**{**defaults, **options})


def fit(tmp_path, steps, *, ckpt=None, num_workers=0, callbacks=(), **options):
    data, module = datamodule(num_workers=num_workers), Recorder()
    run = trainer(tmp_path, max_steps=steps, callbacks=list(callbacks), **options)
    run.fit(module, datamodule=data, ckpt_path=ckpt)
    return module, run


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Ten steps without a stop: 9 batches an epoch, so windows of 2, 2, 2, 2, 1."""
    return fit(tmp_path_factory.mktemp("straight"), 10)[0]


def test_windows_agree_with_the_trainers_steps(straight):
    assert len(straight.batches) == 18
    assert straight.steps == [2, 4, 6, 8, 9, 11, 13, 15, 17, 18]
    ends = [i + 1 for i, (*_, index, size) in enumerate(straight.batches) if index == size - 1]
    assert ends == straight.steps
    assert [b[0] for b in straight.batches] == [0] * 9 + [1] * 9
    for epoch in (straight.batches[:9], straight.batches[9:]):
        assert sorted(sum((b[2] for b in epoch), ())) == list(range(18))
    assert straight.batches[0][2] != straight.batches[9][2]


@pytest.mark.parametrize(("steps", "num_workers"), [(3, 0), (3, 2), (5, 0), (7, 0)])
def test_resuming_equals_not_having_stopped(tmp_path, straight, steps, num_workers):
    first, run = fit(tmp_path, steps, num_workers=num_workers)
    run.save_checkpoint(tmp_path / "x.ckpt")
    second, _ = fit(tmp_path, 10, ckpt=tmp_path / "x.ckpt", num_workers=num_workers)
    # the trainer takes the epoch that max_steps broke off for a whole one; the loader does not
    assert [b[1:] for b in first.batches + second.batches] == [b[1:] for b in straight.batches]
    assert first.steps + [len(first.batches) + s for s in second.steps] == straight.steps


NO_VAL, EACH_EPOCH = {}, {"limit_val_batches": 1}
EACH_4, ACROSS = {**EACH_EPOCH, "val_check_interval": 4}, {**EACH_EPOCH, "val_check_interval": 6, "check_val_every_n_epoch": None}


@pytest.mark.parametrize(("hook", "options", "steps"), [
    ("on_train_end", NO_VAL, 3), ("on_train_end", NO_VAL, 5), ("on_train_end", EACH_EPOCH, 5), ("on_train_end", ACROSS, 5),
    ("on_train_epoch_end", NO_VAL, 5), ("on_train_epoch_end", EACH_EPOCH, 5), ("on_train_epoch_end", ACROSS, 5),
    ("on_validation_end", EACH_EPOCH, 5), ("on_validation_end", EACH_4, 3), ("on_validation_end", ACROSS, 5),
])
def test_checkpoints_saved_in_other_hooks(tmp_path, straight, options, hook, steps):
    class Save(lightning.Callback):
        at = 0

    def save(self, trainer, module):
        if module.batches:
            trainer.save_checkpoint(tmp_path / "x.ckpt")
            self.at = len(module.batches)

    setattr(Save, hook, save)
    saver = Save()
    fit(tmp_path, steps, callbacks=[saver], **options)
    assert saver.at > 0
    rest, _ = fit(tmp_path, 10, ckpt=tmp_path / "x.ckpt", **options)
    assert [b[1:] for b in rest.batches] == [b[1:] for b in straight.batches[saver.at :]]
    assert [saver.at + s for s in rest.steps] == [s for s in straight.steps if s > saver.at]


class SaveAt(lightning.Callback):
    """Saves inside the training hooks, as ModelCheckpoint does."""

    def __init__(self, path, batch):
        self.path, self.batch = path, batch

    def on_train_batch_end(self, trainer, module, *_):
        if len(module.batches) == self.batch:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("batch", [4, 9, 11])
def test_checkpoints_saved_at_the_end_of_a_batch(tmp_path, straight, batch):
    fit(tmp_path, 10, callbacks=[SaveAt(tmp_path / "x.ckpt", batch)])
    rest, _ = fit(tmp_path, 10, ckpt=tmp_path / "x.ckpt")
    assert rest.batches == straight.batches[batch:]


class Interrupt(lightning.Callback):
    """Ctrl-C while a batch is worked on."""

    def __init__(self, path, batch):
        self.path, self.batch = path, batch

    def on_train_batch_start(self, trainer, module, *_):
        if len(module.batches) == self.batch:
            raise KeyboardInterrupt

    def on_exception(self, trainer, module, exception):
        trainer.save_checkpoint(self.path)


@pytest.mark.parametrize(("batch", "window"), [(4, (0, 2)), (5, (0, 1)), (13, (0, 2))])
def test_an_interrupted_batch_is_done_again(tmp_path, straight, batch, window):
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(tmp_path, 10, callbacks=[Interrupt(tmp_path / "x.ckpt", batch)])
    rest, _ = fit(tmp_path, 10, ckpt=tmp_path / "x.ckpt")
    assert [b[:3] for b in rest.batches] == [b[:3] for b in straight.batches[batch : batch + len(rest.batches)]]
    assert rest.batches[0][3:] == window
    ends = [i + 1 for i, (*_, index, size) in enumerate(rest.batches) if index == size - 1]
    assert ends == rest.steps


def test_the_trainers_batch_limit_cuts_windows(tmp_path):
    module, _ = fit(tmp_path, 4, limit_train_batches=3)
    assert [(b[0], *b[3:]) for b in module.batches] == [(0, 0, 2), (0, 1, 2), (0, 0, 1), (1, 0, 2), (1, 1, 2), (1, 0, 1)]
    assert module.steps == [2, 3, 5, 6]


@pytest.mark.parametrize(("options", "message"), [
    ({"limit_train_batches": 0.5}, "not a share, got 0.5"), ({"accumulate_grad_batches": 3}, "accumulates 3 batches"),
    ({"overfit_batches": 1}, "overfit_batches would still shuffle"),
])
def test_a_trainer_that_contradicts_the_windows_is_refused(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        fit(tmp_path, 2, **options)


def test_validation_is_the_same_sorted_subset_for_every_seed():
    one, other = datamodule(), datamodule(seed=9)
    seen = sum((b.ids for b in one.val_dataloader()), ())
    assert list(seen) == sorted(seen) == one.val_ids().tolist() == other.val_ids().tolist()
    assert len(seen) == 10
    assert list(seen) != list(range(10))
    assert datamodule(val_images=999).val_ids().tolist() == list(range(40))
    assert one.source.truth("val").subset(one.val_ids()).image_ids.tolist() == list(seen)
    assert all(b.counts["text"] > 0 for b in one.val_dataloader())


def test_test_is_every_image_without_answers():
    batches = list(datamodule().test_dataloader())
    assert sum((b.ids for b in batches), ()) == tuple(range(30))
    assert all(b.counts["text"] == 0 for b in batches)


def test_a_broken_truth_box_does_not_stop_evaluation_but_a_broken_image_does(tmp_path):
    data = coco_json()
    data["annotations"].append(annotation(bbox=[1, 1, 0, 0]))
    write_coco(tmp_path, data)
    source = load_coco(tmp_path, split="val")
    batches = list(datamodule(source=source).test_dataloader())
    assert [b.ids for b in batches] == [(3, 7)]
    assert all(type(i) is int for i in batches[0].ids)
    assert len(source.truth("test").ann_ids) == 4
    (tmp_path / "images" / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.png \(image 7\): the image must be readable"):
        list(datamodule(source=source).test_dataloader())
    lenient = datamodule(source=source, on_error="skip")
    assert [b.ids for b in lenient.test_dataloader()] == [(3,)]
    assert [("a.png" in m, n) for m, n in lenient.unreadable().items()] == [(True, 1)]


def test_workers_end_with_the_fit(tmp_path):
    data = datamodule(num_workers=1)
    trainer(tmp_path, max_steps=2).fit(Recorder(), datamodule=data)
    assert data._loaders["train"]._loader._iterator is None


def test_loading_leaves_the_global_random_stream_alone():
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.random.get_rng_state(), np.random.get_state()[2]
    data = datamodule()
    list(data.train_dataloader())
    list(data.val_dataloader())
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1] == np.random.get_state()[2]


def test_meaningless_options_are_refused():
    with pytest.raises(ConfigError, match="on_error must be raise or skip, got 'warn'"):
        datamodule(on_error="warn")
    with pytest.raises(ConfigError, match="val_images must be at least 1"):
        datamodule(val_images=0)
