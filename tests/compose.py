"""The shipped configuration, composed as the commands compose it."""

from __future__ import annotations

from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from coordvlm.utils import cli, locations

CONF = Path(__file__).parents[1] / "conf"


def compose(run_dir: Path, *overrides: str, root: str = "train") -> DictConfig:
    """``root`` with overrides; output would go to ``run_dir``."""
    cli._register_resolvers(locations.FreshFolders(reserve=False), None)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra_compose(root, [f"paths.run_dir={run_dir}", *overrides])
