from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from coordvlm.utils import environment


def git(folder: Path, *args: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_git_state_tells_commit_and_changes(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "-b", "trunk")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-qm", "first")
    state = environment.git_state(tmp_path)
    assert state == {"commit": git(tmp_path, "rev-parse", "HEAD"), "branch": "trunk", "dirty": False}
    (tmp_path / "a").write_text("2")
    assert environment.git_state(tmp_path)["dirty"] is True  # type: ignore[index]


def test_no_repository_of_ours_is_none(tmp_path: Path) -> None:
    assert environment.git_state(tmp_path) is None
    git(tmp_path, "init", "-q")
    (tmp_path / "site-packages").mkdir()
    assert environment.git_state(tmp_path / "site-packages") is None


def test_versions_name_a_missing_package(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(environment, "PACKAGES", ("numpy", "no-such-package-at-all"))
    found = environment.versions()
    assert found["numpy"] == sys.modules["numpy"].__version__ if "numpy" in sys.modules else found["numpy"]
    assert found["no-such-package-at-all"] is None


def test_the_machine_is_described_without_importing_torch() -> None:
    code = "from coordvlm.utils import environment as e, record; import sys; e.hardware(), e.peak_memory(), e.versions()"
    code += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    hardware = environment.hardware()
    assert hardware["memory_bytes"] > 1e8
    assert hardware["cpu_usable"] <= hardware["cpu_count"]
    assert isinstance(hardware["gpus"], list)
