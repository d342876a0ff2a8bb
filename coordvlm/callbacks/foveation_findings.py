"""What an evaluation of clips leaves beside its metrics: how queries look, on a few clips, as numbers and as pictures."""

from __future__ import annotations

import copy
import csv
import io
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coordvlm.contracts import ClipBatch
from coordvlm.data.controls import choose
from coordvlm.data.loader import Collate, EncodedSplit, EvalLoader
from coordvlm.losses.latent_mse import latent_mse
from coordvlm.metrics.looking import ArmLooks, FoveationFindings, SeenClip, summarise
from coordvlm.models.foveated.diagnostics import FrameSums, feature_cosine, frame_sums, query_facts
from coordvlm.models.foveated.model import ARMS, Foveated, Pass
from coordvlm.reports.look_overlay import look_gif, look_picture
from coordvlm.utils.errors import ConfigError
from coordvlm.utils.files import atomic_write_bytes, atomic_write_json, atomic_write_text

_log = logging.getLogger(__name__)

#: Ways of looking that are diagnosed: those that see the frames and the question.
DIAGNOSED = ("coarse", "fine", "auto", "swap", "random")
#: Sub-folder of the run for pictures.
PICTURES = "looking"
#: Clips in a forward pass with attention maps.
_BATCH = 16


def write_foveation_findings(folder: Path, experiment: Any, *, asked: str) -> FoveationFindings | None:
    """foveation_stats.json and .csv, and ``looking/clip_<id>.png`` and ``.gif``; None where ``decode.diagnosed`` is 0.

    Args:
        experiment: a ``build.Experiment`` of clips. asked: the split's name as asked for.
    """
    clips, pictures = (count_of(experiment.decode, name) for name in ("diagnosed", "pictures"))
    model: Foveated = experiment.module.backbone
    if not clips:
        return None
    if any(type(p).__name__ == "DTensor" for p in model.parameters()):
        _log.warning("looking is not diagnosed where weights are shared out over devices; python -m coordvlm.eval does it afterwards")
        return None
    training = model.training
    model.eval()
    try:
        found = diagnose(experiment, asked=asked, clips=clips, pictures=pictures)
    finally:
        model.train(training)
    if found is None:
        return None
    atomic_write_json(folder / "foveation_stats.json", findings_to_json(found))
    atomic_write_text(folder / "foveation_stats.csv", findings_csv(found))
    for clip in found.seen:
        buffer = io.BytesIO()
        look_picture(clip).save(buffer, format="PNG")
        (folder / PICTURES).mkdir(exist_ok=True)
        atomic_write_bytes(folder / PICTURES / f"clip_{clip.clip_id}.png", buffer.getvalue())
        if set(ARMS) <= set(clip.maps):
            atomic_write_bytes(folder / PICTURES / f"clip_{clip.clip_id}.gif", look_gif(clip))
    return found


def count_of(decode: Mapping[str, Any], name: str) -> int:
    """``decode.diagnosed`` or ``decode.pictures``; runs from before there were such settings have none, and diagnose nothing.

    Raises:
        ConfigError: not an integer of at least 0.
    """
    value = decode.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(f"decode.{name} must be an integer of at least 0 clips, got {value!r}")
    return value


@torch.no_grad()
def diagnose(experiment: Any, *, asked: str, clips: int, pictures: int) -> FoveationFindings | None:
    """Of at most ``clips`` clips spread evenly over the split; None where none could be read. ``pictures`` of them are kept to be drawn."""
    looker = copy.copy(experiment.module.answerer)
    looker.arms = tuple(a for a in looker.arms if a in DIAGNOSED)
    model: Foveated = looker.model
    device = next(model.parameters()).device
    needs = experiment.losses.needs
    sums = _Sums(points="point_xy" in needs, draws="latent" in needs, point_tokens=looker.point_tokens)
    for batch in _batches(experiment, asked, clips):
        batch = batch.to(device)
        sums.add(model, batch, looker.passes(batch, attention=True), pictures)
    return sums.findings()


class _Sums:
    """What is collected over batches. points: whether a head reads points. draws: whether frames' latents are drawn. point_tokens: whether
    the tokens of points are trained; a loss of others says nothing."""

    def __init__(self, *, points: bool, draws: bool, point_tokens: bool) -> None:
        self.point_tokens = point_tokens
        self.points, self.draws, self.clips, self.grid = points, draws, 0, (0, 0)
        self.maps: dict[str, list[NDArray[np.float32]]] = defaultdict(list)
        self.places: dict[str, list[NDArray[np.float32]]] = defaultdict(list)
        self.facts: dict[str, list[tuple[int, dict[str, float]]]] = defaultdict(list)
        self.frames: dict[str, list[FrameSums]] = defaultdict(list)
        self.latents: dict[str, list[tuple[int, NDArray[np.float64]]]] = defaultdict(list)
        self.cosines: list[tuple[int, float]] = []
        self.seen: list[SeenClip] = []

    def add(self, model: Foveated, batch: ClipBatch, passes: Mapping[str, tuple[ClipBatch, Pass]], pictures: int) -> None:
        cache = model.encode(batch.frames)
        self.clips, self.grid = self.clips + len(batch), cache.grid
        place = batch.evidence.flatten(0, 1).cpu().numpy()
        averages: dict[str, NDArray[np.float32]] = {}
        for arm, (_, found) in passes.items():
            assert found.looked.attention is not None
            maps = found.looked.attention.cpu().numpy()
            self.maps[arm].append(maps)
            self.places[arm].append(place)
            self.facts[arm].append((len(batch), asdict(query_facts(model, batch, cache, found))))
            if arm in ARMS:
                self.frames[arm].append(frame_sums(model, batch, found.z, arm, points=self.points))
                if self.draws:
                    self.latents[arm].append((len(batch), _frame_latents(model, batch, found)))
                averages[arm] = maps.mean((0, 2)).reshape(len(batch), batch.num_frames, *cache.grid)
        if set(ARMS) <= passes.keys():
            self.cosines.append((len(batch), feature_cosine(passes["coarse"][1], passes["fine"][1])))
        pixels = batch.frames.permute(0, 1, 3, 4, 2).cpu().numpy()
        evidence = batch.evidence.cpu().numpy()
        for b in range(min(len(batch), max(0, pictures - len(self.seen)))):
            self.seen.append(SeenClip(int(batch.ids[b]), pixels[b], {arm: maps[b] for arm, maps in averages.items()}, evidence[b]))

    def findings(self) -> FoveationFindings | None:
        if not self.clips:
            return None
        arms = {arm: self._arm(arm) for arm in self.maps}
        return FoveationFindings(self.clips, self.grid, arms, _mean(self.cosines), tuple(self.seen))

    def _arm(self, arm: str) -> ArmLooks:
        facts = self.facts[arm]
        parts, more = self.frames[arm], {}
        if parts and (self.point_tokens or not any(p.points for p in parts)):
            more["frame_loss"] = np.sum([p.nll for p in parts], 0) / sum(p.tokens for p in parts)
        if parts:
            errors = [p.error for p in parts if p.error is not None]
            if errors and (number := sum(p.points for p in parts)):
                more["frame_error"] = np.sum(errors, 0) / number
        if drawn := self.latents[arm]:
            more["frame_latent"] = np.sum([total for _, total in drawn], 0) / sum(n for n, _ in drawn)
        queries = {name: _mean([(n, values[name]) for n, values in facts]) for name in facts[0][1]}
        maps, places = (np.concatenate(x, axis, dtype=np.float64) for x, axis in ((self.maps[arm], 1), (self.places[arm], 0)))
        return summarise(arm, maps, places, self.grid, queries=queries, **more)


def _mean(values: Sequence[tuple[int, float]]) -> float:
    """Of batches, by their clips; those without a value (a batch of one clip has no two) are left out."""
    known = [(n, v) for n, v in values if np.isfinite(v)]
    return sum(n * v for n, v in known) / sum(n for n, _ in known) if known else float("nan")


def _frame_latents(model: Foveated, batch: ClipBatch, found: Pass) -> NDArray[np.float64]:
    """float64[T], the reconstruction loss of each frame, summed over clips."""
    heads: Any = model.heads["latents"]
    states = found.hidden[:, batch.mode_col + 1 : batch.answer_col].flatten(0, 1)
    loss = latent_mse(heads(states), heads.targets(batch.frames.flatten(0, 1)))
    return loss.view(len(batch), batch.num_frames).double().sum(0).cpu().numpy()


def _batches(experiment: Any, asked: str, clips: int) -> Any:
    split, encoder = experiment.source.split(asked), experiment.model.encoder
    position = {int(i): n for n, i in enumerate(split.ids)}
    chosen = np.asarray([position[int(i)] for i in choose(experiment.truth.image_ids, clips)], dtype=np.int64)
    return EvalLoader(
        EncodedSplit(split, encoder, with_answer=True), chosen, Collate(encoder),
        batch_size=min(_BATCH, experiment.cfg.data.eval_batch_size), num_workers=0, pin_memory=False,
        skip_errors=experiment.cfg.data.on_error == "skip",
    )


# ---------------------------------------------------------------------- files
_MAPS = ("entropy", "peak", "focus", "wander")


def findings_to_json(found: FoveationFindings) -> dict[str, Any]:
    """Arrays as lists over layers of lists over heads; what is unknown is null."""
    return {
        "clips": found.clips, "grid": list(found.grid), "feature_cosine": _plain(found.feature_cosine),
        "arms": {arm: _arm_json(looks) for arm, looks in found.arms.items()}, "pictured": [c.clip_id for c in found.seen],
    }


def _arm_json(looks: ArmLooks) -> dict[str, Any]:
    maps = {name: getattr(looks, name) for name in (*_MAPS, "centre")}
    place = {name: getattr(looks.place, name) for name in ("hit", "mass", "distance")} if looks.knows_places else {}
    return {
        **{name: _plain(value) for name, value in (maps | place).items()}, "chance": looks.chance,
        "queries": {name: _plain(value) for name, value in looks.queries.items()}, "frame_loss": _plain(looks.frame_loss),
        "frame_error_px384": _plain(looks.frame_error), "frame_latent_mse": _plain(looks.frame_latent),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [_plain(v) for v in value]
    return float(value) if np.isfinite(value) else None


def findings_csv(found: FoveationFindings) -> str:
    """One row per arm, layer and head."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["arm", "layer", "head", *_MAPS, "centre_x", "centre_y", "hit", "mass", "distance"])
    for arm, looks in found.arms.items():
        for layer, head in np.ndindex(looks.entropy.shape):
            values = [getattr(looks, name)[layer, head] for name in _MAPS] + list(looks.centre[layer, head])
            values += [getattr(looks.place, name)[layer, head] for name in ("hit", "mass", "distance")]
            writer.writerow([arm, layer, head, *(repr(float(v)) if np.isfinite(v) else "" for v in values)])
    return out.getvalue()
