"""COCO and LVIS instances files with their images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from coordvlm.data.coco_file import read_coco
from coordvlm.data.detection import BoxSource, SplitChoice, parse_splits


@dataclass(frozen=True, kw_only=True)
class CocoFiles(SplitChoice):
    """Where a split lives: annotation file and image folder, relative to the root or absolute."""

    json: str
    images: str


class Coco(BoxSource):
    """A ``BoxSource`` of COCO instances. Category names are the descriptions.

    Args:
        root, seed, class_list, num_absent, on_error: see ``BoxSource``.
        train, val, test: the fields of ``CocoFiles``, or None. ``val`` stands in for a missing ``test``.
        replace_underscores: write LVIS's ``traffic_light`` as ``traffic light``.
    Raises:
        DataError: see ``read_coco`` and ``checks.RULES``.
    """

    def __init__(
        self, *, root: str | Path, train: Mapping[str, object] | None, val: Mapping[str, object] | None,
        test: Mapping[str, object] | None, seed: int, class_list: str, num_absent: int, on_error: str, replace_underscores: bool,
    ) -> None:
        super().__init__(root=root, seed=seed, class_list=class_list, num_absent=num_absent, on_error=on_error)
        self.use({
            name: (
                read_coco(self.root / files.json, replace_underscores=replace_underscores, allow_duplicate_images=self.is_lenient(name)),
                files, self.root / files.images,
            )
            for name, files in parse_splits(CocoFiles, train=train, val=val, test=test).items()
        })
