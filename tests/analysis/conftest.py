"""One small sweep that several test files read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.analysis.factory import write_run


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recipes that differ and one that does not, three seeds each; tests must not change it."""
    root = tmp_path_factory.mktemp("sweep")
    for seed in range(3):
        write_run(root / f"ce_{seed}", "loss=ce", seed=seed, noise_px=3.0, duplicated=0.15)
        write_run(root / f"coordexp_{seed}", "loss=coordexp", seed=seed, noise_px=3.0, duplicated=0.15)
        write_run(root / f"hybrid_{seed}", "loss=hybrid", seed=seed, noise_px=1.0, duplicated=0.0)
    return root
