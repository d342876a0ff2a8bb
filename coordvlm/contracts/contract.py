"""The coordinate contract: everything that decides what an emitted number means. Stored with every checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from coordvlm.utils.errors import ContractError


@dataclass(frozen=True)
class ResizeRule:
    """How an image gets its model size.

    Args:
        mode: ``smart`` (sides to multiples of patch x merge within the pixel limits, aspect kept), ``square`` or ``fixed``.
        patch, merge: patch size in px and merge factor of the vision tower; a side is a multiple of their product.
        min_pixels, max_pixels: limits on width x height for ``smart``.
        size: (width, height) for ``square`` (equal sides) and ``fixed``.
        resample: interpolation; only ``bicubic`` is used by the Qwen processors.
    """

    mode: str
    patch: int
    merge: int
    min_pixels: int | None = None
    max_pixels: int | None = None
    size: tuple[int, int] | None = None
    resample: str = "bicubic"

    @property
    def factor(self) -> int:
        return self.patch * self.merge


@dataclass(frozen=True)
class Contract:
    """The training contract of SPEC section 3.

    Args:
        coords: the grid's name. num_bins, scale: see ``coords.grid.Grid``.
        format: how an object is written (``objects``). order: ``scan``, ``random`` or ``size``.
        prompt: the prompt's text. class_list: whether the prompt lists class names.
        markers: the format's marker tokens. coord_token: pattern with ``{k}``. end_token: end of turn.
        resize: resolved resize rule.
        axes, extents: fixed; written down so that a reader of the file need not guess.
        details: what else a format settles (counting: how objects are marked, where the text stands), plain JSON values; not written
            down where there is nothing, so that contracts from before there were any are equal to those of today.
    """

    coords: str
    num_bins: int
    scale: int
    format: str
    order: str
    prompt: str
    class_list: bool
    markers: tuple[str, ...]
    coord_token: str
    end_token: str
    resize: ResizeRule
    axes: str = "xyxy"
    extents: str = "[0, W] x [0, H]"
    details: Mapping[str, object] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """Plain JSON types."""
        plain: dict[str, object] = json.loads(json.dumps(asdict(self)))
        if not plain["details"]:
            del plain["details"]
        return plain

    def hash(self) -> str:
        """12 hex digits over all fields."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]

    @classmethod
    def from_dict(cls, data: Mapping[str, object], where: object = "contract") -> Contract:
        """Rebuild from ``to_dict``; unknown or missing fields are a ContractError that names them."""
        known = {f.name for f in fields(cls)}
        if set(data) | {"details"} != known:
            missing, unknown = sorted(known - set(data) - {"details"}), sorted(set(data) - known)
            raise ContractError(f"{where}: contract fields differ: missing {missing}, unknown {unknown}")
        values = dict(data)
        resize = dict(values["resize"])  # type: ignore[call-overload]
        if resize.get("size") is not None:
            resize["size"] = tuple(resize["size"])
        values["resize"] = ResizeRule(**resize)
        values["markers"] = tuple(values["markers"])  # type: ignore[arg-type]
        return cls(**values)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> Contract:
        """Read ``contract.json``."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise ContractError(f"{path}: cannot read the coordinate contract: {error}") from error
        return cls.from_dict(data, where=path)

    def require_equal(self, other: Contract, *, mine: str, theirs: str) -> None:
        """Refuse a contradiction, naming every field that differs."""
        self._require(other, list(self.to_dict() | other.to_dict()), mine, theirs)

    def require_same_tokens(self, other: Contract, *, mine: str, theirs: str) -> None:
        """Refuse weights whose tokens mean something else. Prompt, format, order and resize rule may differ: training goes on."""
        self._require(other, ["coords", "num_bins", "scale", "markers", "coord_token", "end_token", "axes", "extents"], mine, theirs)

    def _require(self, other: Contract, names: list[str], mine: str, theirs: str) -> None:
        a, b = self.to_dict(), other.to_dict()
        diff = [f"{k}: {mine} has {a.get(k)!r}, {theirs} has {b.get(k)!r}" for k in names if a.get(k) != b.get(k)]
        if diff:
            raise ContractError("the coordinate contracts differ, so boxes would be read wrongly:\n  " + "\n  ".join(diff))
