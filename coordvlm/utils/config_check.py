"""Refuse a misspelt key, group or option with the nearest choices, before anything heavy is imported.

Hydra lists the options of a misspelt option only, and lets ``+`` add any key at all. An added key that no constructor takes
would be a flag that is declared and never read, so it is refused as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hydra._internal.hydra import Hydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import split_key
from omegaconf.errors import OmegaConfBaseException

from coordvlm.utils.errors import ConfigError, CoordVLMError
from coordvlm.utils.overrides import flatten_keys, hint, nearest

#: Jobs of a multirun that are composed and checked before the first one starts; later ones are checked when they start.
MAX_CHECKED_JOBS = 16


def check_overrides(hydra: Hydra, config_name: str, overrides: Sequence[str], *, multirun: bool | None = None) -> list[DictConfig]:
    """Compose what the command line asks for.

    Args:
        multirun: None lets ``hydra.mode`` of the configuration decide.
    Returns:
        The composed configuration; of a multirun one per job, at most ``MAX_CHECKED_JOBS``.
    Raises:
        ConfigError: names the key or option and the nearest choices.
    """
    loader = hydra.config_loader
    options = [option for option in loader.get_group_options("", ObjectType.CONFIG) if not option.startswith("_")]
    name = config_name.removesuffix(".yaml")
    if "/" not in name and name not in options:
        raise ConfigError(f"no configuration {name!r}{hint(nearest(name, options))}; all: {', '.join(options)}")
    parsed = _parse(hydra, overrides)
    if multirun is None:
        swept = any(x.is_sweep_override() for x in parsed)
        own = [_line(x) for x in parsed if x.is_hydra_override()]
        cfg = _compose(hydra, name, own, RunMode.MULTIRUN) if swept else _check_job(hydra, name, parsed)
        multirun = cfg.hydra.mode == RunMode.MULTIRUN
        if not multirun and not swept:
            return [cfg]
    if not multirun:
        return [_check_job(hydra, name, parsed)]
    return [_check_job(hydra, name, job) for job in _jobs(hydra, name, parsed)]


def require_values(cfg: DictConfig) -> None:
    """Refuse ``???`` values that nobody filled in, and interpolations that lead nowhere."""
    try:
        missing = sorted(OmegaConf.missing_keys(cfg))
        OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    if missing:
        raise ConfigError(f"no value for {', '.join(missing)}: add " + " ".join(f"{key}=..." for key in missing))


def _parse(hydra: Hydra, overrides: Sequence[str]) -> list[Override]:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create(config_loader=hydra.config_loader)
    parsed = []
    for line in overrides:
        try:
            parsed.append(parser.parse_override(line))
        except HydraException as error:  # its OverrideParseException included
            if "=" not in line and not line.startswith("~"):
                raise ConfigError(f"{line!r} is not an override: write key=value") from error
            reason = " ".join(str(error).split("\nSee https")[0].split())
            raise ConfigError(f"cannot read override {line!r}: {reason}; quote a value with special characters: \"key='a, b'\"") from error
    return parsed


def _line(override: Override) -> str:
    assert override.input_line is not None  # only overrides made by hand lack one
    return override.input_line


def _jobs(hydra: Hydra, name: str, parsed: Sequence[Override]) -> list[list[Override]]:
    """The jobs of the basic sweeper, the first ``MAX_CHECKED_JOBS`` of them."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    own = [_line(x) for x in parsed if x.is_hydra_override()]
    cfg = _compose(hydra, name, own, RunMode.MULTIRUN)
    params = OmegaConf.select(cfg, "hydra.sweeper.params") or {}
    swept = _parse(hydra, [f"{key}={value}" for key, value in params.items()])
    task = [x for x in parsed if not x.is_hydra_override()]
    if any(x.is_sweep_override() and not x.is_discrete_sweep() for x in [*swept, *task]):
        return []  # a range of another sweeper: its plugin says what it accepts
    batches: list[list[str]] = BasicSweeper.split_arguments([*swept, *task], None)[0]
    return [_parse(hydra, [*own, *batch]) for batch in batches[:MAX_CHECKED_JOBS]]


def _check_job(hydra: Hydra, name: str, parsed: Sequence[Override]) -> DictConfig:
    repository = hydra.config_loader.repository  # type: ignore[attr-defined]
    groups, values = [], []
    for override in parsed:
        if override.is_sweep_override() or override.is_hydra_override():
            groups.append(override)
        elif repository.group_exists(override.key_or_group) and not isinstance(override.value(), dict):
            _check_option(repository, override)
            groups.append(override)
        else:
            values.append(override)
    lines = [_line(x) for x in parsed]
    failure: ConfigError | None = None
    if not any(x.is_add() or x.is_force_add() for x in values):
        try:  # the usual case needs one composition, which takes a tenth of a second
            return _compose(hydra, name, lines, RunMode.RUN)
        except ConfigError as error:
            failure = error
    base = _compose(hydra, name, [_line(x) for x in groups], RunMode.RUN)
    tree = OmegaConf.to_container(base, resolve=False)
    assert isinstance(tree, dict)
    choices = tree.pop("hydra")["runtime"]["choices"]
    all_groups = [group for group in hydra.list_all_config_groups() if group.split("/")[0] != "hydra"]
    for override in values:
        _check_key(override, tree, choices, all_groups, repository)
    if failure is not None:
        raise failure
    return _compose(hydra, name, lines, RunMode.RUN)


def _check_option(repository: Any, override: Override) -> None:
    group, value = override.key_or_group, override.value()
    for option in value if isinstance(value, list) else [value]:
        if isinstance(option, str) and option != "null" and not repository.config_exists(f"{group}/{option}"):
            options = repository.get_group_options(group, ObjectType.CONFIG)
            raise ConfigError(f"no option {option!r} in group {group}{hint(nearest(option, options))}; all: {', '.join(options)}")


def _check_key(override: Override, tree: dict[Any, Any], choices: Mapping[str, Any], groups: Sequence[str], repository: Any) -> None:
    key = override.key_or_group
    parts = split_key(key)
    node, depth, targeted = _descend(tree, parts)
    if depth == len(parts) or not isinstance(node, dict | list | None):
        return  # it exists; or it lies behind an interpolation, about which Hydra knows more
    if override.is_force_add() and depth and (targeted or _is_open(node)):
        return
    if override.is_add() and depth and (targeted or _is_open(node)):
        twin = nearest(parts[depth], [str(x) for x in node or ()], n=1, cutoff=0.92)
        if not twin:
            return
        raise ConfigError(f"no such key {key}{hint(['.'.join([*parts[:depth], *twin])])}; to add it all the same write ++{key}=...")
    found = nearest(key, [x for x in flatten_keys(tree) if not x.endswith("_")])
    if "." not in key:
        near = nearest(key, groups)
        shown = [f"{group} ({', '.join(repository.get_group_options(group, ObjectType.CONFIG))})" for group in near]
        found = shown + [x for x in found if x not in near]
    message = f"no such key {key}{hint(found)}"
    if choices.get(parts[0]):
        message += f" (with {parts[0]}={choices[parts[0]]})"
    if override.is_add() or override.is_force_add():
        message += "; an added key would have no effect, because nothing reads it"
    raise ConfigError(message)


def _descend(tree: object, parts: Sequence[str]) -> tuple[Any, int, bool]:
    """Follow ``parts``: the last node that exists, how many parts led there, whether a ``_target_`` lies on the way."""
    node, targeted = tree, False
    for depth, part in enumerate(parts):
        if isinstance(node, dict):
            targeted = targeted or "_target_" in node
            match = [child for child in node if str(child) == part]
            if not match:
                return node, depth, targeted
            node = node[match[0]]
        elif isinstance(node, list) and part.lstrip("-").isdigit() and -len(node) <= int(part) < len(node):
            node = node[int(part)]
        else:
            return node, depth, targeted
    return node, len(parts), targeted


def _is_open(node: object) -> bool:
    """Free-form mappings: empty ones, and those that hold named components."""
    if node is None:
        return True
    return isinstance(node, dict) and all(isinstance(child, dict) and "_target_" in child for child in node.values())


def _compose(hydra: Hydra, name: str, overrides: Sequence[str], mode: RunMode) -> DictConfig:
    try:
        return hydra.compose_config(config_name=name, overrides=list(overrides), run_mode=mode, with_log_configuration=False)
    except Exception as error:
        if isinstance(error, ConfigCompositionException | OmegaConfBaseException | ValueError):
            raise ConfigError(explain(error)) from error
        raise


def explain(error: BaseException) -> str:
    """One paragraph for a user: our own words where an error of ours lies beneath, else Hydra's without its search path."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, CoordVLMError):
            return str(seen)
        seen = seen.__cause__ or seen.__context__
    parts: list[str] = []
    current: BaseException | None = error
    while current is not None and len(parts) < 3:
        text = str(current).split("\nConfig search path:")[0]
        text = " ".join(re.sub(r"\b(object_type|reference_type)=\S+", "", text).split())
        if text and not any(text in part for part in parts):
            parts.append(text)
        current = current.__cause__
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        parts.append("nearest: " + ", ".join(nearest(error.missing_cfg_file.rsplit("/", 1)[-1], error.options)))
    return ": ".join(parts[:2]) or type(error).__name__
