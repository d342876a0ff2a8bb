"""Several data sets trained as one, without training on an image that any of them is evaluated on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from coordvlm.contracts import TARGET, GroundTruth, PhraseTruth
from coordvlm.data.detection import parse_fields
from coordvlm.data.filtered import CountsObjects, SomeImages
from coordvlm.data.image_keys import image_key, same_content
from coordvlm.data.mixed import ID_STRIDE, JoinedSplit, MixedSplit, Part
from coordvlm.data.source import SPLITS, DataSource, Split
from coordvlm.utils.errors import ConfigError, DataError
from coordvlm.utils.overrides import hint, nearest


@runtime_checkable
class KnowsImages(Protocol):
    """A ``Split`` of files. One without this makes its images itself, so that they are in no other data set."""

    def image_paths(self) -> list[Path]:
        """len: the image of each sample."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One of the data sets. weight: its share of an epoch, relative to the others'; 0: it is only evaluated."""

    source: DataSource
    weight: float

    def splits(self) -> list[str]:
        """The splits that there are, without names that stand for another one."""
        named: Sequence[str] = getattr(self.source, "splits", SPLITS)
        return [name for name in named if self._resolved(name) == name]

    def _resolved(self, name: str) -> str | None:
        try:
            return self.source.split(name).name
        except ConfigError:
            return None


class PhraseMix:
    """A ``DataSource`` of other ones.

    ``train`` draws from all members by weight (see ``MixedSplit``); a member of boxes without phrases gives detection samples, whose
    ``phrase`` is None. Samples whose image is in any evaluation split of any member are left out and counted as ``evaluation_image``.
    ``val`` and ``test`` are those of all members with phrases together; ``<member>_<split>`` is one of them alone.

    Args:
        members: name -> the fields of ``Member``.
        samples_per_epoch: None: as many as there are training samples.
        compare_content: also leave out an image whose file is a copy of an evaluation image under another name. Files are read only
            where sizes are equal.
        max_objects, on_too_many: those of ``sequence``; ``drop`` leaves out detection images with more targets.
        seed: of the draw.
    Raises:
        ConfigError: no member with phrases; weights that are negative or all 0.
        DataError: a member has no training image left, or ids beyond ``ID_STRIDE``.
    """

    def __init__(
        self, *, members: Mapping[str, Mapping[str, object]], samples_per_epoch: int | None, compare_content: bool, max_objects: int,
        on_too_many: str, seed: int,
    ) -> None:
        self._members = {name: parse_fields(Member, f"data.source.members.{name}", given) for name, given in members.items() if given}
        for name, member in self._members.items():
            if not (math.isfinite(member.weight) and member.weight >= 0):
                raise ConfigError(f"data.source.members.{name}.weight must not be negative, got {member.weight}")
        trained = {name: m for name, m in self._members.items() if m.weight > 0}
        if not trained:
            raise ConfigError("data.source.members: one weight at least must be above 0")
        for name, member in trained.items():
            if "train" not in member.splits():
                raise ConfigError(f"data.source.members.{name} has no train split; weight=0 only evaluates it")
        self._asked = [name for name, m in self._members.items() if _has_phrases(m)]
        if not self._asked:
            raise ConfigError("data.source.members needs a data set with phrases: evaluation uses nothing else")
        self._offsets = {name: at * ID_STRIDE for at, name in enumerate(self._members)}
        self.notes: tuple[str, ...] = tuple(f"{n}: {note}" for n, m in self._members.items() for note in getattr(m.source, "notes", ()))
        self._dropped: Counter[str] = Counter()
        evaluated = {p for m in self._members.values() for s in m.splits() if s != "train" for p in _paths(m.source.split(s))}
        leaks = _Leaks(evaluated, compare_content)
        most = max_objects if on_too_many == "drop" else None
        parts = [Part(name, self._trainable(name, leaks, most), member.weight, self._offsets[name]) for name, member in trained.items()]
        total = samples_per_epoch or sum(len(part.split) for part in parts)
        self._train = MixedSplit(parts, num_samples=total, seed=seed)
        for part, share in zip(parts, self._train.shares, strict=True):
            self.notes += (f"{part.member}: {share} of {total} samples of an epoch, drawn from {len(part.split)}",)

    def _trainable(self, name: str, leaks: _Leaks, max_objects: int | None) -> Split:
        """The training samples of a member that may be drawn; the others are counted."""
        source = self._members[name].source
        split, dropped = source.split("train"), Counter(source.dropped("train"))
        paths = _paths(split)
        known = leaks.find(dict.fromkeys(paths))
        leaking = np.asarray([path in known for path in paths] or [False] * len(split), dtype=bool)
        if known:
            dropped["evaluation_image"] += int(leaking.sum())
            num = f"{int(leaking.sum())} of {len(split)}"
            self.notes += (f"{name}: {num} training samples are left out, as their {len(known)} images are evaluated on",)
        keep = ~leaking
        if max_objects is not None and isinstance(split, CountsObjects) and split.most_objects > max_objects:
            crowded = keep & (split.num_objects() > max_objects)
            dropped["too_many_objects"] += int(crowded.sum())
            keep &= ~crowded
        self._dropped.update(dropped)
        if not keep.any():
            rule = "a member must have training images that no member is evaluated on; weight=0 only evaluates it"
            raise DataError(rule, where=f"data.source.members.{name}", value=f"none of {len(split)} samples is left")
        return split if keep.all() else SomeImages(split, np.flatnonzero(keep))

    @property
    def splits(self) -> tuple[str, ...]:
        """``train``, ``val``, ``test``, and every evaluation split of a member with phrases alone."""
        joined = [name for name in ("val", "test") if any(name in self._members[m].splits() for m in self._asked)]
        return ("train", *joined, *self._alone())

    def _alone(self) -> dict[str, tuple[str, str]]:
        return {f"{m}_{split}": (m, split) for m in self._asked for split in self._members[m].splits() if split != "train"}

    @property
    def class_names(self) -> tuple[str, ...]:
        return (TARGET,)

    def _chosen(self, name: str) -> list[tuple[str, str]]:
        """(member, split) of an evaluation split; of ``train``, those with phrases."""
        if name in SPLITS:
            found = [(m, name) for m in self._asked if name != "train" or "train" in self._members[m].splits()]
        else:
            found = [at for alone, at in self._alone().items() if alone == name]
        if not found:
            raise ConfigError(f"no split {name!r}; there are {', '.join(self.splits)}{hint(nearest(name, self.splits))}")
        return found

    def split(self, name: str) -> Split:
        if name == "train":
            return self._train
        parts = [Part(m, self._members[m].source.split(s), 1.0, self._offsets[m]) for m, s in self._chosen(name)]
        only = {part.split.name for part in parts}
        return JoinedSplit("val" if only == {"val"} and name == "test" else name, parts)

    def truth(self, name: str) -> GroundTruth:
        """Of phrases, with the ids of ``split``. Phrases on one image share it across members. Of ``train``: all that the members have."""
        ids: list[int] = []
        phrases: list[str] = []
        wh, boxes, keys = [], [], []
        for member, split in self._chosen(name):
            source = self._members[member].source
            truth, positions = source.truth(split), source.split(split)
            assert isinstance(truth, PhraseTruth)
            box = dict(zip(truth.ann_image_id.tolist(), truth.ann_xyxy_px.tolist(), strict=True))
            ids += (truth.image_ids + self._offsets[member]).tolist()
            phrases += truth.phrases
            wh.append(truth.image_wh)
            boxes += [box.get(i) for i in truth.image_ids.tolist()]
            paths = _paths(positions)
            at = dict(zip(positions.ids.tolist(), paths, strict=True)) if paths else {}
            cached = {path: image_key(path) for path in dict.fromkeys(paths)}
            own = zip(truth.image_ids.tolist(), truth.source_image.tolist(), strict=True)
            keys += [cached[at[i]] if i in at else f"{member} {split} {image}" for i, image in own]
        number = {key: n for n, key in enumerate(dict.fromkeys(keys), start=1)}
        return PhraseTruth.of(
            ids=ids, phrases=phrases, source_image=[number[key] for key in keys], image_wh=np.concatenate(wh), boxes=boxes,
        )

    def dropped(self, name: str) -> Mapping[str, int]:
        """What the members left out; in ``train`` also ``evaluation_image`` and ``too_many_objects``."""
        if name == "train":
            counts = self._dropped
        else:
            counts = Counter()
            for member, split in self._chosen(name):
                counts.update(self._members[member].source.dropped(split))
        return {reason: n for reason, n in sorted(counts.items()) if n}

    def digests(self) -> Mapping[str, str]:
        return {f"{name}_{split}": d for name, m in self._members.items() for split, d in m.source.digests().items()}


class _Leaks:
    """Finds images that are evaluated on.

    Args:
        evaluated: where they are. compare_content: look for copies under other names too.
    """

    def __init__(self, evaluated: set[Path], compare_content: bool) -> None:
        self._evaluated, self._compare = evaluated, compare_content
        self._keys = {image_key(path) for path in evaluated}

    def find(self, paths: Iterable[Path]) -> set[Path]:
        """Those of ``paths`` that are."""
        every = list(paths)
        named = {path for path in every if image_key(path) in self._keys}
        return named | same_content((p for p in every if p not in named), self._evaluated) if self._compare else named


def _has_phrases(member: Member) -> bool:
    names = member.splits()
    return bool(names) and isinstance(member.source.truth("val" if "val" in names else names[0]), PhraseTruth)


def _paths(split: Split) -> list[Path]:
    return split.image_paths() if isinstance(split, KnowsImages) else []
