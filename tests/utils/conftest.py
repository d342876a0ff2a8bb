"""A small configuration of its own, so that these tests do not hang on what the product ships."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from coordvlm.utils import locations

FILES = {
    "train.yaml": """
        defaults: [_self_, {hydra: default}, {paths: default}, {loss: ce}, {trainer: default}, {optional debug: null}]
        seed: 0
        phrase: null
        run: null
        data: {root: data}
        callbacks: {}
        """,
    "loss/ce.yaml": "{lambda_coord: 1.0, lambda_coord_ce: 1.0, alpha_l1: 5}",
    "loss/hybrid.yaml": "{lambda_coord: 1.0, lambda_coord_ce: 1.0, alpha_l1: 5, beta_giou: 2}",
    "trainer/default.yaml": "{_target_: lightning.Trainer, max_steps: 10, logger: false}",
    "debug/fast.yaml": "# @package _global_\ntrainer: {max_steps: 2}",
}


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration folder; output goes to ``tmp_path / "outputs"``."""
    shipped = locations.conf_dir()
    folder = tmp_path / "conf"
    for name in ("hydra", "paths"):
        shutil.copytree(shipped / name, folder / name)
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("\n".join(line.strip() for line in text.splitlines()) + "\n")
    monkeypatch.setattr(locations, "conf_dir", lambda: folder)
    monkeypatch.setenv("COORDVLM_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.delenv("COORDVLM_DEBUG", raising=False)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    return folder
