"""A model that answers about images it is shown: a trained run, or a base model as it is. Needs no training data."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from coordvlm.analysis.decode_batch import decode_batch_size, is_out_of_memory
from coordvlm.build.counting import build_counter, count_settings, teaches_done
from coordvlm.build.decoding import build_answerer, decode_settings
from coordvlm.build.model import Model, build_model, task_of
from coordvlm.build.requests import Countable, CountRequestEncoder, RequestEncoder
from coordvlm.callbacks.checkpoint import load_trained
from coordvlm.contracts import Encoded, Object, Prediction, Sample
from coordvlm.data.images import target_size
from coordvlm.modules.answerer import Answerer
from coordvlm.modules.counter import Counter
from coordvlm.modules.precision import cast_weights
from coordvlm.sequence.collate import SequenceEncoder
from coordvlm.sequence.count_answer import CountAnswer, finish_count
from coordvlm.utils.devices import settle
from coordvlm.utils.errors import ConfigError, DataError
from coordvlm.utils.record import RunRecord
from coordvlm.utils.run_config import UNTRAINED, require_setting, saved_config
from coordvlm.utils.runs import RunRef, resolve_run
from coordvlm.utils.seeds import choose_seed, seed_everything

#: An answer of this many words per thing, where no run has measured how long answers are.
_WORDS = "a thing described in some more words"
_ASKED = {
    "ground": "it looks for what phrase= or phrases= names",
    "detect": "it names every object (task=detect, without a phrase)",
    "count": "it counts what phrase= or phrases= names",
}
NEVER_DONE = (
    "this run was trained with sequence.mode=regression: it never learnt whether all is marked, so it points at the next object where the "
    "marks are known (coordvlm.eval) and cannot count; train with sequence.mode=mixed to count"
)
OF_CLIPS = (
    "this run is of task=video: it answers about clips, and predict and coordvlm.load ask about images; coordvlm.eval asks it about the "
    "clips of a data set: python -m coordvlm.eval run=... data=video data.root=..."
)
#: Bytes of opened images that are counted at once: each is drawn on at every step, so it stays in memory at its own size.
_FRAME_BYTES = 2**30
_Item = TypeVar("_Item")
_Found = TypeVar("_Found")


class Predictor:
    """Answers requests in batches.

    Args:
        cfg: model, sequence, coords, decode, task and trainer of a run.
        checkpoint: folder of trained weights; None leaves the base model as it is.
        budget: new tokens per answer where ``decode.max_new_tokens`` is null; None: of an answer with ``sequence.max_objects`` things.
        device: ``auto``, ``cpu``, ``gpu`` or ``mps``. precision: as ``trainer.precision``; ``auto`` is the run's on a GPU, else 32-true.
        classes: names for the prompt of a run that was trained with class lists.
    """

    def __init__(
        self, cfg: DictConfig, *, checkpoint: Path | None, budget: int | None, device: str, precision: str, classes: Sequence[str] = ()
    ) -> None:
        devices = settle({"accelerator": device, "devices": 1, "precision": precision})
        if precision == "auto" and devices.accelerator == "gpu":
            devices = settle({"accelerator": "gpu", "devices": 1, "precision": cfg.trainer.precision})
        cfg = copy.deepcopy(cfg)
        for key, value in (("accelerator", devices.accelerator), ("devices", 1), ("precision", devices.precision)):
            OmegaConf.update(cfg, f"trainer.{key}", value)  # what is built may ask where it will run
        self.task = task_of(cfg)
        if self.task == "video":
            raise ConfigError(OF_CLIPS)
        if self.task == "count" and checkpoint is None:
            raise ConfigError(UNTRAINED)
        if self.task == "count" and not teaches_done(cfg):
            raise ConfigError(NEVER_DONE)
        self.settings: dict[str, Any] = count_settings(cfg, instantiate(cfg.loss)) if self.task == "count" else decode_settings(cfg)
        self.readout = str(self.settings["readout"])
        seed_everything(choose_seed(cfg.seed))
        self.model: Model = build_model(cfg)
        self.classes = tuple(classes)
        self._check_classes()
        if checkpoint is not None:
            load_trained(checkpoint, self.model.backbone, self.model.contract)
        if self.settings["max_new_tokens"] is None:
            self.settings["max_new_tokens"] = budget or self._longest_answer(int(cfg.sequence.max_objects))
        self.answerer: Answerer | Counter
        self.requests: RequestEncoder | CountRequestEncoder
        max_pixels, encoder = int(cfg.model.max_source_pixels), self.model.encoder
        if isinstance(encoder, SequenceEncoder):
            self.answerer = build_answerer(cfg, self.model, self.settings)
            self.requests = RequestEncoder(max_pixels, encoder, self.classes)
        else:
            self.answerer = build_counter(self.model, self.settings, find=None)
            self.requests = CountRequestEncoder(max_pixels, encoder)
        kind = {"gpu": "cuda"}.get(devices.accelerator, devices.accelerator)
        self.device = torch.device(kind, devices.indices[0]) if kind == "cuda" else torch.device(kind)
        backbone = self.model.backbone.eval()
        if backbone.adapter is None:
            backbone.requires_grad_(False)
        if devices.precision == "bf16-true":
            cast_weights(backbone.hf, keep_trained=True)  # an adapter stays float32, as it was trained and is evaluated
        backbone.requires_grad_(False).to(self.device)
        self.precision = devices.precision
        self.most_at_once: int | None = None  # known once memory has run out

    def require(self, task: str, *, who: str) -> None:
        """Refuse a task the model was not trained for. who: the run, in words.

        Raises:
            ConfigError: names what it was trained for.
        """
        if task != self.task:
            raise ConfigError(f"{who} is for task={self.task}: {_ASKED[self.task]}; it cannot be asked for task={task}")

    def _check_classes(self) -> None:
        listed = self.model.contract.class_list
        if listed and not self.classes and self.task == "detect":
            raise ConfigError("this run was trained with class names in its prompt: say which to look for, with classes=[name,name,...]")
        if self.classes and (not listed or self.task != "detect"):
            raise ConfigError("classes= is for a run that was trained with class names in its prompt; this one was not")

    def _longest_answer(self, max_objects: int) -> int:
        """New tokens of an answer with as many things as a training image may have; one in grounding. Half as many again."""
        size = (1000, 1000)
        boxes = [(0.123 * size[0], 0.123 * size[1], 0.987 * size[0], 0.987 * size[1])] * (1 if self.task == "ground" else max_objects)
        sample = Sample(0, Path(), *size, tuple(Object(_WORDS, box) for box in boxes), phrase="it" if self.task == "ground" else None)
        assert self.model.target is not None, "counting writes nothing"
        built = self.model.target.build(sample, epoch=0, model_size=target_size(self.model.contract.resize, *size))
        return int(len(built.ids) * 1.5) + 8

    def batch_size(self, item: Encoded | Countable) -> int:
        """Requests like this one to answer at once."""
        first = item.first if isinstance(item, Countable) else item
        tokens = int(self.settings["max_new_tokens"])
        guess = decode_batch_size(self.model.backbone, first, max_new_tokens=tokens, device=self.device)
        if isinstance(item, Countable):
            guess = min(guess, int(self.settings["max_batch"]), max(1, _FRAME_BYTES // (3 * item.sample.width * item.sample.height)))
        return guess if self.most_at_once is None else min(guess, self.most_at_once)

    def answer(self, encoded: Sequence[Encoded]) -> list[Prediction | DataError]:
        """One per request, in order. Where memory runs out the batch is halved; a request too large by itself has an error instead."""
        return self._halving(encoded, self._decode, lambda one: one.id)

    def count(self, items: Sequence[Countable], *, on_step: Callable[[], Any] | None = None) -> list[CountAnswer | DataError]:
        """The loop, on all images at once; memory as in ``answer``. A question that cannot be asked is its own image's error.

        Args:
            on_step: called for every image at every step.
        """
        return self._halving(items, lambda part: self._count(part, on_step), lambda one: one.sample.id)

    def _halving(
        self, items: Sequence[_Item], ask: Callable[[Sequence[_Item]], Sequence[_Found | DataError]], name: Callable[[_Item], object]
    ) -> list[_Found | DataError]:
        if not items:
            return []
        try:
            return list(ask(items))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).split("\n")[0][:200]
        gc.collect()  # the failed batch's tensors hang on the traceback until here
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(items) == 1:
            return [DataError("must fit into memory by itself; use a smaller resize", where=name(items[0]), value=reason)]
        half = (len(items) + 1) // 2
        self.most_at_once = half
        return self._halving(items[:half], ask, name) + self._halving(items[half:], ask, name)

    @torch.no_grad()
    def _decode(self, encoded: Sequence[Encoded]) -> list[Prediction]:
        assert isinstance(self.answerer, Answerer), "see require"
        with self._precision():
            batch = self.model.encoder.collate(encoded).to(self.device)
            return self.answerer.ask(batch, [self.readout])[self.readout]

    def _count(self, items: Sequence[Countable], on_step: Callable[[], Any] | None) -> list[CountAnswer | DataError]:
        assert isinstance(self.answerer, Counter), "see require"
        samples = [item.sample for item in items]
        p_done: dict[int, list[float]] = {id(sample): [] for sample in samples}  # names of images need not differ

        def watch(sample: Sample, frame: object, marks: object, probability: float) -> None:
            p_done[id(sample)].append(probability)
            if on_step is not None:
                on_step()

        try:
            with self._precision():
                found = self.answerer.count(samples, self.readout, watch=watch)
        except DataError as error:  # a prompt that grew too long with the number of marks
            return [error] if len(items) == 1 else [answer for item in items for answer in self._count([item], on_step)]
        return [
            finish_count(prediction, phrase=str(sample.category), p_done=p_done[id(sample)])
            for sample, prediction in zip(samples, found, strict=True)
        ]

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16-mixed" else nullcontext()


def open_run(run: str | Path, *, outputs: Path | None = None, decode: Mapping[str, Any], **settings: Any) -> tuple[Predictor, RunRef]:
    """The predictor of a trained run.

    Args:
        run: a run folder, a checkpoint folder, or ``latest``.
        decode: settings that replace the run's; None: as in the run.
        settings: ``device``, ``precision`` and ``classes`` of ``Predictor``.
    Raises:
        ConfigError: no such run, or a setting of another task. ContractError: the checkpoint does not fit its configuration.
    """
    ref = resolve_run(run, outputs=outputs)
    config = saved_config(ref.run_dir)
    for key, value in decode.items():
        if value is not None:
            require_setting(config, "decode", key)
            OmegaConf.update(config, f"decode.{key}", value)
    budget = (RunRecord.read(ref.run_dir).get("decode") or {}).get("max_new_tokens")
    return Predictor(config, checkpoint=ref.checkpoint_dir, budget=budget, **settings), ref
