from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest

from coordvlm.utils import files
from coordvlm.utils.files import (
    OutputError,
    atomic_folder,
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    check_writable,
    sha1_file,
)


def full_disk(*_: object, **__: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def checkpoint(folder: Path, text: str) -> None:
    with atomic_folder(folder) as new:
        (new / "trained.safetensors").write_text(text)
        (new / "nested").mkdir()
        (new / "nested" / "more").write_text(text)


def write_and_raise(folder: Path, error: BaseException) -> None:
    with atomic_folder(folder, 5) as new:
        (new / "trained.safetensors").write_text("half")
        raise error


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    atomic_write_text(path, "é\r\n")
    atomic_write_bytes(path, path.read_bytes() * 2)
    assert path.read_bytes() == "é\r\né\r\n".encode()
    assert [x.name for x in path.parent.iterdir()] == ["a.txt"]


def test_a_new_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "ours", "")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_full_disk_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    path = tmp_path / "a.json"
    atomic_write_json(path, {"a": 1})
    monkeypatch.setattr(os, broken, full_disk)
    with pytest.raises(OutputError, match=r"a\.json: cannot write: No space left.*needed \d+ bytes, free [\d,]+ bytes"):
        atomic_write_json(path, {"a": 222})
    monkeypatch.undo()
    assert json.loads(path.read_text()) == {"a": 1}
    assert [x.name for x in tmp_path.iterdir()] == ["a.json"]


def test_json_holds_no_numbers_that_json_lacks(tmp_path: Path) -> None:
    atomic_write_json(tmp_path / "a.json", {"nan": float("nan"), "list": [float("inf"), 1.5], 3: Path("p"), "t": (1, None)})
    assert json.loads((tmp_path / "a.json").read_text()) == {"nan": None, "list": [None, 1.5], "3": "p", "t": [1, None]}


@pytest.mark.parametrize("write", [atomic_write_bytes, lambda path, data: checkpoint(path, "x"), lambda path, data: check_writable(path)])
def test_a_path_below_a_file_is_a_clear_error(tmp_path: Path, write) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write") as caught:
        write(tmp_path / "file" / "below", b"x")
    assert str(tmp_path / "file") in str(caught.value)


def test_a_folder_is_not_overwritten_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="directory"):
        atomic_write_bytes(tmp_path / "folder", b"x")


def test_a_folder_appears_whole_and_replaces_the_earlier_one(tmp_path: Path) -> None:
    target = tmp_path / "checkpoints" / "last"
    for text in ("one", "two"):
        checkpoint(target, text)
        assert (target / "nested" / "more").read_text() == text
    assert [x.name for x in target.parent.iterdir()] == ["last"]


def test_the_earlier_folder_survives_an_error_while_writing(tmp_path: Path) -> None:
    target = tmp_path / "best"
    checkpoint(target, "good")
    for error in (ValueError("a bug"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            write_and_raise(target, error)
    with pytest.raises(OutputError, match="best: cannot write: No space left on device; needed 5 bytes, free"):
        write_and_raise(target, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert (target / "trained.safetensors").read_text() == "good"
    assert [x.name for x in tmp_path.iterdir()] == ["best"]


@pytest.mark.parametrize("fails_at", [1, 2])
def test_the_earlier_folder_survives_a_failing_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int) -> None:
    target = tmp_path / "best"
    checkpoint(target, "good")
    real, calls = os.rename, []

    def rename(source: object, to: object) -> None:
        calls.append(source)
        if len(calls) == fails_at:
            full_disk()
        real(source, to)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OutputError):
        checkpoint(target, "new")
    assert (target / "trained.safetensors").read_text() == "good"
    assert [x.name for x in tmp_path.iterdir()] == ["best"]


def test_a_process_that_died_between_the_renames_loses_nothing(tmp_path: Path) -> None:
    target = tmp_path / "best"
    checkpoint(target, "good")
    target.rename(tmp_path / ".best.old")
    files.recover_folder(target)
    assert (target / "trained.safetensors").read_text() == "good"


def test_too_little_space_is_known_before_writing(tmp_path: Path) -> None:
    target = tmp_path / "best"
    checkpoint(target, "good")
    with pytest.raises(OutputError, match=r"needed 1,000,000,000,000,000,000 bytes, free [\d,]+ bytes"), atomic_folder(target, 10**18):
        raise AssertionError("must not be entered")
    with pytest.raises(OutputError, match="not enough space"):
        check_writable(tmp_path / "out", 10**18)
    check_writable(tmp_path / "out", 1)
    assert list((tmp_path / "out").iterdir()) == []


def test_sha1_is_that_of_the_bytes(tmp_path: Path) -> None:
    data = bytes(range(256)) * 1000
    (tmp_path / "a").write_bytes(data)
    assert sha1_file(tmp_path / "a") == hashlib.sha1(data).hexdigest()
