"""A model that answers about images it is shown: a trained run, or a base model as it is. Needs no training data."""

from __future__ import annotations

import copy
import gc
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from coordvlm.analysis.decode_batch import decode_batch_size, is_out_of_memory
from coordvlm.build.decoding import build_answerer, decode_settings
from coordvlm.build.model import Model, build_model, task_of
from coordvlm.callbacks.checkpoint import load_trained
from coordvlm.contracts import Encoded, Object, Prediction, Sample
from coordvlm.data.images import open_image, target_size
from coordvlm.modules.precision import cast_weights
from coordvlm.sequence.collate import SequenceEncoder
from coordvlm.utils.devices import settle
from coordvlm.utils.errors import ConfigError, DataError
from coordvlm.utils.record import RunRecord
from coordvlm.utils.run_config import saved_config
from coordvlm.utils.runs import RunRef, resolve_run
from coordvlm.utils.seeds import choose_seed, seed_everything

#: An answer of this many words per thing, where no run has measured how long answers are.
_WORDS = "a thing described in some more words"
_ASKED = {"ground": "it looks for what phrase= or phrases= names", "detect": "it names every object (task=detect, without a phrase)"}


@dataclass(frozen=True)
class RequestEncoder:
    """Requests -> what the decoder takes. Picklable: worker processes get a copy.

    Args:
        max_pixels: a larger source image is refused. classes: names for the prompt.
    """

    encoder: SequenceEncoder
    max_pixels: int
    classes: tuple[str, ...]

    def frame(self, image: Path | Image.Image, *, where: object) -> Image.Image:
        """The displayed image, RGB.

        Raises:
            DataError: it cannot be read.
        """
        return open_image(image, declared=None, max_pixels=self.max_pixels, where=where)

    def encode(self, frame: Image.Image, phrase: str | None, *, name: str, where: object) -> Encoded:
        """A request made ready. ``name`` of the image and the phrase seed what is drawn.

        Raises:
            DataError: the image is too elongated, or the prompt too long.
        """
        named = name if phrase is None else f"{name}, {phrase!r}"
        listed = self.classes or None
        sample = Sample(named, frame, frame.width, frame.height, (), phrase=phrase, class_list=listed, meta={"where": where})
        return self.encoder.encode(sample, epoch=0, with_answer=False)


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
        self.settings: dict[str, Any] = decode_settings(cfg)
        self.task, self.readout = task_of(cfg), str(cfg.decode.readout)
        seed_everything(choose_seed(cfg.seed))
        self.model: Model = build_model(cfg)
        self.classes = tuple(classes)
        self._check_classes()
        if checkpoint is not None:
            load_trained(checkpoint, self.model.backbone, self.model.contract)
        if self.settings["max_new_tokens"] is None:
            self.settings["max_new_tokens"] = budget or self._longest_answer(int(cfg.sequence.max_objects))
        self.answerer = build_answerer(cfg, self.model, self.settings)
        self.requests = RequestEncoder(self.model.encoder, int(cfg.model.max_source_pixels), self.classes)
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

    def batch_size(self, sample: Encoded) -> int:
        """Requests like this one to answer at once."""
        tokens = int(self.settings["max_new_tokens"])
        guess = decode_batch_size(self.model.backbone, sample, max_new_tokens=tokens, device=self.device)
        return guess if self.most_at_once is None else min(guess, self.most_at_once)

    def answer(self, encoded: Sequence[Encoded]) -> list[Prediction | DataError]:
        """One per request, in order. Where memory runs out the batch is halved; a request too large by itself has an error instead."""
        if not encoded:
            return []
        try:
            return list(self._decode(encoded))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).split("\n")[0][:200]
        gc.collect()  # the failed batch's tensors hang on the traceback until here
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(encoded) == 1:
            return [DataError("must fit into memory by itself; use a smaller resize", where=encoded[0].id, value=reason)]
        half = (len(encoded) + 1) // 2
        self.most_at_once = half
        return self.answer(encoded[:half]) + self.answer(encoded[half:])

    @torch.no_grad()
    def _decode(self, encoded: Sequence[Encoded]) -> list[Prediction]:
        mixed = self.precision == "bf16-mixed"
        context: AbstractContextManager[Any] = torch.autocast(self.device.type, torch.bfloat16) if mixed else nullcontext()
        with context:
            batch = self.model.encoder.collate(encoded).to(self.device)
            return self.answerer.ask(batch, [self.readout])[self.readout]


def open_run(run: str | Path, *, outputs: Path | None = None, decode: Mapping[str, Any], **settings: Any) -> tuple[Predictor, RunRef]:
    """The predictor of a trained run.

    Args:
        run: a run folder, a checkpoint folder, or ``latest``.
        decode: settings that replace the run's; None: as in the run.
        settings: ``device``, ``precision`` and ``classes`` of ``Predictor``.
    Raises:
        ConfigError: no such run. ContractError: the checkpoint does not fit its configuration.
    """
    ref = resolve_run(run, outputs=outputs)
    config = saved_config(ref.run_dir)
    for key, value in decode.items():
        if value is not None:
            OmegaConf.update(config, f"decode.{key}", value)
    budget = (RunRecord.read(ref.run_dir).get("decode") or {}).get("max_new_tokens")
    return Predictor(config, checkpoint=ref.checkpoint_dir, budget=budget, **settings), ref
