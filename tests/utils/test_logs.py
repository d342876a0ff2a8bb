from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordvlm.utils import logs


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    level = logging.getLogger().level
    yield
    logs.close()
    logging.getLogger().setLevel(level)


def test_the_console_is_short_and_the_file_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):  # however often it is configured, a line appears once
        logs.configure(tmp_path)
    logging.getLogger("coordvlm.train").info("ours")
    logging.getLogger("library").info("theirs")
    logging.getLogger("library").warning("their warning")
    logs.close()
    out = capsys.readouterr().out
    assert out == "ours\ntheir warning\n"
    text = (tmp_path / "run.log").read_text()
    assert [text.count(x) for x in ("ours", "theirs", "their warning")] == [1, 1, 1]


def test_a_long_line_stays_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    logging.getLogger("coordvlm").info("x" * 500 + " [bold]")
    assert capsys.readouterr().out == "x" * 500 + " [bold]\n"


def test_other_ranks_keep_to_their_own_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    logs.configure(tmp_path)
    logging.getLogger("coordvlm").info("from rank one")
    logs.close()
    assert capsys.readouterr().out == ""
    assert "from rank one" in (tmp_path / "run.rank1.log").read_text()
