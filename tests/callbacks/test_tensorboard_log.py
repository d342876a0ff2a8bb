from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from coordvlm.callbacks.tensorboard_log import TensorBoardLog
from coordvlm.utils.targets import validate_targets

RANK_0: Any = SimpleNamespace(is_global_zero=True)


def test_without_the_package_the_configuration_is_refused_with_the_command_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == "tensorboard" or n.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "coordvlm.callbacks.tensorboard_log")
    node = {"_target_": "coordvlm.callbacks.tensorboard_log.TensorBoardLog", "folder": "x", "num_images": 1, "max_source_pixels": 1}
    with pytest.raises(ValueError, match=r"logger=tensorboard needs the package tensorboard: pip install 'coordvlm\[tensorboard\]'"):
        validate_targets({"logger": {"tensorboard": node}})


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0\nmodel: {freeze: [], size: [96, 96], name: null, odd: {}}\n")
    log = TensorBoardLog(folder=str(tmp_path), num_images=1, max_source_pixels=10**8)
    log.setup(RANK_0, RANK_0, "fit")
    log.log_metrics({"loss": 0.25, "epoch": 3.0}, 7)
    log.log_metrics({"loss": float("nan")}, 8)
    log.pictures("val", [(5, Image.new("RGB", (8, 6), (255, 0, 0)), "caption")], 7)
    log.close(ok=True)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (first, second) = events.Scalars("loss")
    assert (first.step, first.value, second.step, np.isnan(second.value)) == (7, 0.25, 8, True)
    assert events.Tags()["scalars"] == ["loss"]  # type: ignore[index]
    (image,) = events.Images("val/image_5")
    assert (image.width, image.height, image.step) == (8, 6, 7)
    config = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert config.split() == ["seed:", "0", "model.freeze:", "[]", "model.size:", "[96,", "96]", "model.name:", "null", "model.odd:", "{}"]
