"""Where the configuration is and where output goes; nothing here depends on the working directory of an editable install."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from coordvlm.utils.errors import ConfigError
from coordvlm.utils.files import output_error

_PACKAGE = Path(__file__).resolve().parents[1]


def repository() -> Path | None:
    """The clone this package is run from, None when it was installed from a wheel."""
    root = _PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() and (root / "conf").is_dir() else None


def conf_dir() -> Path:
    """``<repository>/conf`` of an editable install, else ``coordvlm/conf`` of the wheel.

    Raises:
        ConfigError: neither exists.
    """
    root = repository()
    for folder in ([root / "conf"] if root else []) + [_PACKAGE / "conf"]:
        if folder.is_dir():
            return folder
    raise ConfigError(f"no configuration found: neither {_PACKAGE.parent / 'conf'} nor {_PACKAGE / 'conf'} is a folder")


def outputs_root() -> Path:
    """``COORDVLM_OUTPUTS``, else ``<repository>/outputs``, else ``outputs`` under the working directory."""
    if chosen := os.environ.get("COORDVLM_OUTPUTS"):
        return Path(chosen).expanduser().absolute()
    return (repository() or Path.cwd()) / "outputs"


class FreshFolders:
    """Gives each wanted folder name to one process: a name that exists gets ``_2``, ``_3`` ...

    The same question gets the same answer within one command. A folder is made when it is given out, so two commands that
    start in the same second cannot share one; with ``reserve`` off (``--cfg``, ``--help``) nothing is made.
    """

    def __init__(self, reserve: bool) -> None:
        self.reserve = reserve
        self._given: dict[str, str] = {}

    def __call__(self, wanted: str) -> str:
        if wanted not in self._given:
            self._given[wanted] = self._take(Path(wanted).absolute())
        return self._given[wanted]

    def _take(self, wanted: Path) -> str:
        number = 1
        while True:
            path = wanted if number == 1 else wanted.with_name(f"{wanted.name}_{number}")
            if not self.reserve:
                if not path.exists():
                    return str(path)
            else:
                try:
                    path.mkdir(parents=True)
                    return str(path)
                except FileExistsError as error:
                    if not path.parent.is_dir():
                        reason = NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path.parent))
                        raise output_error(path, reason) from error
                except OSError as error:
                    raise output_error(path, error) from error
            number += 1


def job_folder(number: int, overrides: Iterable[str]) -> str:
    """``007_1a2b3c4d``: the job's number in its sweep and 8 hex digits of its overrides, in any order."""
    digest = hashlib.sha256("\n".join(sorted(overrides)).encode()).hexdigest()[:8]
    return f"{int(number):03d}_{digest}"
