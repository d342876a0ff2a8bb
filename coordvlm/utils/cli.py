"""The entry of every command: read the command line, refuse what cannot be meant, run, report in one line, exit with a status.

    def main(cfg: DictConfig) -> float | int | None:
        import torch  # heavy imports here: the command line is checked before them
        ...

    if __name__ == "__main__":
        sys.exit(run_command("train", main, about=__doc__))

Hydra does the composing and the sweeping; what it lacks (nearest keys, free text, sweeps that outlive a failed job, short
errors) is added around it. ``conf/hydra/default.yaml`` and ``conf/paths/default.yaml`` belong to this module.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordvlm.utils import launch, locations, logs
from coordvlm.utils.errors import CoordVLMError, user_error
from coordvlm.utils.files import atomic_write_text, is_output_problem, output_error
from coordvlm.utils.overrides import quote_free_text, resolved

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra
    from omegaconf import DictConfig

    from coordvlm.utils.sweep import JobFailure

OK, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130
Main = Callable[["DictConfig"], "float | int | JobFailure | None"]
Check = Callable[["DictConfig"], None]


def run_command(
    config_name: str, main: Main, *, check: Check | None = None, about: str | None = None, argv: Sequence[str] | None = None
) -> int:
    """Run a command.

    Args:
        config_name: root configuration (``train``), also the name of the folder under outputs.
        main: gets the composed configuration. An int is the exit status; a float is the headline metric of a sweep's table; a
            ``JobFailure`` has been reported.
        check: refuses combinations (raises ``ConfigError``) before ``main`` imports anything; of a sweep, before any job.
        about: the command's docstring, shown by ``--help``.
        argv: arguments without the program's name; default ``sys.argv[1:]``.
    Returns:
        0 done, 1 failed (one job of a sweep suffices), 2 refused, 130 interrupted.
    """
    _set_environment()
    try:
        if launch.is_rank():
            return _run_rank(main, about)
        return _dispatch(config_name, main, check, about, list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        _print_error("interrupted", "stopped by Ctrl-C")
        return INTERRUPTED
    except CoordVLMError as error:
        return report_error(error, REFUSED)
    finally:
        logs.close()


def _set_environment() -> None:
    """Before torch is imported: idle OpenMP threads spin briefly only, and forked workers do not warn about tokenizers.

    A step of the tiny model on 2 cores, idle / beside a busy process: passive 0.31 / 0.34 s, a count of 10000 0.20 / 0.50 s,
    the library's default 0.21 / 0.69 s.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _dispatch(config_name: str, main: Main, check: Check | None, about: str | None, argv: list[str]) -> int:
    from hydra._internal.utils import get_args_parser
    from hydra.core.global_hydra import GlobalHydra

    from coordvlm.utils import sweep_resume

    parser = get_args_parser()
    parser.prog = f"python -m coordvlm.{config_name}"
    args = parser.parse_intermixed_args(quote_free_text(argv))  # flags may stand between overrides
    shows = bool(args.help or args.hydra_help or args.cfg or args.info or args.shell_completion)
    if sum(bool(x) for x in (args.run, args.multirun, args.cfg, args.info, args.shell_completion)) > 1:
        parser.error("only one of --run, --multirun, --cfg, --info and --shell-completion")
    if args.experimental_rerun:
        parser.error("--experimental-rerun is not supported: use resume=<run>")
    sweep_resume.expand(config_name, args)
    _register_resolvers(locations.FreshFolders(reserve=not shows), about)
    GlobalHydra.instance().clear()
    hydra = _make_hydra(config_name, args)
    name = args.config_name or config_name
    try:
        return _show(hydra, name, args, parser) if shows else _run(hydra, name, main, check, args)
    finally:
        GlobalHydra.instance().clear()


def _make_hydra(command: str, args: argparse.Namespace) -> Hydra:
    from hydra import version
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.config_search_path import SearchPathQuery

    version.setbase("1.3")
    conf = locations.conf_dir() / args.config_path if args.config_path else locations.conf_dir()
    search_path = create_config_search_path(f"file://{conf}")
    if args.config_dir:
        search_path.prepend("command-line", f"file://{_config_dir(args.config_dir)}", anchor=SearchPathQuery(provider="schema"))
    return Hydra.create_main_hydra2(task_name=command, config_search_path=search_path)


def _config_dir(wanted: str) -> Path:
    """``-cd``: relative to the working directory, else to the clone (so that ``-cd sweeps`` works from anywhere)."""
    candidates = [Path(wanted).absolute()] + [root / wanted for root in [locations.repository()] if root]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise CoordVLMError(f"-cd {wanted}: no such folder")


def _register_resolvers(fresh: locations.FreshFolders, about: str | None) -> None:
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    def run_dir() -> str | None:
        if not HydraConfig.initialized():
            return None
        hydra: Any = HydraConfig.get()
        return OmegaConf.select(hydra, "runtime.output_dir", throw_on_missing=False)  # type: ignore[no-any-return]

    HydraConfig.instance().cfg = None  # a run folder of an earlier command in this process is not ours
    resolvers: dict[str, Callable[..., Any]] = {
        "outputs": lambda: str(locations.outputs_root()),
        "run_dir": run_dir,
        "fresh": fresh,
        "job_folder": locations.job_folder,
        "about": lambda: (about or "").strip(),
    }
    for name, function in resolvers.items():
        OmegaConf.register_new_resolver(f"coordvlm.{name}", function, replace=True)


def _show(hydra: Hydra, name: str, args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from coordvlm.utils.config_check import check_overrides

    if args.shell_completion:
        hydra.shell_completion(config_name=name, overrides=args.overrides)
        return OK
    if args.overrides or not args.help:
        check_overrides(hydra, name, args.overrides, multirun=False)
    if args.help:
        hydra.app_help(config_name=name, args_parser=parser, args=args)
    elif args.hydra_help:
        hydra.hydra_help(config_name=name, args_parser=parser, args=args)
    elif args.cfg:
        hydra.show_cfg(name, args.overrides, cfg_type=args.cfg, package=args.package, resolve=args.resolve)
    else:
        hydra.show_info(args.info, config_name=name, overrides=args.overrides)
    return OK


def _run(hydra: Hydra, name: str, main: Main, check: Check | None, args: argparse.Namespace) -> int:
    from hydra.types import RunMode

    from coordvlm.utils.config_check import check_overrides, require_values
    from coordvlm.utils.sweep import JobFailure, report_job

    overrides = list(args.overrides)
    jobs = check_overrides(hydra, name, overrides, multirun=True if args.multirun else None)
    for cfg in jobs:
        mode = cfg.hydra.mode
        _check_job(cfg, check, require_values)
    multirun = args.multirun or (not args.run and bool(jobs) and mode == RunMode.MULTIRUN)
    task = _guarded(main, check)
    logs.configure()
    if multirun:
        if not args.multirun or mode == RunMode.RUN:
            overrides.append("hydra.mode=MULTIRUN")
        return _sweep(hydra, name, main, task, overrides, args)
    value = _call_hydra(hydra.run, name, task, [*overrides, "hydra.mode=RUN"]).return_value
    report_job(value)
    if isinstance(value, JobFailure):
        return value.status
    return int(value) if isinstance(value, int) else OK


def _sweep(
    hydra: Hydra, name: str, main: Main, task: Callable[[DictConfig], Any], overrides: list[str], args: argparse.Namespace
) -> int:
    from coordvlm.utils import sweep_launcher
    from coordvlm.utils.sweep import SweepTask
    from coordvlm.utils.sweep_process import ChildCommand

    sweep_launcher.register()
    config_dir = str(_config_dir(args.config_dir)) if args.config_dir else None
    with SweepTask(task, ChildCommand.of(main, name, args.config_path, config_dir)) as sweep:
        return sweep.finish(_call_hydra(hydra.multirun, name, sweep, overrides))


def _run_rank(main: Main, about: str | None) -> int:
    """One of several processes of a run: the configuration is the supervisor's, and only rank 0 writes it down."""
    from coordvlm.utils.sweep import JobFailure

    _register_resolvers(locations.FreshFolders(reserve=False), about)
    try:
        value = _guarded(main, None)(launch.load_job())
    except KeyboardInterrupt:
        return launch.leave(None, INTERRUPTED)
    return launch.leave(value, value.status if isinstance(value, JobFailure) else OK)


def _check_job(cfg: DictConfig, check: Check | None, require_values: Callable[[DictConfig], None]) -> None:
    import copy

    from omegaconf import open_dict

    cfg = copy.deepcopy(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    require_values(cfg)
    if check is not None:
        check(cfg)


def _call_hydra(function: Callable[..., Any], name: str, task: Callable[[DictConfig], Any], overrides: list[str]) -> Any:
    """Hydra wraps errors of resolvers and folders; ours are taken out again."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from coordvlm.utils.config_check import explain

    try:
        return function(config_name=name, task_function=task, overrides=overrides, with_log_configuration=False)
    except (HydraException, OmegaConfBaseException) as error:
        raise CoordVLMError(explain(error)) from error
    except OSError as error:
        raise output_error(error.filename or "outputs", error) from error


def _guarded(main: Main, check: Check | None) -> Callable[[DictConfig], Any]:
    """``main`` that writes its configuration and log into the run folder and returns a ``JobFailure`` instead of raising.

    Hydra's sweeper stops at the first job that raises.
    """

    def task(cfg: DictConfig) -> float | int | JobFailure | None:
        from hydra.core.hydra_config import HydraConfig
        from omegaconf import OmegaConf

        from coordvlm.utils.record import came_from_interrupt
        from coordvlm.utils.sweep import JobFailure

        hydra_cfg = HydraConfig.get()
        run_dir = Path(hydra_cfg.runtime.output_dir)
        try:
            if check is not None:
                check(cfg)
            logs.configure(run_dir, verbose=hydra_cfg.verbose is True)
            if logs.process_rank() == 0:
                atomic_write_text(run_dir / "config.yaml", OmegaConf.to_yaml(resolved(OmegaConf.to_container(cfg, resolve=True))))
            value = main(cfg)
        except Exception as error:
            status = report_error(error, FAILED)
            return JobFailure(status, type(error).__name__, str(error))
        except SystemExit as error:
            if came_from_interrupt(error):
                raise KeyboardInterrupt from error
            status = error.code if isinstance(error.code, int) else FAILED if error.code else OK
            return JobFailure(status, "SystemExit", str(error.code)) if status else None
        if isinstance(value, int) and not isinstance(value, bool) and value:
            return JobFailure(value, "exit status", str(value))
        return value

    return task


def report_error(error: BaseException, status: int) -> int:
    """Print an error: short if a user can cause it, else with its traceback; the log file always gets the traceback.

    Returns:
        ``status``.
    """
    import logging

    known = _user_error(error)
    file_only = logging.LogRecord(__name__, logging.ERROR, __file__, 0, "failed", None, (type(error), error, error.__traceback__))
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(file_only)
    if known is None or "1" in (os.environ.get("COORDVLM_DEBUG"), os.environ.get("HYDRA_FULL_ERROR")):
        traceback.print_exception(error)
    if known is not None:
        _print_error("error", str(known))
    return status


def _user_error(error: BaseException) -> CoordVLMError | None:
    """The error of ours at or beneath ``error``, or a full disk as one."""
    if found := user_error(error):
        return found
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, OSError) and is_output_problem(current):
            return output_error(current.filename or "outputs", current)
        current = current.__cause__
    return None


def _print_error(label: str, message: str) -> None:
    from rich.console import Console
    from rich.text import Text

    text = Text.assemble((f"{label}: ", "bold red"), (message, "red"))
    Console(stderr=True, soft_wrap=True, highlight=False).print(text)
