from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from coordvlm import env

ROOT = Path(__file__).parents[1]


def run_env(*argv: str, **environ: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "coordvlm.env", *argv], capture_output=True, text=True, check=True, env={**os.environ, **environ}, cwd=ROOT
    )
    assert done.stderr == ""
    return done.stdout


def test_the_screen_is_one_screen_and_says_what_a_bug_report_needs(tmp_path: Path) -> None:
    out = run_env(COORDVLM_OUTPUTS=str(tmp_path / "new" / "out"), HF_TOKEN="hf_verysecret", OMP_NUM_THREADS="1")
    lines = out.splitlines()
    assert len(lines) <= 50
    assert max(len(line) for line in lines if "=" not in line and str(tmp_path) not in line) <= 130
    for part in ("coordvlm ", "python ", "torch 2", "lightning 2", "transformers 5", "imports    torch ", "gpu ", "threads    torch 1",
                 "cpu ", "memory ", f"{tmp_path / 'new' / 'out'}, not made yet", "torchvision ", "flash-attn ", "bitsandbytes ",
                 "HF_TOKEN set", "OMP_NUM_THREADS=1"):
        assert part in out, part
    assert "verysecret" not in out
    assert "BROKEN" not in out


def test_json_is_whole_and_quick_does_not_import_torch(tmp_path: Path) -> None:
    found = json.loads(run_env("--json", "--quick", COORDVLM_OUTPUTS=str(tmp_path)))
    assert set(found) == {"coordvlm", "python", "packages", "optional", "imports", "devices", "driver", "machine", "disk", "variables"}
    assert (found["imports"], found["devices"]) == ({}, {})
    assert found["disk"]["outputs"] == str(tmp_path)
    assert found["disk"]["free_bytes"] > 0
    assert found["packages"]["torch"]


def test_secrets_are_named_and_never_shown() -> None:
    shown = env.variables({
        "WANDB_API_KEY": "k1", "HF_TOKEN_PATH": "/s1", "HF_HUB_OFFLINE": "1", "COORDVLM_PASSWORD": "p1", "https_proxy": "http://me:pw@host:80",
        "TOKENIZERS_PARALLELISM": "false", "AWS_SECRET": "a1", "HOME": "/root", "WANDB_MODE": "offline", "CUDA_VISIBLE_DEVICES": "",
    })
    assert shown == {
        "WANDB_API_KEY": "set", "HF_TOKEN": "unset", "HF_TOKEN_PATH": "set", "HF_HUB_OFFLINE": "1", "COORDVLM_PASSWORD": "set",
        "https_proxy": "http://***@host:80", "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "offline", "CUDA_VISIBLE_DEVICES": "",
    }


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Modules that break in every way."""
    files = {
        "good": "print('noise')", "raises": "raise OSError('libcudart.so.12: cannot open shared object file')",
        "exits": "import os; os._exit(3)",
        "dies": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "sleeps": "import time; time.sleep(60)",
        "leaves": "import sys; sys.exit('go away')",
    }
    for name, text in files.items():
        (tmp_path / f"probe_{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_a_broken_import_is_its_error_and_hides_nothing(modules: Path) -> None:
    names = [f"probe_{x}" for x in ("raises", "dies", "good", "exits", "leaves", "absent")]
    found = env.probe(names)
    assert list(found["probe_good"]) == ["seconds"]
    assert found["probe_raises"]["error"] == "OSError: libcudart.so.12: cannot open shared object file"
    assert found["probe_dies"]["error"] == "killed the process (SIGSEGV)"
    assert found["probe_exits"]["error"] == "ended the process with status 3"
    assert found["probe_leaves"]["error"] == "SystemExit: go away"
    assert found["probe_absent"]["error"] == "ModuleNotFoundError: No module named 'probe_absent'"


def test_an_import_that_hangs_is_given_up(modules: Path) -> None:
    found = env.probe(["probe_sleeps", "probe_good"], timeout_s=1.0)
    assert found["probe_sleeps"]["error"] == "took more than 1 s"
    assert "seconds" in found["probe_good"]


def test_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env.sys, "executable", "/nowhere/python")
    assert "FileNotFoundError" in env.probe(["torch", "peft"])["peft"]["error"]


def test_every_part_may_fail_and_the_screen_still_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no such thing")

    for where, name in ((env.environment, "versions"), (env.environment, "hardware"), (env.environment, "git_state"), (env, "_disk"),
                        (env, "_driver"), (env, "variables"), (env, "_version")):
        monkeypatch.setattr(where, name, broken)
    monkeypatch.setattr(env, "probe", lambda names: {
        "torch": {"error": "ImportError: libtorch"}, "devices": {"error": "RuntimeError: no driver"}, "peft": {"seconds": 0.1},
    })
    text = env.render(env.collect())
    assert text.count("RuntimeError: no such thing") >= 6
    assert "BROKEN     import torch: ImportError: libtorch" in text
    assert "RuntimeError: no driver" in text
    json.dumps(env.collect())


def test_gpus_are_listed_with_their_memory() -> None:
    found = env.collect(quick=True)
    gpu = {"name": "NVIDIA H200", "free_bytes": 130 * 2**30, "total_bytes": 140 * 2**30, "capability": "9.0"}
    found["devices"] = {
        "cuda_build": "12.8", "cuda_available": True, "cudnn": 91002, "threads": 8, "interop_threads": 8, "mps": False, "gpus": [gpu],
    }
    text = env.render(found)
    assert "torch built for CUDA 12.8, cudnn 91002" in text
    assert "0: NVIDIA H200, 130.0 GiB free of 140.0 GiB, capability 9.0" in text
