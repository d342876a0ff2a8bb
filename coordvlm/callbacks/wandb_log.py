"""Weights & Biases: online with a key, else recorded in the run folder for a later ``wandb sync``."""

from __future__ import annotations

import configparser
import logging
import netrc
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from omegaconf import OmegaConf

from coordvlm.callbacks.tracker import Picture, Tracker
from coordvlm.contracts import Evaluation
from coordvlm.reports.tables import rows
from coordvlm.utils.errors import ConfigError

_log = logging.getLogger(__name__)
_MODES = ("auto", "online", "offline")
#: What W&B writes outside the run's own folder; where the user has not placed it, it goes into the run folder.
_PLACES = ("WANDB_CACHE_DIR", "WANDB_DATA_DIR")


class WandbLog(Tracker):
    """One W&B run per run folder, in ``<run>/wandb``.

    Args:
        project, entity: where it belongs; entity null: the key's own.
        name: null: the run folder's name. group: null: the sweep folder's name in a multirun, else none.
        job_type, tags, notes: for filtering and reading in W&B.
        mode: ``online``, ``offline``, or ``auto``: ``WANDB_MODE`` if set, else online if there is a key.
        folder, num_images, max_source_pixels: see ``Tracker``.
    """

    def __init__(
        self, *, folder: str, project: str, entity: str | None, name: str | None, group: str | None, job_type: str | None,
        tags: Sequence[str], notes: str, mode: str, num_images: int, max_source_pixels: int,
    ) -> None:
        super().__init__(folder=folder, num_images=num_images, max_source_pixels=max_source_pixels)
        if mode not in _MODES:
            raise ConfigError(f"logger.wandb.mode must be one of {', '.join(_MODES)}, got {mode!r}")
        if mode == "online" and not has_key():
            raise ConfigError("logger.wandb.mode=online needs a key: run `wandb login`, set WANDB_API_KEY, or use mode=offline")
        self._mode, self._project, self._entity, self._name = mode, project, entity, name
        self._group, self._job_type, self._tags, self._notes = group, job_type, list(tags), notes
        self._run: Any = None
        self._places: dict[str, str | None] = {}

    @property
    def name(self) -> str:
        return "wandb"

    def begin(self, config: Mapping[str, Any]) -> None:
        import wandb

        given = os.environ.get("WANDB_MODE") if self._mode == "auto" else self._mode
        mode = given or ("online" if has_key() else "offline")
        self._place(self.folder / "wandb")
        try:
            self._run = wandb.init(
                dir=str(self.folder),
                project=self._project,
                entity=self._entity,
                name=self._name or self.folder.name,
                group=self._group or sweep_name(self.folder),
                job_type=self._job_type,
                tags=self._tags,
                notes=self._notes or None,
                config=dict(config),
                mode=mode,  # type: ignore[arg-type]
                reinit="finish_previous",  # a job of the same process that ended badly
                settings=wandb.Settings(silent=True, console="off", save_code=False, disable_job_creation=True),
            )
        except Exception as error:  # wandb has a class of its own for each way to fail
            self._restore()
            reason = str(error).partition("\n")[0]
            raise ConfigError(
                f"logger=wandb: W&B cannot start: {reason}; logger.wandb.mode=offline records without it, logger=csv does without W&B"
            ) from error
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        if self._run.settings._offline:
            why = "" if given else "no key, so "
            _log.info("W&B: %srecorded offline; to upload: wandb sync %s", why, self._run.settings.sync_dir)
        elif mode == "online":
            _log.info("W&B: %s", self._run.url)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def table(self, split: str, evaluation: Evaluation, step: int) -> None:
        import wandb

        columns: list[str | int] = ["metric", "value", "low", "high", "meaning"]
        data = [[r.name, r.value, r.low, r.high, r.meaning] for r in rows(evaluation.metrics)]
        self._run.log({f"{split}/metrics": wandb.Table(columns=columns, data=data), "step": step})

    def pictures(self, split: str, pictures: Sequence[Picture], step: int) -> None:
        import wandb

        self._run.log({f"{split}/images": [wandb.Image(image, caption=caption) for _, image, caption in pictures], "step": step})

    def summary(self, values: Mapping[str, float], step: int) -> None:
        self._run.summary.update(dict(values))

    def end(self, *, ok: bool) -> None:
        import wandb

        try:
            self._run.finish(exit_code=0 if ok else 1)
        except Exception:  # its service process is gone: the next run of this process gets a new one
            with suppress(Exception):
                wandb.teardown()
            raise
        finally:
            self._restore()

    def _place(self, folder: Path) -> None:
        for name in _PLACES:
            if name not in os.environ:
                self._places[name] = None
                os.environ[name] = str(folder / name.split("_")[1].lower())

    def _restore(self) -> None:
        for name in self._places:
            os.environ.pop(name, None)
        self._places.clear()


def has_key() -> bool:
    """Whether W&B would find a key: in the environment or in the netrc file, for its server."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(_server()).hostname or ""
    places = [Path(os.environ["NETRC"])] if os.environ.get("NETRC") else [Path.home() / ".netrc", Path.home() / "_netrc"]
    for file in places:
        try:
            if netrc.netrc(str(file)).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def _server() -> str:
    """The address in the environment or in W&B's settings (``wandb login --host`` writes it there), else the public one."""
    settings = configparser.ConfigParser(interpolation=None)
    with suppress(configparser.Error, OSError):
        settings.read(Path(os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb") / "settings")
    saved = settings.get("default", "base_url", fallback="https://api.wandb.ai")
    return os.environ.get("WANDB_BASE_URL") or saved


def sweep_name(folder: Path) -> str | None:
    """The name of the multirun's folder, if the run in ``folder`` is one of its jobs.

    Hydra numbers the jobs of a sweep only; a job that is a process of its own finds ``COORDVLM_SWEEP_JOB`` set.
    """
    from hydra.core.hydra_config import HydraConfig

    numbered = HydraConfig.initialized() and not OmegaConf.is_missing(HydraConfig.get().job, "num")
    return folder.parent.name if numbered or os.environ.get("COORDVLM_SWEEP_JOB") else None
