"""What a result depends on besides the configuration: versions, git state, machine, memory. Read without importing torch."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "coordvlm", "torch", "lightning", "transformers", "peft", "tokenizers", "safetensors", "torchmetrics", "hydra-core", "omegaconf",
    "numpy", "scipy", "pandas", "pillow", "pycocotools", "faster-coco-eval", "matplotlib", "wandb",
)


def versions() -> dict[str, str | None]:
    """Installed versions, None for a package that is missing."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit, branch and whether tracked files differ from it; None outside a repository or without git."""

    def git(*args: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *args], capture_output=True, text=True, timeout=10, check=True, env={**os.environ, "LC_ALL": "C"}
        )
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != folder.resolve():
            return None  # installed inside some other repository
        return {
            "commit": git("rev-parse", "HEAD"),
            "branch": git("rev-parse", "--abbrev-ref", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def hardware() -> dict[str, Any]:
    """Machine, cores, load and memory; GPUs if torch has been imported and sees any."""
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "cpu_usable": _usable_cpus(),
        "load_average": load_average(),
        "memory_bytes": _memory_bytes(),
        "gpus": _gpu_names(),
    }


def load_average() -> tuple[float, float, float] | None:
    """Over 1, 5 and 15 minutes; timings mean little beside a high load."""
    try:
        one, five, fifteen = os.getloadavg()
    except (OSError, AttributeError):
        return None
    return round(one, 2), round(five, 2), round(fifteen, 2)


def _usable_cpus() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError, AttributeError):
        return None


def _gpu_names() -> list[str]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def peak_memory() -> dict[str, int]:
    """Peak resident bytes of this process and of its largest finished child, and of each GPU in use."""
    found: dict[str, int] = {}
    try:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        found["rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        found["child_rss_bytes"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    except ImportError:
        pass
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        for index in range(torch.cuda.device_count()):
            found[f"cuda{index}_bytes"] = torch.cuda.max_memory_allocated(index)
    return found
