from __future__ import annotations

import copyreg
import os
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordvlm.data.unpickle import load_plain
from coordvlm.utils.errors import DataError
from tests.data.phrase_layouts import python2_pickle

PLAIN = [{"ref_id": 3, "sentences": [{"sent": "caf\u00e9", "tokens": ("a", "b")}], "box": [1.5, -2.0, 1e300], "none": None, "yes": True,
          "large": 2**70}]


class Calls:
    """Pickled as a call of ``function(*args)``."""

    def __init__(self, function: Callable[..., Any], *args: object) -> None:
        self._call = function, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self._call


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "refs(unc).p"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_of_every_protocol_is_read(file: Path, protocol: int) -> None:
    file.write_bytes(pickle.dumps(PLAIN, protocol))
    assert load_plain(file) == (PLAIN, "utf-8")


def test_byte_strings_of_python_2_are_text(file: Path) -> None:
    file.write_bytes(python2_pickle([{"raw": "left dog", "ref_id": 7, "flag": True}]))
    assert load_plain(file) == ([{"raw": "left dog", "ref_id": 7, "flag": True}], "utf-8")
    file.write_bytes(python2_pickle([{"raw": "caf\u00e9"}]))
    assert load_plain(file) == ([{"raw": "caf\u00e9"}], "latin1")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(("make", "named"), [
    (lambda mark: Calls(os.system, f"touch {mark}"), r"\w+\.system"),
    (lambda mark: [{"sentences": [{"sent": Calls(os.system, f"touch {mark}")}]}], r"\w+\.system"),
    (lambda mark: Calls(eval, f"open({mark!r}, 'w')"), r"\w+\.eval"),
    (lambda mark: eval, r"\w+\.eval"),
    (lambda mark: {"a": OrderedDict(b=1)}, r"collections\.OrderedDict"),
    (lambda mark: [np.int64(3)], r"numpy\S*\.\w+"),
    (lambda mark: Calls(getattr, [], "append"), r"\w+\.getattr"),
], ids=["system", "nested", "eval", "eval itself", "class", "numpy", "getattr"])
def test_code_is_refused_by_name_and_never_run(file: Path, protocol: int, make: Callable[[str], object], named: str) -> None:
    mark = file.with_name("mark")
    file.write_bytes(pickle.dumps(make(str(mark)), protocol))
    with pytest.raises(DataError, match=rf"refs\(unc\)\.p: a pickle must hold plain containers.*got '{named}'"):
        load_plain(file)
    assert not mark.exists()


@pytest.mark.parametrize("program", [
    b"cos\nsystem\n(S'touch {}'\ntR.", b"(S'touch {}'\nios\nsystem\n.", b"(cos\nsystem\nS'touch {}'\no.",
    b"\x80\x04\x8c\x02os\x8c\x06system\x93(\x8c\x01xtR.", b"\x80\x02cos\nsystem\n)\x81.", b"Pid\n.",
], ids=["global", "inst", "obj", "stack global", "newobj", "persistent"])
def test_handwritten_programs_are_refused(file: Path, program: bytes) -> None:
    file.write_bytes(program.replace(b"{}", str(file.with_name("mark")).encode()))
    with pytest.raises(DataError, match="asks for code or a class"):
        load_plain(file)
    assert not file.with_name("mark").exists()


def test_a_registered_extension_code_is_no_way_in(file: Path) -> None:
    copyreg.add_extension("os", "getcwd", 240)
    try:
        file.write_bytes(b"\x80\x02\x82\xf0)R.")
        with pytest.raises(DataError, match=r"asks for code or a class.*os\.getcwd"):
            load_plain(file)
    finally:
        copyreg.remove_extension("os", "getcwd", 240)


@pytest.mark.parametrize("data", [
    b"", b"no pickle", pickle.dumps(PLAIN)[:-20], b"\x80\x02]}b.", b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b".", b"R.",
], ids=["empty", "text", "cut", "state of a list", "huge", "underflow"])
def test_broken_pickles_are_refused(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"refs\(unc\)\.p: the file must be a complete pickle"):
        load_plain(file)


def test_size_rest_and_absence(file: Path) -> None:
    with pytest.raises(DataError, match=r"refs\(unc\)\.p: the file with the referring expressions must exist"):
        load_plain(file)
    file.write_bytes(pickle.dumps(PLAIN))
    with pytest.raises(DataError, match="must not have more than 10 bytes: got"):
        load_plain(file, max_bytes=10)
    file.write_bytes(pickle.dumps([1]) + pickle.dumps([2]))
    with pytest.raises(DataError, match="must end where its file ends"):
        load_plain(file)
