"""Check every ``_target_`` of a configuration against the signature it names, without building anything."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from coordvlm.utils.errors import ConfigError
from coordvlm.utils.overrides import hint, nearest

_SPECIAL = frozenset({"_target_", "_partial_", "_args_", "_recursive_", "_convert_"})


def iterate_targets(tree: object, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(dotted path, node) of every mapping with a ``_target_``, outer ones first."""
    if isinstance(tree, Mapping):
        if "_target_" in tree:
            yield path, tree
        for key, value in tree.items():
            yield from iterate_targets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from iterate_targets(value, f"{path}[{index}]")


def validate_targets(cfg: DictConfig | Mapping[str, Any], supplied: Mapping[str, frozenset[str] | set[str]] | None = None) -> int:
    """Refuse a key that a constructor does not take, and a required one that is missing.

    Args:
        supplied: dotted path of a node -> keywords the code adds when it instantiates that node; ``"a.*"`` stands for all
            children of ``a``. Nodes with ``_partial_`` may lack keywords anyway.
    Returns:
        How many nodes were checked.
    Raises:
        ConfigError: all problems at once, one line each, with dotted path and nearest choices.
    """
    tree = OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else cfg
    problems: list[str] = []
    count = 0
    for path, node in iterate_targets(tree):
        count += 1
        given = set().union(*(keys for where, keys in (supplied or {}).items() if _matches(where, path)))
        problems += [f"{path}{problem}" for problem in _check(node, given)]
    if problems:
        raise ConfigError("\n".join(problems))
    return count


def _matches(pattern: str, path: str) -> bool:
    if pattern.endswith(".*"):
        parent, _, last = path.rpartition(".")
        return bool(last) and parent == pattern[:-2]
    return pattern == path


def _check(node: Mapping[str, Any], supplied: set[str]) -> Iterator[str]:
    name = node["_target_"]
    if not isinstance(name, str):
        yield f"._target_: {name!r} is not the dotted name of a class or function"
        return
    try:
        target = _locate(name)
    except ConfigError as error:
        yield f"._target_: {error}"
        return
    parameters = _parameters(target)
    if parameters is None:
        return  # a built-in without a signature
    keys = [str(key) for key in node if key not in _SPECIAL]
    args = node.get("_args_") or ()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_any = any(p.kind == p.VAR_KEYWORD for p in parameters)
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    filled = set(positional[: len(args)])
    if len(args) > len(positional) and not any(p.kind == p.VAR_POSITIONAL for p in parameters):
        yield f"._args_: {name} takes {len(positional)} positional arguments, got {len(args)}"
    for key in keys:
        if key.startswith("_") and key.endswith("_") and key not in named:
            yield f".{key}: no such instruction{hint(nearest(key, _SPECIAL))}"
        elif key in filled:
            yield f".{key}: given twice, in _args_ too"
        elif key not in named and not takes_any:
            yield f".{key}: {name} takes no such argument{hint(nearest(key, named))}"
    if node.get("_partial_"):
        return
    wanted = [
        p.name for p in parameters
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and p.name not in filled and p.name not in keys and p.name not in supplied
    ]
    if wanted:
        yield f": {name} needs {', '.join(wanted)}"


def _locate(name: str) -> Callable[..., Any]:
    """Import what a dotted name stands for, with a message that tells a wrong name from a module that fails to import."""
    import importlib

    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        module_name = ".".join(parts[:cut])
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
                continue
            raise ConfigError(f"{name} cannot be imported: {error}") from error
        except ImportError as error:
            raise ConfigError(f"{name} cannot be imported: {error}") from error
        for index, part in enumerate(parts[cut:]):
            if not hasattr(found, part):
                where = ".".join(parts[: cut + index])
                raise ConfigError(f"{where} has no {part}{hint(nearest(part, [x for x in dir(found) if not x.startswith('_')]))}")
            found = getattr(found, part)
        if not callable(found):
            raise ConfigError(f"{name} is not a class or function")
        return found  # type: ignore[no-any-return]
    raise ConfigError(f"no module named {parts[0]}")


def _parameters(target: Callable[..., Any]) -> list[inspect.Parameter] | None:
    try:
        return list(inspect.signature(target).parameters.values())
    except (ValueError, TypeError):
        return None
