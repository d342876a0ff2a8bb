"""Look a data set over before training on it: boxes, phrases, classes, images, and leaks between splits.

python -m coordvlm.audit data=coco data.root=/datasets/mine
python -m coordvlm.audit data=refcoco data.root=/datasets/refcoco audit.full=true      decode every image
python -m coordvlm.audit experiment=coco_hybrid_qwen3vl_4b data.root=/datasets/coco    the data as an experiment has it

Writes audit.json and audit.html. Exit status: 0 nothing failed, 1 something did, 2 the command cannot be meant.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordvlm.utils.cli import FAILED, OK, REFUSED, report_error, run_command

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from coordvlm.analysis.checks import CheckSettings
    from coordvlm.contracts import ResizeRule
    from coordvlm.reports.audit_data import Audit
    from coordvlm.utils.errors import DataError

#: Keys of a split's own settings in a source of boxes.
_SPLITS = ("train", "val", "test")
_AT_LEAST = {"num_images": 0, "num_samples": 1, "num_examples": 1, "near_bits": 0}
#: Family -> patch and merge of its vision tower, which the files of a published model repeat.
_PATCHES = {"qwen2_vl": (14, 2), "qwen2_5_vl": (14, 2), "qwen3_vl": (16, 2)}


def check(cfg: DictConfig) -> None:
    """Refuse limits that mean nothing."""
    from coordvlm.utils.errors import ConfigError

    if cfg.task == "count":
        raise ConfigError(
            "audit looks at boxes and phrases; points to count (task=count) are checked when they are read, so train and eval refuse what "
            "is wrong with them"
        )
    if cfg.task == "video":
        raise ConfigError(
            "audit looks at boxes and phrases in images; clips (task=video) are checked when they are read, so train and eval refuse what "
            "is wrong with them"
        )
    if not isinstance(cfg.audit.full, bool):
        raise ConfigError(f"audit.full must be true or false, got {cfg.audit.full!r}")
    for key, least in _AT_LEAST.items():
        if not isinstance(cfg.audit[key], int) or cfg.audit[key] < least:
            raise ConfigError(f"audit.{key} must be an integer of at least {least}, got {cfg.audit[key]!r}")
    for key in ("near_duplicate_iou", "usual_share"):
        if not isinstance(cfg.audit[key], int | float) or not 0 < cfg.audit[key] <= 1:
            raise ConfigError(f"audit.{key} must be above 0 and at most 1, got {cfg.audit[key]!r}")


def main(cfg: DictConfig) -> int:
    """One audit in ``paths.run_dir``; the exit status."""
    from omegaconf import OmegaConf

    from coordvlm.utils.errors import ConfigError, user_error
    from coordvlm.utils.record import RunRecord

    run_dir = Path(cfg.paths.run_dir)
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    with RunRecord(run_dir, command="audit", config=plain) as record:
        record.update(notes=cfg.notes)
        try:
            return _audit(cfg, run_dir, record)
        except Exception as error:  # Hydra wraps what a constructor raises
            if isinstance(known := user_error(error), ConfigError):
                return report_error(known, REFUSED)
            raise


def _audit(cfg: DictConfig, run_dir: Path, record: Any) -> int:
    with record.time("import"):
        from coordvlm.reports.audit_data import Level
        from coordvlm.reports.audit_page import write_page
        from coordvlm.reports.audit_table import show
        from coordvlm.utils.files import atomic_write_json
    found = _checked(cfg, record)
    named = str(cfg.data.source._target_).rsplit(".", 1)[-1]
    root = cfg.data.get("root")
    title = f"{named}{f' in {root}' if root else ''}"
    atomic_write_json(run_dir / "audit.json", {"data": title, "command": record.data["command_line"], **found.as_plain()})
    page = write_page(run_dir / "audit.html", found, title=title, command=record.data["command_line"])
    record.update(audit={"level": found.level.key, "counts": dict(found.counts)})
    show(found, title)
    print(f"written: {run_dir / 'audit.json'}\nreport: {page}")
    return FAILED if found.level is Level.FAIL else OK


def _checked(cfg: DictConfig, record: Any) -> Audit:
    """Open the data as leniently as it can be and check it; what cannot be opened is a finding."""
    with record.time("import"):
        from coordvlm.analysis.audit import audit_views, refusal, views_of

    settings = _settings(cfg)
    with record.time("open"):
        sources, error = _sources(cfg)
    findings = [] if error is None else [refusal(error, "all")]
    views = []
    with record.time("read"):
        for name, source in sources.items():
            found, problems = views_of(source, settings, on_error=str(cfg.data.on_error))
            views += found if name is None else [view.renamed(name, cfg.data.on_error) for view in found if view.name == "train"]
            findings += problems if name is None else []
    return audit_views(views, settings, before=findings, timer=record.time)


def _sources(cfg: DictConfig) -> tuple[dict[str | None, Any], DataError | None]:
    """The data as it opens, and why it did not at once.

    First with on_error=skip, then with placeholders allowed, then split by split, each as if it were for training, where most may be
    broken: split -> source. The key None stands for all splits.
    """
    from coordvlm.utils.errors import DataError, user_error

    first: DataError | None = None
    plain = _changed(_plain(cfg.data.source), on_error="skip")
    allowed = _changed(plain, allow_placeholder=True)
    attempts: list[tuple[str | None, Any]] = [(None, plain), *([(None, allowed)] if allowed != plain else []), *_apart(allowed)]
    found: dict[str | None, Any] = {}
    for name, values in attempts:
        if None in found:
            break
        try:
            found[name] = _open(values)
        except Exception as error:  # Hydra wraps what a constructor raises
            if not isinstance(known := user_error(error), DataError):
                raise
            first = first or known
    return found, first


def _changed(plain: Any, **values: Any) -> Any:
    """A copy in which every key of these names, at any depth, has the value."""
    if isinstance(plain, dict):
        return {key: values[key] if key in values else _changed(value, **values) for key, value in plain.items()}
    return [_changed(item, **values) for item in plain] if isinstance(plain, list) else plain


def _apart(plain: Any) -> list[tuple[str | None, Any]]:
    """(split, the source with this split alone, as train)."""
    if isinstance(splits := plain.get("splits"), dict):
        return [(name, {**plain, "splits": {"train": splits[name]}, "test": None}) for name in splits if splits[name] is not None]
    nothing = dict.fromkeys(_SPLITS)
    return [(name, {**plain, **nothing, "train": plain[name]}) for name in _SPLITS if isinstance(plain.get(name), dict)]


def _open(values: dict[str, Any]) -> Any:
    from omegaconf import OmegaConf

    from coordvlm import build

    return build.instantiate(OmegaConf.create(values))


def _plain(source_cfg: DictConfig) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(source_cfg, resolve=True)


def _settings(cfg: DictConfig) -> CheckSettings:
    from coordvlm.analysis.checks import CheckSettings

    return CheckSettings(
        **_plain(cfg.audit), seed=cfg.seed, max_pixels=cfg.model.max_source_pixels, max_objects=cfg.sequence.max_objects,
        resize=_resize_rule(cfg),
    )


def _resize_rule(cfg: DictConfig) -> ResizeRule | None:
    """What the model does to an image, as far as its configuration says so without its files."""
    from coordvlm.contracts import ResizeRule

    load, resize = cfg.model.load, cfg.model.resize
    patch, merge = _PATCHES.get(load.get("family"), (load.get("patch_size"), load.get("merge_size")))
    smart = resize.mode == "smart"
    min_pixels = resize.min_pixels if resize.min_pixels is not None else patch and (patch * merge) ** 2
    if patch is None or (smart and resize.max_pixels is None):
        return None
    return ResizeRule(
        mode=resize.mode, patch=patch, merge=merge, size=None if resize.size is None else tuple(resize.size),
        min_pixels=min_pixels if smart else None, max_pixels=resize.max_pixels if smart else None,
    )


if __name__ == "__main__":
    sys.exit(run_command("audit", main, check=check, about=__doc__))
