"""The Ultralytics layout: data.yaml, images, and one text file per image with ``class cx cy width height`` per line.

Source of the rules: Ultralytics 8, ``data/utils.py`` (``check_det_dataset``, ``img2label_paths``, ``verify_image_label``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from coordvlm.data.checks import Fault
from coordvlm.data.convention import BoxConvention
from coordvlm.data.detection import BoxSource, SplitChoice, parse_splits
from coordvlm.data.records import Records, ids_of_stems
from coordvlm.data.values import integral
from coordvlm.utils.errors import DataError
from coordvlm.utils.overrides import hint, nearest

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp"})
_LINE_RULE = "a label line must be: class cx cy width height (a box), or class and at least 3 points x y (a polygon)"


@dataclass(frozen=True, kw_only=True)
class YoloFiles(SplitChoice):
    """Which entry of data.yaml a split is: ``train``, ``val``, ``test``."""

    split: str


class Yolo(BoxSource):
    """A ``BoxSource`` of YOLO labels, in shares of the displayed image. Category ids are the class numbers of data.yaml.

    An entry of data.yaml is a folder of images (subfolders included), a text file that lists images, or several of these. The labels
    of ``.../images/a/b.jpg`` are ``.../labels/a/b.txt``. An image without a label file is background and counted
    (``no_label_file``); a polygon becomes its bounding box and is counted (``polygon_to_box``). An image's id is its file name's
    number where all names are numbers, else its position.

    Args:
        root, seed, class_list, num_absent, on_error: see ``BoxSource``.
        data_yaml: relative to the root. path: the data set's folder, in place of data.yaml's own ``path``.
        train, val, test: the fields of ``YoloFiles``, or None. A test split that data.yaml does not have counts as None.
    Raises:
        DataError: a data.yaml that means nothing, a split without a single label file, broken lines (``checks.RULES``).
    """

    def __init__(
        self, *, root: str | Path, data_yaml: str, path: str | None, train: Mapping[str, object] | None,
        val: Mapping[str, object] | None, test: Mapping[str, object] | None, seed: int, class_list: str, num_absent: int,
        on_error: str,
    ) -> None:
        super().__init__(root=root, seed=seed, class_list=class_list, num_absent=num_absent, on_error=on_error)
        layout = Layout.read(self.root, self.root / data_yaml, path)
        given = parse_splits(YoloFiles, train=train, val=val, test=test)
        if "test" in given and len(given) > 1 and not layout.entries.get(given["test"].split):
            del given["test"]
        convention = BoxConvention("norm", "cxcywh")
        rules = {
            Fault.BAD_OBJECT: _LINE_RULE,
            Fault.UNKNOWN_CATEGORY: f"the class must be one of names in {layout.file.name}",
            Fault.OUT_OF_FRAME: "a box must lie inside the image (an excess of up to 1 px is clipped); labels are shares, 0 to 1",
        }
        tables = {}
        for name, files in given.items():
            records = Records(layout.file, layout.folder, lenient=self.is_lenient(name), trains=name == "train")
            _read_split(records, layout, files.split)
            records.settle_sizes()
            tables[name] = (records.table(dict(zip(layout.names.values(), layout.names, strict=True)), convention, rules), files,
                            layout.folder)
        self.use(tables)


@dataclass(frozen=True)
class Layout:
    """What data.yaml says. ``names``: class number -> name; ``entries``: split -> paths as written."""

    file: Path
    folder: Path
    names: Mapping[int, str]
    entries: Mapping[str, list[str]]

    @classmethod
    def read(cls, root: Path, file: Path, path: str | None) -> Layout:
        """Read and check a data.yaml.

        Args:
            path: the data set's folder, if the user gives one.
        """
        try:
            data = yaml.safe_load(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise DataError("the data set's YAML file must exist", where=file) from error
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise DataError("the data set's YAML file must be readable", where=file, value=" ".join(str(error).split())) from error
        if not isinstance(data, dict) or "names" not in data:
            raise DataError("the data set's YAML file must be a mapping with names, train and val", where=file,
                            value=sorted(map(str, data)) if isinstance(data, dict) else type(data).__name__)
        if "kpt_shape" in data:
            raise DataError("keypoint labels cannot be told from polygons; write boxes", where=f"{file}: kpt_shape",
                            value=data["kpt_shape"])
        entries = {str(k): _paths(file, str(k), v) for k, v in data.items() if k in ("train", "val", "test") and v}
        return cls(file, _folder(root, file, path, data.get("path")), _names(file, data), entries)


def _names(file: Path, data: Mapping[str, Any]) -> dict[int, str]:
    where, names = f"{file}: names", data["names"]
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or not all(
        isinstance(k, int) and not isinstance(k, bool) and k >= 0 and isinstance(v, str) and v.strip() for k, v in names.items()
    ):
        raise DataError("names must be a list of class names, or a mapping from class number to name", where=where, value=data["names"])
    if len(set(names.values())) < len(names):
        twice = next(n for n in names.values() if list(names.values()).count(n) > 1)
        raise DataError("a class name must be unique: descriptions are matched to names", where=where, value=twice)
    if data.get("nc", len(names)) != len(names):
        raise DataError(f"nc must be the number of names, {len(names)}", where=f"{file}: nc", value=data["nc"])
    return dict(sorted(names.items()))


def _paths(file: Path, key: str, value: object) -> list[str]:
    values: list[Any] = value if isinstance(value, list) else [value]
    if not all(isinstance(v, str) and v for v in values):
        raise DataError("a split must be a path or a list of paths", where=f"{file}: {key}", value=value)
    return values


def _folder(root: Path, file: Path, given: str | None, written: object) -> Path:
    """The data set's folder: ``given`` by the user, else ``path`` of data.yaml, else where data.yaml lies."""
    if given is not None:
        folder = root / Path(given).expanduser()
        if not folder.is_dir():
            raise DataError("data.source.path must be a folder", where=folder)
        return folder
    if written is None:
        return file.parent
    if not isinstance(written, str):
        raise DataError("path must be a folder", where=f"{file}: path", value=written)
    tried = [file.parent / written]
    if file.parent.absolute().name == Path(written).name:  # path: coco8 in coco8/data.yaml, as Ultralytics downloads it
        tried.append(file.parent)
    folders = [p for p in tried if p.is_dir() and p.resolve().is_relative_to(root.resolve())]
    if not folders:
        raise DataError("path must be a folder inside data.root, relative to the YAML file; set data.source.path to the data set's folder",
                        where=f"{file}: path", value=written)
    return folders[0]


def _read_split(records: Records, layout: Layout, split: str) -> None:
    """Fill ``records`` with the images of an entry of data.yaml and their labels."""
    if not layout.entries.get(split):
        similar = hint(nearest(split, layout.entries))
        raise DataError(f"data.yaml must have the split{similar}", where=layout.file, value=split)
    images = [image for entry in layout.entries[split] for image in _images(layout, split, entry)]
    if not images:
        raise DataError("a split must name at least one image", where=f"{layout.file}: {split}", value=layout.entries[split])
    for (name, place), image_id in zip(images, ids_of_stems([name for name, _ in images]), strict=True):
        _add_image(records, layout, name, place, image_id)
    if records.counts["no_label_file"] == len(images):
        expected = label_path(layout.folder / images[0][0])
        raise DataError(f"no image of the split has a label file; labels belong beside images: .../images/a.jpg -> .../labels/a.txt "
                        f"({len(images)} images)", where=f"{layout.file}: {split}", value=str(expected))


def _images(layout: Layout, split: str, entry: str) -> Iterator[tuple[str, str | None]]:
    """(name relative to the folder, place in a list or None) of every image of an entry, in order."""
    path = layout.folder / entry
    if not path.exists() and entry.startswith("../"):  # Roboflow writes ../train/images and means train/images
        path = layout.folder / entry[3:]
    if path.is_dir():
        found = sorted(
            os.path.join(folder, name)
            for folder, _, names in os.walk(path, followlinks=True)
            for name in names
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
        )
        yield from ((_relative(layout, file), None) for file in found)
    elif path.is_file() and path.suffix == ".txt":
        for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), start=1):
            if text := line.strip():
                start = path.parent if text.startswith("./") else layout.folder
                yield _relative(layout, os.path.join(start, text)), f"{path}:{number}"
    else:
        raise DataError("a split must be a folder of images or a .txt file that lists images", where=f"{layout.file}: {split}",
                        value=str(path))


def _relative(layout: Layout, file: str) -> str:
    return os.path.relpath(os.path.abspath(file), os.path.abspath(layout.folder))


def label_path(image: Path) -> Path:
    """The label file of an image: the last folder called ``images`` becomes ``labels``, the suffix ``.txt``."""
    images, labels = f"{os.sep}images{os.sep}", f"{os.sep}labels{os.sep}"
    return Path(labels.join(os.path.abspath(image).rsplit(images, 1))).with_suffix(".txt")


def _add_image(records: Records, layout: Layout, name: str, place: str | None, image_id: int) -> None:
    file = label_path(layout.folder / name)
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        lines = []
        records.counts["no_label_file"] += 1
    except (OSError, UnicodeDecodeError) as error:
        records.refuse("unreadable_labels", "a label file must be text", where=file, value=str(error))
        return
    image = records.add_image(name, place=str(file if place is None or lines else place), image_id=image_id, size=None)
    if image is None:
        return
    for number, line in enumerate(lines, start=1):
        if line.strip():
            _add_line(records, layout, image, number, line.strip())


def _add_line(records: Records, layout: Layout, image: int, number: int, line: str) -> None:
    parts = line.split()
    polygon = len(parts) >= 7 and len(parts) % 2 == 1
    try:
        values = [float(p) for p in parts]
    except ValueError:
        values = []
    label = integral(values[0]) if values else None
    if label is None or not (polygon or len(parts) == 5):
        records.add_box(image, None, None, number=number - 1, line=number, fault=Fault.BAD_OBJECT, value=line)
        return
    box = values[1:]
    if polygon:
        records.counts["polygon_to_box"] += 1
        left, right, top, bottom = min(box[::2]), max(box[::2]), min(box[1::2]), max(box[1::2])
        box = [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
    unknown = Fault.NONE if label in layout.names else Fault.UNKNOWN_CATEGORY
    records.add_box(image, layout.names.get(label), box, number=number - 1, line=number, fault=unknown, value=label)
