"""Packaging only: the wheel carries the configuration, which lives beside the package in a clone, as ``coordvlm/conf``.

setuptools loads this file by path while building; it may import nothing of coordvlm.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from setuptools.command.build_py import build_py

CONF = Path("conf")


class BuildWithConf(build_py):
    """Copies ``conf/**/*.yaml``; an editable install reads them where they are."""

    def _conf_files(self) -> list[Path]:
        return sorted(CONF.rglob("*.yaml"))

    def run(self) -> None:
        super().run()
        if not getattr(self, "editable_mode", False):
            for file in self._conf_files():
                target = Path(self.build_lib) / "coordvlm" / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)

    def get_source_files(self) -> list[str]:
        """Also what a source distribution contains."""
        return [*super().get_source_files(), *map(str, self._conf_files())]

    def get_outputs(self, *args: Any, **kwargs: Any) -> list[str]:
        built = [str(Path(self.build_lib) / "coordvlm" / file) for file in self._conf_files()]
        return [*super().get_outputs(*args, **kwargs), *built]
