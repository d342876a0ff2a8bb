"""TensorBoard event files in ``<run>/tensorboard``. The package ``tensorboard`` is an extra of this one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coordvlm.callbacks.tracker import Picture, Tracker
from coordvlm.contracts import Evaluation
from coordvlm.reports.tables import metrics_markdown

try:
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams
except ImportError as missing:  # told while the configuration is checked, before anything is loaded
    raise ImportError("logger=tensorboard needs the package tensorboard: pip install 'coordvlm[tensorboard]'") from missing

#: Runs are compared by these on TensorBoard's HPARAMS page.
_JUDGED_BY = ("val/AP", "test/AP", "val/acc_50", "test/acc_50")


class TensorBoardLog(Tracker):
    """The scalars of log.csv, tables as text, pictures with a slider over steps, the configuration as hyperparameters."""

    def __init__(self, *, folder: str, num_images: int, max_source_pixels: int) -> None:
        super().__init__(folder=folder, num_images=num_images, max_source_pixels=max_source_pixels)
        self._writer: Any = None

    @property
    def name(self) -> str:
        return "tensorboard"

    @property
    def place(self) -> Path:
        """The folder of the event files."""
        return self.folder / "tensorboard"

    def begin(self, config: Mapping[str, Any]) -> None:
        self._writer = SummaryWriter(str(self.place), flush_secs=10)
        flat = dict(_flat(config))
        for part in hparams(flat, dict.fromkeys(_JUDGED_BY, 0.0)):  # type: ignore[no-untyped-call]  # names only: see the scalars
            self._writer.file_writer.add_summary(part)
        self._writer.add_text("config", "".join(f"    {name}: {value}\n" for name, value in flat.items()), 0)
        self._writer.flush()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def table(self, split: str, evaluation: Evaluation, step: int) -> None:
        self._writer.add_text(f"{split}/metrics", metrics_markdown(evaluation.metrics), step)

    def pictures(self, split: str, pictures: Sequence[Picture], step: int) -> None:
        for image_id, image, _ in pictures:
            self._writer.add_image(f"{split}/image_{image_id}", np.asarray(image.convert("RGB")), step, dataformats="HWC")
        self._writer.flush()

    def summary(self, values: Mapping[str, float], step: int) -> None:
        self.scalars(values, step)

    def end(self, *, ok: bool) -> None:
        self._writer.close()


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, bool | int | float | str]]:
    """Dotted names; what is no number becomes text."""
    found: list[tuple[str, bool | int | float | str]] = []
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            found += _flat(value, f"{name}.")
        else:
            found.append((name, value if isinstance(value, bool | int | float | str) else json.dumps(value)))
    return found
