"""What sources share whose splits have names of their own: testA, val_coco ... beside train and val."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from coordvlm.data.source import Split
from coordvlm.utils.errors import ConfigError, DataError
from coordvlm.utils.overrides import hint, nearest

log = logging.getLogger(__name__)
S = TypeVar("S", bound=Split)


class NamedSplits(Generic[S]):
    """Where a data set lies, whether broken training data is left out, and which split ``test`` is.

    Args:
        root: folder that relative paths start from.
        on_error: ``raise`` or ``skip``.
        test: the split that ``test`` stands for; None: the one of that name, or ``val`` where there is none.
    """

    #: What a message calls the samples.
    samples: ClassVar[str]

    def __init__(self, *, root: str | Path, on_error: str, test: str | None) -> None:
        if on_error not in ("raise", "skip"):
            raise ConfigError(f"data.on_error must be raise or skip, got {on_error!r}")
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise DataError("data.root must be a folder (or set COORDVLM_DATA)", where=self.root.absolute())
        self._skip, self._test = on_error == "skip", test
        self._splits: dict[str, S] = {}
        self.notes: tuple[str, ...] = ()

    def is_lenient(self, name: str) -> bool:
        """Whether what is broken in a split is left out and counted."""
        return name == "train" and self._skip

    def check_test(self, names: Collection[str]) -> None:
        """Refuse a ``test`` that names no split, or another one where there is one of that name.

        Raises:
            ConfigError: it does.
        """
        if self._test not in (None, "test") and ("test" in names or self._test not in names):
            why = "that split is there itself" if "test" in names else f"no split {self._test}{hint(nearest(str(self._test), names))}"
            raise ConfigError(f"data.source.test={self._test} cannot stand for test: {why}; there are {', '.join(names)}")

    def note_test(self, names: Collection[str]) -> None:
        """Say what ``test`` stands for, where there is none of that name."""
        if "test" not in names and self._stand_in == "val":
            self.notes += (
                f"no test split is configured: val stands in, so checkpoints are chosen on the {self.samples} they are scored on",
            )
            log.warning(self.notes[-1])
        elif "test" not in names:
            self.notes += (f"test stands for {self._stand_in} (data.source.test)",)

    @property
    def _stand_in(self) -> str:
        return self._test or "val"

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of all splits, in their order in the configuration; ``test`` is known beside them."""
        return tuple(self._splits)

    def split(self, name: str) -> S:
        found = self._splits.get(name) or (self._splits.get(self._stand_in) if name == "test" else None)
        if found is None:
            raise ConfigError(f"no split {name!r}; there are {', '.join(self.splits)}{hint(nearest(name, self.splits))}")
        return found


def inside(path: Path, folders: Collection[Path], *, where: object) -> Path:
    """The path, if it lies in one of the (resolved) folders, also after following links.

    Raises:
        DataError: it does not.
    """
    real = path.resolve()
    if not any(real.is_relative_to(folder) for folder in folders):
        raise DataError(
            "an image path must stay inside data.root or the split's image folder, also after following links", where=where,
            value=f"{path} -> {real}",
        )
    return path
