"""One screen for a bug report: versions, machine, devices, settings. Needs no configuration and never fails.

python -m coordvlm.env            paste this into a bug report
python -m coordvlm.env --json     the same for a program
python -m coordvlm.env --quick    without importing torch and what builds on it: no GPUs, under a second

Secrets are never printed: a variable that may hold one is named as set or unset.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from coordvlm.utils import environment, locations

#: What a run imports; imported here in a process of its own, so that one that crashes is a line on the screen.
IMPORTED = ("torch", "lightning", "transformers", "peft", "torchmetrics", "faster_coco_eval", "wandb")
#: What is used where it is there, and what for.
OPTIONAL = {
    "torchvision": "faster image processing", "flash-attn": "attention on CUDA", "bitsandbytes": "qlora, CUDA only", "triton": "compiling",
    "tensorboard": "logger=tensorboard", "accelerate": "", "datasets": "",
}
#: Variables worth knowing, shown when they are set; a trailing * stands for any ending.
VARIABLES = (
    "COORDVLM_*", "CUDA_*", "HF_*", "TRANSFORMERS_*", "TORCH_*", "PYTORCH_*", "NCCL_*", "WANDB_*", "HYDRA_*", "SLURM_JOB_ID", "RANK",
    "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_*", "GOMP_*", "MKL_*", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS",
    "TOKENIZERS_PARALLELISM", "PYTHONPATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "VIRTUAL_ENV", "CONDA_PREFIX", "HTTP_PROXY", "HTTPS_PROXY",
    "http_proxy", "https_proxy", "TMPDIR",
)
#: Always named, as set or unset, never shown.
SECRETS = ("HF_TOKEN", "WANDB_API_KEY")
_SECRET = re.compile(r"KEY|TOKEN(?!IZERS)|SECRET|PASS|CREDENTIAL|AUTH|COOKIE", re.IGNORECASE)
_IN_URL = re.compile(r"(?<=://)[^/@\s]*@")
_TIMEOUT_S = 180.0

#: Runs in a process of its own: imports each name given, then asks torch for its devices; one line of JSON after each.
_PROBE = """
import importlib, json, sys, time
def tell(name, **found):
    print("\\x1e" + json.dumps([name, found]), flush=True)
for name in sys.argv[1:]:
    start = time.perf_counter()
    print("\\x1e" + json.dumps([name, {"began": True}]), flush=True)
    try:
        importlib.import_module(name)
        tell(name, seconds=round(time.perf_counter() - start, 2))
    except BaseException as error:
        tell(name, error=f"{type(error).__name__}: {str(error).strip()[:400]}")
    if name == "torch" and "torch" in sys.modules:
        try:
            import torch
            found = {"cuda_build": torch.version.cuda, "cuda_available": torch.cuda.is_available(), "threads": torch.get_num_threads(),
                     "interop_threads": torch.get_num_interop_threads(), "mps": bool(torch.backends.mps.is_available()), "gpus": []}
            if found["cuda_available"]:
                found["cudnn"] = torch.backends.cudnn.version()
                for index in range(torch.cuda.device_count()):
                    free, total = torch.cuda.mem_get_info(index)
                    found["gpus"].append({"name": torch.cuda.get_device_name(index), "free_bytes": free, "total_bytes": total,
                                          "capability": "%d.%d" % torch.cuda.get_device_capability(index)})
            tell("devices", **found)
        except BaseException as error:
            tell("devices", error=f"{type(error).__name__}: {str(error).strip()[:400]}")
"""


def collect(*, quick: bool = False) -> dict[str, Any]:
    """Everything, as plain JSON values. A part that cannot be found out holds its error in its place."""
    root = locations.repository()
    probed = {} if quick else _guard(lambda: probe(IMPORTED))
    return {
        "coordvlm": _guard(lambda: {
            "version": environment.versions()["coordvlm"], "from": str(Path(__file__).resolve().parent),
            "git": None if root is None else environment.git_state(root),
        }),
        "python": {"version": sys.version.split()[0], "executable": sys.executable},
        "packages": _guard(environment.versions),
        "optional": {name: _guard(lambda n=name: _version(n)) for name in OPTIONAL},  # type: ignore[misc]
        "imports": {name: probed[name] for name in IMPORTED if name in probed},
        "devices": probed if "error" in probed else probed.get("devices", {}),
        "driver": _guard(_driver),
        "machine": _guard(environment.hardware),
        "disk": _guard(_disk),
        "variables": _guard(lambda: variables(os.environ)),
    }


def probe(names: Sequence[str], *, timeout_s: float = _TIMEOUT_S) -> dict[str, dict[str, Any]]:
    """Import modules in another process: name -> seconds or error, and ``devices`` after torch.

    One that kills the process does not hide the rest: the next ones are tried in a new one.
    """
    found: dict[str, dict[str, Any]] = {}
    left = list(names)
    while left:
        done, why = _run_probe(left, timeout_s)
        for name, values in done:
            found[name] = {**({} if "began" in values else found.get(name, {})), **values}
        began = [name for name, values in found.items() if values == {"began": True}]
        for name in found:
            found[name].pop("began", None)
        if not began:
            left = [] if not why else [n for n in left if n not in found]
            if left and not done:  # not even the first one began
                return found | {name: {"error": why} for name in left}
            continue
        found[began[0]] = {"error": why or "ended the process"}
        left = left[left.index(began[0]) + 1 :]
    return found


def _run_probe(names: Sequence[str], timeout_s: float) -> tuple[list[tuple[str, dict[str, Any]]], str]:
    """What the process told before it ended, and how it ended if not well."""
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", _PROBE, *names], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, text=True,
            errors="replace",
        )
    except OSError as error:
        return [], f"{type(error).__name__}: {error}"
    late = threading.Event()

    def give_up() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(timeout_s, give_up)
    timer.start()
    try:
        assert process.stdout is not None
        told = [json.loads(line.partition("\x1e")[2]) for line in process.stdout if "\x1e" in line]
        code = process.wait()
    finally:
        timer.cancel()
        process.kill()
    why = ""
    if late.is_set():
        why = f"took more than {timeout_s:.0f} s"
    elif code < 0:
        why = f"killed the process ({signal.Signals(-code).name})"
    elif code:
        why = f"ended the process with status {code}"
    return [(name, values) for name, values in told], why


def variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Name -> value of the variables worth knowing; ``set`` or ``unset`` for secrets; passwords in URLs are cut out."""
    exact = {name for name in VARIABLES if not name.endswith("*")}
    starts = tuple(name[:-1] for name in VARIABLES if name.endswith("*"))
    shown = {}
    for name in sorted(set(environ) | set(SECRETS)):
        if name in SECRETS or ((name in exact or name.startswith(starts)) and _SECRET.search(name)):
            shown[name] = "set" if environ.get(name) else "unset"
        elif name in exact or name.startswith(starts):
            shown[name] = _IN_URL.sub("***@", environ[name])
    return shown


def _guard(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    """NVIDIA's, from nvidia-smi; None without."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)
    return done.stdout.split()[0] if done.returncode == 0 and done.stdout.split() else f"nvidia-smi failed with status {done.returncode}"


def _disk() -> dict[str, Any]:
    """Where output goes, and the space of its nearest folder that exists."""
    outputs = locations.outputs_root()
    place = next(p for p in (outputs, *outputs.parents) if p.exists())
    usage = shutil.disk_usage(place)
    return {
        "outputs": str(outputs), "exists": outputs.is_dir(), "writable": os.access(place, os.W_OK),
        "free_bytes": usage.free, "total_bytes": usage.total,
    }


# --------------------------------------------------------------------- the screen
def render(found: Mapping[str, Any]) -> str:
    """The screen, plain text; a part that could not be read shows its error."""
    lines = [_line("coordvlm", _ours(found["coordvlm"])), _line("python", f"{found['python']['version']}  {found['python']['executable']}")]
    lines += _packages(found)
    lines += _wrap("optional", [f"{name} {_told(value) or 'absent'}" for name, value in found["optional"].items()])
    lines += _devices(found)
    lines += _machine(found["machine"], found["disk"])
    shown = found["variables"]
    if "error" in shown:
        lines.append(_line("variables", shown["error"]))
    else:
        secret = [f"{name} {value}" for name, value in shown.items() if value in ("set", "unset") and _SECRET.search(name)]
        lines += _wrap("secrets", secret)
        rest = [f"{name}={value}" for name, value in shown.items() if f"{name} {value}" not in secret]
        lines += [_line("variables" if not i else "", text) for i, text in enumerate(rest or ["none of those worth knowing is set"])]
    return "\n".join(lines)


def _ours(found: Mapping[str, Any]) -> str:
    if "error" in found:
        return str(found["error"])
    git = found.get("git")
    state = f"  commit {git['commit'][:12]} ({git['branch']}{', uncommitted changes' if git['dirty'] else ''})" if git else ""
    return f"{found['version'] or 'not installed'}{state}  {found['from']}"


def _packages(found: Mapping[str, Any]) -> list[str]:
    packages = found["packages"]
    shown = [f"{name} {version or 'MISSING'}" for name, version in packages.items() if name not in ("python", "coordvlm", "error")]
    shown += [packages["error"]] if "error" in packages else []
    imports = found["imports"]
    times = [f"{name} {values['seconds']} s" for name, values in imports.items() if "seconds" in values]
    broken = [_line("BROKEN", f"import {name}: {values['error']}") for name, values in imports.items() if "error" in values]
    return [*_wrap("packages", shown), *(_wrap("imports", times) if times else []), *broken]


def _devices(found: Mapping[str, Any]) -> list[str]:
    devices, driver = found["devices"], found["driver"]
    words = [f"driver {_told(driver) or 'none'}"]
    if "error" in devices:
        words.append(devices["error"])
    elif devices:
        words.append(f"torch built for CUDA {devices['cuda_build']}" if devices["cuda_build"] else "torch built without CUDA")
        words.append(f"cudnn {devices['cudnn']}" if devices["cuda_available"] else "CUDA not available")
        words += ["MPS"] if devices["mps"] else []
    else:
        words.append("torch was not asked")
    lines = [_line("gpu", ", ".join(words))]
    for index, gpu in enumerate(devices.get("gpus", ())):
        memory = f"{_gib(gpu['free_bytes'])} free of {_gib(gpu['total_bytes'])}"
        lines.append(_line("", f"{index}: {gpu['name']}, {memory}, capability {gpu['capability']}"))
    if "threads" in devices:
        lines.append(_line("threads", f"torch {devices['threads']}, between operators {devices['interop_threads']}"))
    return lines


def _machine(machine: Mapping[str, Any], disk: Mapping[str, Any]) -> list[str]:
    lines = []
    if "error" in machine:
        lines.append(_line("machine", machine["error"]))
    else:
        load = machine["load_average"]
        memory = machine["memory_bytes"]
        cores = f"{machine['cpu_usable']} of {machine['cpu_count']} cores usable"
        lines += [
            _line("system", machine["platform"]),
            _line("cpu", f"{machine['processor']}, {cores}" + (f", load {load[0]}" if load else "")),
            _line("memory", _gib(memory) if memory else "unknown"),
        ]
    if "error" in disk:
        return [*lines, _line("outputs", disk["error"])]
    notes = ["" if disk["exists"] else ", not made yet", "" if disk["writable"] else ", NOT WRITABLE"]
    free = f"{_gib(disk['free_bytes'])} free of {_gib(disk['total_bytes'])}"
    return [*lines, _line("outputs", f"{disk['outputs']}{''.join(notes)}, {free}")]


def _told(value: Any) -> Any:
    """A value, or the error in its place."""
    return value["error"] if isinstance(value, Mapping) and "error" in value else value


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _line(name: str, text: object) -> str:
    return f"{name:<10} {' '.join(str(text).split())}"


def _wrap(name: str, parts: Sequence[str], width: int = 100) -> list[str]:
    """Parts in as few lines as the screen's width allows."""
    rows: list[str] = []
    for part in parts:
        if rows and len(rows[-1]) + len(part) + 2 <= width:
            rows[-1] += f", {part}"
        else:
            rows.append(part)
    return [_line(name if not i else "", row) for i, row in enumerate(rows)]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; always 0, unless an argument is unknown."""
    parser = argparse.ArgumentParser("python -m coordvlm.env", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="JSON instead of a screen")
    parser.add_argument("--quick", action="store_true", help="import nothing: no GPUs, no broken imports")
    args = parser.parse_args(argv)
    found = collect(quick=args.quick)
    print(json.dumps(found, indent=2, default=str) if args.json else render(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
