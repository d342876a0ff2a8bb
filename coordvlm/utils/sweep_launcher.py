"""The launcher of sweeps: every job a process of its own, n at a time, finished ones not again.

Any sweeper expands the jobs (Hydra's own, or one that wants values back, such as Optuna's); other launchers
(``hydra/launcher=submitit_slurm``) take this one's place altogether. Settings: ``conf/hydra/launcher/processes.yaml``.
"""

from __future__ import annotations

import copy
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from coordvlm.utils import environment, locations, sweep_resume
from coordvlm.utils.errors import ConfigError
from coordvlm.utils.sweep import JobFailure, JobResult, SweepTask, varying, write_results
from coordvlm.utils.sweep_process import Child, ChildCommand, cores
from coordvlm.utils.sweep_resume import Before
from coordvlm.utils.sweep_status import SweepStatus


@dataclass
class _Job:
    """A job of this sweep: ``config`` is the task's, ``hydra`` Hydra's part of it."""

    result: JobResult
    config: DictConfig
    hydra: DictConfig
    plain: dict[str, Any]
    name: str = ""
    before: Before = field(default_factory=Before)

    @property
    def folder(self) -> Path:
        return Path(self.result.folder)


class ProcessLauncher(BasicLauncher):
    """See the module. A task that no other process can find (a function inside a function) runs in this process.

    Args:
        parallel: jobs at a time. gpus: ids that jobs at the same time take in turn, null to leave the choice to each job.
    """

    def __init__(self, parallel: int, gpus: Sequence[int | str] | None) -> None:
        super().__init__()
        if not isinstance(parallel, int) or isinstance(parallel, bool) or parallel < 1:
            raise ConfigError(f"sweep.parallel={parallel}: must be a number of jobs, at least 1")
        self.parallel = parallel
        self.gpus = [str(gpu) for gpu in gpus] if gpus else []
        self._status = SweepStatus()
        self._running: dict[int, tuple[_Job, Child]] = {}
        self._opened = False

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch.

        Raises:
            ConfigError: a finished job was run with another configuration; the folder is in use.
            KeyboardInterrupt: after the running jobs have saved and stopped.
        """
        task = self.task_function
        if not isinstance(task, SweepTask) or task.command is None:
            return list(super().launch(job_overrides, initial_job_idx))
        assert self.config is not None
        setup_globals()
        sweep = Path(str(self.config.hydra.sweep.dir)).absolute()
        if not self._opened:
            self._open(sweep, task, task.command)
            task.earlier = sweep_resume.read_results(sweep)
        jobs = self._plan(sweep, job_overrides, initial_job_idx, task.earlier)
        self._look_back(jobs, {result.folder: result.seconds for result in task.earlier})
        task.results += [job.result for job in jobs]
        folders = {job.result.folder for job in jobs}
        task.earlier = [result for result in task.earlier if result.folder not in folders]
        self._status.total += len(jobs)
        self._announce(sweep, jobs)
        write_results(sweep, task.all_results())
        try:
            with _termination_is_an_interrupt():
                self._work(sweep, task, jobs)
        except BaseException as error:
            self._stop(sweep, task)
            if isinstance(error, KeyboardInterrupt):
                self._status.say(f"go on with: python -m {task.command.module} resume_sweep={sweep}")
            raise
        return [_job_return(job) for job in jobs]

    # --------------------------------------------------------------- before the jobs
    def _open(self, sweep: Path, task: SweepTask, command: ChildCommand) -> None:
        """Take the folder and keep what ``resume_sweep`` needs; the lock lasts as long as the sweep."""
        assert self.config is not None
        sweep.mkdir(parents=True, exist_ok=True)
        task.lock = sweep_resume.lock(sweep)
        given = self.config.hydra.overrides
        sweep_resume.write_sweep(
            sweep, overrides=[*_lines(given.hydra), *_lines(given.task)], config_name=command.config_name, config_path=command.config_path,
            config_dir=command.config_dir,
        )
        self._opened = True

    def _plan(self, sweep: Path, job_overrides: Sequence[Sequence[str]], first: int, earlier: Sequence[JobResult]) -> list[_Job]:
        known = {tuple(sorted(result.overrides)): Path(result.folder).name for result in earlier}  # a grown sweep counts otherwise
        jobs = [self._compose(sweep, number, list(lines), known) for number, lines in enumerate(job_overrides, start=first)]
        for job, own in zip(jobs, varying([job.result.overrides for job in jobs]), strict=True):
            job.name = " ".join(own)
        return jobs

    def _compose(self, sweep: Path, number: int, overrides: list[str], known: dict[tuple[str, ...], str]) -> _Job:
        assert self.hydra_context is not None
        assert self.config is not None
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        before = HydraConfig.instance().cfg
        try:
            HydraConfig.instance().set_config(config)
            lines = _lines(config.hydra.overrides.task)
            folder = sweep / str(config.hydra.sweep.subdir)
            if not folder.exists() and (name := known.get(tuple(sorted(lines)))):
                folder = sweep / name
            with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
                config.hydra.runtime.output_dir = str(folder)
            HydraConfig.instance().set_config(config)
            hydra = copy.deepcopy(HydraConfig.instance().cfg)
            task = copy.deepcopy(config)
            with read_write(task), open_dict(task):
                del task["hydra"]
            plain: Any = OmegaConf.to_container(task, resolve=True)
        finally:
            HydraConfig.instance().cfg = before
        assert isinstance(hydra, DictConfig)
        return _Job(JobResult(number, tuple(lines), "waiting", None, str(folder)), task, hydra, plain)

    def _look_back(self, jobs: Sequence[_Job], told: Mapping[str, float | None]) -> None:
        """What earlier attempts left; refuses before anything starts.

        Args:
            told: seconds from ``jobs.json``, which know more than the runs: the time before a run has its record.
        """
        for job in jobs:
            before = sweep_resume.look_back(job.folder, job.plain)
            job.before = replace(before, seconds=told.get(job.result.folder) or before.seconds)
            if job.before.finished:
                if job.before.changed:
                    shown = "; ".join(job.before.changed[:5]) + ("; ..." if len(job.before.changed) > 5 else "")
                    raise ConfigError(
                        f"{job.folder}: this job is finished, but its configuration has changed since ({shown}); the jobs of one sweep "
                        "must be comparable: start a new sweep, or remove this folder to run the job again"
                    )
                job.result = replace(job.result, status="finished", metric=job.before.metric, seconds=job.before.seconds)

    def _announce(self, sweep: Path, jobs: Sequence[_Job]) -> None:
        done = [job for job in jobs if job.before.finished]
        self._status.ended += len(done)
        if not done and all(job.before == Before() for job in jobs):
            at_once = f", {self.parallel} at a time" if self.parallel > 1 else ""
            self._status.say(f"{len(jobs)} jobs{at_once}: {sweep}")
        else:
            go_on = sum(job.before.checkpoint is not None for job in jobs)
            counts = [(len(done), "finished before"), (go_on, "to continue from a checkpoint"), (len(jobs) - len(done) - go_on, "to run")]
            self._status.say(f"{len(jobs)} jobs ({', '.join(f'{n} {text}' for n, text in counts if n)}): {sweep}")
        for job in jobs:
            if job.before.changed:
                self._status.say(f"  {job.name}: begins anew, its configuration has changed ({'; '.join(job.before.changed[:3])})")
        root = locations.repository()
        now = (environment.git_state(root) or {}).get("commit") if root else None
        older = {job.before.commit for job in jobs if job.before.commit} - {now}
        if now and older:
            commits = ", ".join(sorted(str(commit)[:8] for commit in older))
            self._status.say(f"  warning: earlier jobs ran other code (commit {commits}, now {str(now)[:8]}): do their results compare?")

    # -------------------------------------------------------------------- the jobs
    def _work(self, sweep: Path, task: SweepTask, jobs: Sequence[_Job]) -> None:
        waiting = [job for job in jobs if not job.before.finished]
        while waiting or self._running:
            for slot in range(self.parallel):
                if waiting and slot not in self._running:
                    self._start(slot, waiting.pop(0), task)
                    self._record(sweep, task)
            self._collect(sweep, task)
            self._status.working([(job.name, job.folder) for job, _ in self._running.values()], self.parallel)
            time.sleep(0.1)

    def _start(self, slot: int, job: _Job, task: SweepTask) -> None:
        assert task.command is not None
        assert self.config is not None
        sweep_resume.set_aside(job.folder)
        overrides = list(job.result.overrides)
        if job.before.checkpoint is not None:
            overrides = [line for line in overrides if line.partition("=")[0] != "resume"] + [f"resume={self._resumed(job)}"]
        arguments = task.command.arguments(overrides, _lines(self.config.hydra.overrides.hydra), job.folder)
        job.result = replace(job.result, status="running")
        self._running[slot] = (job, Child(arguments, job.folder, self._environment(slot, job), task.lock))

    def _resumed(self, job: _Job) -> Path:
        """Where the attempt with the checkpoint is, now that it was set aside."""
        found = sweep_resume.look_back(job.folder, job.plain).checkpoint
        assert found is not None
        return found

    def _environment(self, slot: int, job: _Job) -> dict[str, str]:
        found = {}
        if self.parallel > 1 and "OMP_NUM_THREADS" not in os.environ and OmegaConf.select(job.config, "num_threads") is None:
            found["OMP_NUM_THREADS"] = str(max(1, cores() // self.parallel))
        if self.gpus:
            found["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        return found

    def _collect(self, sweep: Path, task: SweepTask) -> None:
        for slot, (job, child) in list(self._running.items()):
            if not child.ended():
                continue
            status, metric, error = child.outcome()
            seconds = child.seconds or 0.0
            spent = round(job.before.seconds + seconds, 3)
            job.result = replace(job.result, status=status, metric=metric, error=error, seconds=spent)
            del self._running[slot]
            task.results[:] = [job.result if result.job == job.result.job else result for result in task.results]
            write_results(sweep, task.all_results())
            self._status.job_ended(job.result, job.name, seconds)

    def _record(self, sweep: Path, task: SweepTask) -> None:
        now = {job.result.job: job.result for job, _ in self._running.values()}
        task.results[:] = [now.get(result.job, result) for result in task.results]
        write_results(sweep, task.all_results())

    def _stop(self, sweep: Path, task: SweepTask) -> None:
        """Let the running jobs save and stop; a second Ctrl-C kills them."""
        if not self._running:
            return
        try:
            for _, child in self._running.values():
                child.interrupt()
            self._status.say(f"stopping {len(self._running)} running; Ctrl-C again kills without saving")
            while self._running:
                self._collect(sweep, task)
                time.sleep(0.1)
        except KeyboardInterrupt:
            for _, child in self._running.values():
                child.kill()
            for _, child in self._running.values():
                child.process.wait()
            self._collect(sweep, task)


def _lines(overrides: Any) -> list[str]:
    """As they were given: nothing in them is an interpolation of ours."""
    found: Any = OmegaConf.to_container(overrides, resolve=False)
    return [str(line) for line in found]


def _job_return(job: _Job) -> JobReturn:
    """What a sweeper gets back: the metric, or a ``JobFailure`` in its place."""
    value: Any = job.result.metric
    if job.result.status != "finished":
        value = JobFailure(1, job.result.status, job.result.error or "")
    return JobReturn(
        overrides=list(job.result.overrides), cfg=job.config, hydra_cfg=job.hydra, working_dir=os.getcwd(),
        task_name=str(job.hydra.hydra.job.name), status=JobStatus.COMPLETED, _return_value=value,
    )


@contextmanager
def _termination_is_an_interrupt() -> Iterator[None]:
    """``kill`` and ``timeout`` stop a sweep as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def register() -> None:
    """Make this launcher known to Hydra, which otherwise accepts plugins of the ``hydra_plugins`` namespace only."""
    plugins = Plugins.instance()
    name = f"{ProcessLauncher.__module__}.{ProcessLauncher.__name__}"
    if name not in plugins.class_name_to_class:
        accepts = plugins.is_in_toplevel_plugins_module
        plugins.register(ProcessLauncher)
        plugins.is_in_toplevel_plugins_module = lambda clazz: clazz == name or accepts(clazz)  # type: ignore[method-assign]
