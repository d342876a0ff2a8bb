"""The repository as a whole: set-up, pins, size, words, the import rule."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TARGETS = (
    "help", "setup", "setup-dev", "train", "eval", "predict", "sweep", "bench", "audit", "test", "test-fast", "lint", "types", "clean",
)
COMMANDS = ("train", "eval", "predict", "export", "compare", "audit")


def run(*command: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if key not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHON", "VENV"}}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**clean, **env}, check=False)


def tracked() -> list[Path]:
    done = run("git", "ls-files", "-z")
    if done.returncode:
        pytest.skip("not a git repository")
    return [path for name in done.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    return {normal(name): version for name, version in (line.split("==") for line in lines if line)}


@pytest.fixture
def make() -> str:
    return shutil.which("make") or pytest.skip("make is not installed")


def test_make_alone_lists_every_target_with_its_purpose(make: str) -> None:
    shown = run(make).stdout
    for target in TARGETS:
        assert re.search(rf"^  {target} +\w", shown, re.MULTILINE), target
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    assert set(phony[1].split()) == set(TARGETS)


@pytest.mark.parametrize("python", ["/nonexistent/python3", "false"])
def test_an_unusable_python_is_a_clear_error(make: str, tmp_path: Path, python: str) -> None:
    done = run(make, "setup", f"PYTHON={python}", f"VENV={tmp_path}/venv")
    assert done.returncode != 0
    assert f"error: {python} is not a Python >= 3.11" in done.stderr
    done = run(make, "setup", "PYTHON=", f"VENV={tmp_path}/venv")
    assert "error: no Python >= 3.11" in done.stderr


def test_a_second_make_installs_nothing(make: str, tmp_path: Path) -> None:
    for stamp in (".made", ".torch", ".installed", ".installed-dev"):  # in this order, all newer than what they depend on
        (tmp_path / stamp).touch()
        os.utime(tmp_path / stamp, (2**32, 2**32))
    assert run(make, "setup-dev", f"VENV={tmp_path}").stdout.replace("make: Nothing to be done for 'setup-dev'.", "").strip() == ""


def test_constraints_pin_every_dependency_within_its_range() -> None:
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = pins()
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    for requirement in map(Requirement, wanted):
        version = pinned[normal(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement} but constraints.txt has {version}"


def test_constraints_are_plain_and_sorted() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert lines == sorted(lines, key=lambda line: line.split("=="))
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in lines)


def test_no_tracked_file_is_large() -> None:
    large = {str(path.relative_to(ROOT)): path.stat().st_size for path in tracked() if path.stat().st_size > 500_000}
    assert large == {}


def test_source_files_stay_readable_in_one_sitting() -> None:
    sources = [path for path in tracked() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] == "coordvlm"]
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources}
    assert {name: count for name, count in lines.items() if count > 330} == {}


def test_no_private_paths_or_unfinished_words() -> None:
    words = ["/wo" + "rk/", "/ro" + "ot/", "file:///o" + "pt", "nan_to" + "_num(", "FIX" + "ME", "XX" + "X "]
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {word}" for word in words if word in text]
    assert found == []


def test_imports_go_in_one_direction() -> None:
    command = Path(sys.executable).with_name("lint-imports")
    if not command.is_file():
        pytest.skip("import-linter is not installed")
    done = run(str(command))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", [name for name in COMMANDS if (ROOT / "coordvlm" / f"{name}.py").is_file()])
def test_a_command_imports_nothing_heavy_before_it_has_read_its_arguments(command: str) -> None:
    heavy = ("torch", "lightning", "transformers", "peft", "matplotlib", "pandas", "scipy")
    code = f"import coordvlm.{command}, sys; print([m for m in {heavy} if m in sys.modules])"
    done = run(sys.executable, "-c", code)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.slow
def test_the_wheel_carries_the_configuration(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for path in tracked():
        target = source / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    (source / "README.md").touch()
    pip = (sys.executable, "-m", "pip", "-q")
    done = run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(source))
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    inside = {name.removeprefix("coordvlm/") for name in zipfile.ZipFile(wheel).namelist()}
    conf = {str(path.relative_to(ROOT)) for path in tracked() if path.suffix == ".yaml" and path.relative_to(ROOT).parts[0] == "conf"}
    assert conf
    assert conf <= inside
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "from coordvlm.utils import locations as l; print(l.conf_dir(), l.repository(), l.outputs_root(), sep='\\n')"
    done = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"), COORDVLM_OUTPUTS="")
    assert done.stdout.splitlines() == [str(tmp_path / "site" / "coordvlm" / "conf"), "None", str(tmp_path / "outputs")], done.stderr
    if {"train.py", "conf/train.yaml"} <= inside:
        done = run(sys.executable, "-m", "coordvlm.train", "--cfg", "job", cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
        assert done.returncode == 0, done.stderr
