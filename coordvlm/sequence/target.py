"""Sample -> answer: which objects, in which order, written how. Rounding itself stays in ``coords.grid``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from coordvlm.contracts import COORD, END, MARKER, TEXT, Object, Sample
from coordvlm.coords.grid import Digits, Grid, Size, to_norm
from coordvlm.coords.vocab import CoordVocab
from coordvlm.sequence.none import NONE
from coordvlm.sequence.order import ORDERS, order_objects
from coordvlm.utils.errors import ConfigError, DataError

ON_TOO_MANY = ("drop", "truncate")


#: Texts up to this length are tokenised once; longer ones (whole answers in digits) hardly repeat.
_CACHED_LENGTH, _CACHED_TEXTS = 64, 65_536


@dataclass(frozen=True)
class Text:
    """Ordinary text; tokenised together with its neighbours."""

    text: str


@dataclass(frozen=True)
class Marker:
    """One marker token."""

    text: str


@dataclass(frozen=True)
class Coord:
    """One coordinate token."""

    bin: int


Piece = Text | Marker | Coord


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


class Target:
    """How objects are written; a format says in which pieces, this class orders, rounds, tokenises and keeps count.

    Args:
        tokenizer: of the model, coordinate and marker tokens included. vocab: their ids.
        coords: ``Grid`` of coordinate tokens, or ``Digits``.
        order: see ``order_objects``. seed: of the random order.
        max_objects: at most this many per training image. on_too_many: ``drop`` (the image from training) or ``truncate`` (the
            objects beyond, counted).
    """

    format: ClassVar[str]

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        vocab: CoordVocab,
        coords: Grid | Digits,
        *,
        order: str,
        max_objects: int,
        on_too_many: str,
        seed: int,
    ) -> None:
        if order not in ORDERS:
            raise ConfigError(f"sequence.order must be one of {', '.join(ORDERS)}, got {order!r}")
        if on_too_many not in ON_TOO_MANY:
            raise ConfigError(f"sequence.on_too_many must be one of {', '.join(ON_TOO_MANY)}, got {on_too_many!r}")
        if max_objects < 1:
            raise ConfigError(f"sequence.max_objects must be at least 1, got {max_objects}")
        self.tokenizer, self.vocab, self.coords, self.order, self.seed = tokenizer, vocab, coords, order, seed
        self.max_objects, self.on_too_many = max_objects, on_too_many
        self._reserved = set(vocab.new_ids.tolist()) | {vocab.end_id, vocab.image_id, vocab.pad_id, *tokenizer.get_added_vocab().values()}
        self._text_ids: dict[str, list[int]] = {}
        self._checked: set[str] = set()

    @property
    def marker_token_ids(self) -> frozenset[int]:
        """Ids of the format's marker tokens."""
        return frozenset(self.vocab.marker_ids.values())

    # ----------------------------------------------------------------- pieces
    def pieces(self, descs: Sequence[str], numbers_M4: NDArray[Any]) -> Iterator[Piece]:
        """The answer without its end of turn.

        Args:
            descs: M descriptions in order; an empty one is not written (the thing a phrase names needs none).
            numbers_M4: what to write, bins (int64) or numbers (float64) by ``coords``.
        """
        raise NotImplementedError

    def write(self, descs: Sequence[str], numbers_M4: NDArray[Any]) -> str:
        """The answer as text, without end of turn and tokenizer; coordinate tokens as ``<|coord_12|>``."""

        def shown(piece: Piece) -> str:
            if isinstance(piece, Coord):
                return str(self.tokenizer.convert_ids_to_tokens(int(self.vocab.coord_ids[piece.bin])))
            return piece.text

        return "".join(shown(p) for p in self.pieces(descs, numbers_M4))

    def describe(self, desc: str, where: object) -> str:
        """The description itself; refuses an empty one and one that contains reserved tokens."""
        if desc not in self._checked:
            if not desc.strip():
                raise DataError("a description must not be empty", where=where, value=desc)
            if bad := self._reserved & set(self._encode(desc)):
                raise DataError(
                    "a description must not contain coordinate, marker or control tokens "
                    f"(found {self.tokenizer.decode(sorted(bad)[:1])!r})",
                    where=where,
                    value=desc,
                )
            self._checked.add(desc)
        return desc

    def _encode(self, text: str) -> list[int]:
        if len(text) > _CACHED_LENGTH:
            return list(self.tokenizer.encode(text, add_special_tokens=False))
        if text not in self._text_ids:
            if len(self._text_ids) > _CACHED_TEXTS:
                self._text_ids.clear()
            self._text_ids[text] = self.tokenizer.encode(text, add_special_tokens=False)
        return self._text_ids[text]

    # ----------------------------------------------------------------- answer
    def keeps(self, sample: Sample) -> bool:
        """False when ``on_too_many=drop`` leaves this image out of training."""
        return self.on_too_many == "truncate" or len(sample.objects) <= self.max_objects

    def build(self, sample: Sample, *, epoch: int, model_size: Size = (0, 0)) -> Answer:
        """The supervised answer of a sample, at most ``max_objects`` long; ``num_dropped`` counts the rest.

        Whether an image with too many objects takes part in training at all is asked beforehand, through ``keeps``. The answer to a
        phrase is its box without a description, or ``none``.

        Args:
            model_size: (width, height) of the resized image in px; ``coords=pixel`` writes in these.
        """
        objects = list(sample.objects)
        for o in objects:
            assert o.box_xyxy_px is not None, f"sample {sample.id}: object {o.annotation_id} has no box"
            assert not o.iscrowd, f"sample {sample.id}: crowd {o.annotation_id} among the targets"
        ordered = order_objects(objects, self.order, (self.seed, epoch, sample.id))
        kept = ordered[: self.max_objects]
        if sample.phrase is None:
            descs = [self.describe(o.desc, f"image {sample.id}, annotation {o.annotation_id}") for o in kept]
        else:
            assert len(kept) <= 1, f"sample {sample.id}: a phrase names one thing, not {len(kept)}"
            descs = [""] * len(kept)
        values = np.asarray([to_norm(o.box_xyxy_px, sample.width, sample.height) for o in kept]).reshape(-1, 4)  # type: ignore[arg-type]
        pieces = self.pieces(descs, self._numbers(values, model_size)) if kept or sample.phrase is None else [Text(NONE)]
        ids, kind, bins = self._tokenise(pieces)
        slots = len(bins)
        return Answer(
            ids=np.asarray([*ids, self.vocab.end_id], dtype=np.int64),
            kind=np.asarray([*kind, END], dtype=np.uint8),
            slot_object=np.arange(slots) // 4,
            slot_axis=(np.arange(slots) % 4).astype(np.uint8),
            slot_bin=np.asarray(bins, dtype=np.int64),
            slot_value=np.clip(values, 0, 1).astype(np.float32).reshape(-1)[:slots],
            box_prev=np.asarray([i - 1 if i and descs[i] == descs[i - 1] else -1 for i in range(slots // 4)], dtype=np.int64),
            objects=tuple(kept),
            num_dropped=len(objects) - len(kept),
        )

    def _numbers(self, values_M4: NDArray[np.float64], model_size: Size) -> NDArray[Any]:
        if isinstance(self.coords, Grid):
            return np.asarray([self.coords.encode_box(v) for v in values_M4], dtype=np.int64).reshape(-1, 4)
        return np.asarray([self.coords.encode_box(v, model_size) for v in values_M4]).reshape(-1, 4)

    def _tokenise(self, pieces: Iterable[Piece]) -> tuple[list[int], list[int], list[int]]:
        """Ids, kinds, bins. Neighbouring text is tokenised as one, as it would be in the whole answer."""
        ids: list[int] = []
        kind: list[int] = []
        bins: list[int] = []
        text = ""

        def flush() -> None:
            if text:
                found = self._encode(text)
                ids.extend(found)
                kind.extend([TEXT] * len(found))

        for piece in pieces:
            if isinstance(piece, Text):
                text += piece.text
                continue
            flush()
            text = ""
            if isinstance(piece, Coord):
                ids.append(int(self.vocab.coord_ids[piece.bin]))
                kind.append(COORD)
                bins.append(piece.bin)
            else:
                ids.append(self.vocab.marker_ids[piece.text])
                kind.append(MARKER)
        flush()
        return ids, kind, bins

    def index_target(self, ids: NDArray[np.int64]) -> Mapping[str, NDArray[np.int64]]:
        """Slots from ids alone: ``slot_pos``, ``slot_bin`` int64[N]; none for digits."""
        bins = self.vocab.bins(ids)
        at = np.flatnonzero(bins >= 0)
        return {"slot_pos": at, "slot_bin": bins[at]}

    def text(self, answer: Answer) -> str:
        """The answer as text, special tokens shown."""
        return str(self.tokenizer.decode(answer.ids, skip_special_tokens=False))


class ObjectsTarget(Target):
    """``<obj_start>desc<|coord|>x4<obj_end>`` repeated, then end of turn (SPEC 3, format ``objects``); for a phrase without ``desc``.

    Args:
        start, end: the marker tokens. settings: see ``Target``.
    """

    format: ClassVar[str] = "objects"

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, vocab: CoordVocab, coords: Grid, *, start: str, end: str, **settings: Any
    ) -> None:
        super().__init__(tokenizer, vocab, coords, **settings)
        self.start, self.end = start, end

    def pieces(self, descs: Sequence[str], numbers_M4: NDArray[Any]) -> Iterator[Piece]:
        for desc, bins in zip(descs, numbers_M4, strict=True):
            yield Marker(self.start)
            if desc:
                yield Text(desc)
            yield from (Coord(int(k)) for k in bins)
            yield Marker(self.end)

    def index_target(self, ids: NDArray[np.int64]) -> Mapping[str, NDArray[np.int64]]:
        """``index_target`` with this format's vocabulary and markers; descriptions may be missing, as in the answer to a phrase."""
        return index_target(ids, self.vocab, start=self.start, end=self.end, needs_desc=False)


def index_target(
    ids: NDArray[np.int64], vocab: CoordVocab, *, start: str, end: str, needs_desc: bool = True
) -> Mapping[str, NDArray[np.int64]]:
    """Recover slots and objects of the ``objects`` format from ids alone (a full sequence or an answer).

    The spec's reusable parser; the pipeline itself never searches. Only complete objects count: a start marker, at least one description
    token, exactly four coordinates, an end marker.

    Args:
        ids: int64[T]. start, end: marker texts of the vocabulary. needs_desc: False counts objects without a description, too.
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
            if first > open_at + needs_desc and (bins[first:t] >= 0).all() and (body[: first - open_at - 1] < 0).all():
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
