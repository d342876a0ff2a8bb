"""Which class names a prompt lists."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from coordvlm.data.seeding import keyed_generator
from coordvlm.utils.errors import ConfigError

MODES = ("none", "present", "all", "with_absent")


@dataclass(frozen=True)
class ClassList:
    """A policy for ``Sample.class_list``. Names keep the order of the source, so the order never tells which are present.

    Args:
        mode: ``none``; ``all`` names of the source; ``present``: those of the image (tells the truth's classes in evaluation
            too); ``with_absent``: those of the image and ``num_absent`` drawn from the others by (seed, epoch, sample id).
        num_absent: how many absent names ``with_absent`` adds, as far as there are any.
        seed: of that draw.
    """

    mode: str
    num_absent: int
    seed: int

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(f"data.source.class_list must be one of {', '.join(MODES)}, got {self.mode!r}")
        if self.num_absent < 0:
            raise ConfigError(f"data.source.num_absent must not be negative, got {self.num_absent}")

    def choose(
        self, names: Sequence[str], present: Collection[str], *, epoch: int, sample_id: int | str
    ) -> tuple[str, ...] | None:
        """The names for one prompt, or None for a prompt without a list."""
        if self.mode == "none":
            return None
        if self.mode == "all":
            return tuple(names)
        listed = set(present)
        if self.mode == "with_absent":
            absent = [name for name in names if name not in listed]
            rng = keyed_generator(self.seed, "class_list", epoch, sample_id)
            listed.update(absent[i] for i in rng.permutation(len(absent))[: self.num_absent].tolist())
        return tuple(name for name in names if name in listed)
