"""Sample -> answer: which objects, in which order, written how. Rounding itself stays in ``coords.grid``."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from coordvlm.contracts import COORD, END, MARKER, TEXT, Object, Sample
from coordvlm.coords.grid import Grid, to_norm
from coordvlm.coords.vocab import CoordVocab
from coordvlm.utils.errors import ConfigError, DataError

ORDERS = ("scan", "random", "size")
ON_TOO_MANY = ("drop", "truncate")


@dataclass(frozen=True)
class Answer:
    """Answer ids with every position known; fields as in ``contracts.Encoded``."""

    ids: NDArray[np.int64]
    kind: NDArray[np.uint8]
    slot_object: NDArray[np.int64]
    slot_axis: NDArray[np.uint8]
    slot_bin: NDArray[np.int64]
    slot_value: NDArray[np.float32]
    box_prev: NDArray[np.int64]
    objects: tuple[Object, ...]
    num_dropped: int


def order_objects(objects: list[Object], order: str, seed: tuple[int, int, object]) -> list[Object]:
    """``scan``: (y1, x1, x2, y2, index) ascending on unquantised values; ``size``: area descending; ``random``: seeded by
    (seed, epoch, sample id)."""
    if order == "scan":
        return [o for _, o in sorted(enumerate(objects), key=lambda p: (*(p[1].box_xyxy_px[i] for i in (1, 0, 2, 3)), p[0]))]  # type: ignore[index]
    if order == "size":
        return sorted(objects, key=lambda o: -_area(o))
    if order == "random":
        run_seed, epoch, sample_id = seed
        rng = np.random.default_rng([run_seed, epoch, zlib.crc32(repr(sample_id).encode())])
        return [objects[i] for i in rng.permutation(len(objects))]
    raise ConfigError(f"sequence.order must be one of {', '.join(ORDERS)}, got {order!r}")


def _area(o: Object) -> float:
    x1, y1, x2, y2 = o.box_xyxy_px  # type: ignore[misc]
    return (x2 - x1) * (y2 - y1)


class ObjectsTarget:
    """``<obj_start>desc<|coord|>x4<obj_end>`` repeated, then end of turn (SPEC 3, format ``objects``).

    Args:
        order: see ``order_objects``. seed: of the random order.
        max_objects: at most this many per training image. on_too_many: ``drop`` (the image, a DataError) or ``truncate`` (the objects
            beyond, counted).
        start, end: the marker tokens.
    """

    format = "objects"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        vocab: CoordVocab,
        grid: Grid,
        *,
        order: str,
        max_objects: int,
        on_too_many: str,
        start: str,
        end: str,
        seed: int,
    ) -> None:
        if order not in ORDERS:
            raise ConfigError(f"sequence.order must be one of {', '.join(ORDERS)}, got {order!r}")
        if on_too_many not in ON_TOO_MANY:
            raise ConfigError(f"sequence.on_too_many must be one of {', '.join(ON_TOO_MANY)}, got {on_too_many!r}")
        if max_objects < 1:
            raise ConfigError(f"sequence.max_objects must be at least 1, got {max_objects}")
        self.tokenizer, self.vocab, self.grid, self.order, self.seed = tokenizer, vocab, grid, order, seed
        self.max_objects, self.on_too_many = max_objects, on_too_many
        self.start, self.end = start, end
        self.start_id, self.end_marker_id = vocab.marker_ids[start], vocab.marker_ids[end]
        self._reserved = set(vocab.new_ids.tolist()) | {vocab.end_id, vocab.image_id, vocab.pad_id, *tokenizer.get_added_vocab().values()}
        self._desc_ids: dict[str, list[int]] = {}

    def describe(self, desc: str, where: object) -> list[int]:
        """Token ids of a description, alone; refuses an empty one and one that contains reserved tokens."""
        if desc not in self._desc_ids:
            if not desc.strip():
                raise DataError("a description must not be empty", where=where, value=desc)
            ids = self.tokenizer.encode(desc, add_special_tokens=False)
            if bad := self._reserved & set(ids):
                raise DataError(
                    "a description must not contain coordinate, marker or control tokens "
                    f"(found {self.tokenizer.decode(sorted(bad)[:1])!r})",
                    where=where,
                    value=desc,
                )
            self._desc_ids[desc] = ids
        return self._desc_ids[desc]

    def keeps(self, sample: Sample) -> bool:
        """False when ``on_too_many=drop`` leaves this image out of training."""
        return self.on_too_many == "truncate" or len(sample.objects) <= self.max_objects

    def build(self, sample: Sample, *, epoch: int) -> Answer:
        """The supervised answer of a sample, at most ``max_objects`` long; ``num_dropped`` counts the rest.

        Whether an image with too many objects takes part in training at all is asked beforehand, through ``keeps``.
        """
        objects = list(sample.objects)
        for o in objects:
            assert o.box_xyxy_px is not None, f"sample {sample.id}: object {o.annotation_id} has no box"
            assert not o.iscrowd, f"sample {sample.id}: crowd {o.annotation_id} among the targets"
        ordered = order_objects(objects, self.order, (self.seed, epoch, sample.id))
        kept = ordered[: self.max_objects]
        ids: list[int] = []
        kind: list[int] = []
        bins = np.empty((len(kept), 4), dtype=np.int64)
        values = np.empty((len(kept), 4), dtype=np.float64)
        for i, o in enumerate(kept):
            values[i] = to_norm(o.box_xyxy_px, sample.width, sample.height)  # type: ignore[arg-type]
            bins[i] = self.grid.encode_box(values[i])
            desc = self.describe(o.desc, f"image {sample.id}, annotation {o.annotation_id}")
            ids += [self.start_id, *desc, *self.vocab.coord_ids[bins[i]].tolist(), self.end_marker_id]
            kind += [MARKER, *[TEXT] * len(desc), *[COORD] * 4, MARKER]
        ids.append(self.vocab.end_id)
        kind.append(END)
        return Answer(
            ids=np.asarray(ids, dtype=np.int64),
            kind=np.asarray(kind, dtype=np.uint8),
            slot_object=np.repeat(np.arange(len(kept)), 4),
            slot_axis=np.tile(np.arange(4, dtype=np.uint8), len(kept)),
            slot_bin=bins.reshape(-1),
            slot_value=np.clip(values, 0, 1).astype(np.float32).reshape(-1),
            box_prev=np.asarray([i - 1 if i and kept[i].desc == kept[i - 1].desc else -1 for i in range(len(kept))], dtype=np.int64),
            objects=tuple(kept),
            num_dropped=len(objects) - len(kept),
        )

    def index_target(self, ids: NDArray[np.int64]) -> Mapping[str, NDArray[np.int64]]:
        """``index_target`` with this format's vocabulary and markers."""
        return index_target(ids, self.vocab, start=self.start, end=self.end)

    def text(self, answer: Answer) -> str:
        """The answer as text, special tokens shown."""
        return str(self.tokenizer.decode(answer.ids, skip_special_tokens=False))


def index_target(ids: NDArray[np.int64], vocab: CoordVocab, *, start: str, end: str) -> Mapping[str, NDArray[np.int64]]:
    """Recover slots and objects of the ``objects`` format from ids alone (a full sequence or an answer).

    The spec's reusable parser; the pipeline itself never searches. Only complete objects count: a start marker, at least one description
    token, exactly four coordinates, an end marker.

    Args:
        ids: int64[T]. start, end: marker texts of the vocabulary.
    Returns:
        ``slot_pos`` int64[N] (positions of the coordinate tokens), ``slot_bin``, ``slot_axis``, ``slot_object`` int64[N],
        ``object_span`` int64[M, 2] ([start marker, after end marker)), ``desc_span`` int64[M, 2].
    """
    ids = np.asarray(ids, dtype=np.int64)
    bins = vocab.bins(ids)
    start_id, end_id = vocab.marker_ids[start], vocab.marker_ids[end]
    pos: list[int] = []
    spans: list[tuple[int, int]] = []
    descs: list[tuple[int, int]] = []
    open_at = -1
    for t, token in enumerate(ids.tolist()):
        if token == start_id:
            open_at = t
        elif token == end_id and open_at >= 0:
            first = t - 4
            body = bins[open_at + 1 : t]
            if first > open_at + 1 and (bins[first:t] >= 0).all() and (body[: first - open_at - 1] < 0).all():
                pos += range(first, t)
                spans.append((open_at, t + 1))
                descs.append((open_at + 1, first))
            open_at = -1
        elif token == vocab.end_id and open_at >= 0:
            open_at = -1
    at = np.asarray(pos, dtype=np.int64)
    return {
        "slot_pos": at,
        "slot_bin": bins[at],
        "slot_axis": np.tile(np.arange(4, dtype=np.int64), len(spans)),
        "slot_object": np.repeat(np.arange(len(spans), dtype=np.int64), 4),
        "object_span": np.asarray(spans, dtype=np.int64).reshape(-1, 2),
        "desc_span": np.asarray(descs, dtype=np.int64).reshape(-1, 2),
    }
