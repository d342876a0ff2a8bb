"""The page of data formats: its files are written, its commands are run, its messages are those that are printed."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

import coordvlm.data
from coordvlm.data.checks import Fault
from tests.data.layouts import picture
from tests.data.phrase_layouts import write_small_phrases
from tests.data.point_layouts import write_small_points
from tests.e2e.commands import FAST, finished, refusal, train

FOLDER = Path(coordvlm.data.__file__).parent
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")
IMAGES = (
    "mine/images/cat.jpg", "mine/images/street.jpg", "mine/images/sofa.jpg", "mycoco/images/cat.jpg", "mycoco/images/sofa.jpg",
    "coco8/images/train/cat.jpg", "coco8/images/train/street.jpg", "coco8/images/val/sofa.jpg", "VOC2007/JPEGImages/000005.jpg",
    "VOC2007/JPEGImages/000007.jpg", "refexp/dogs.jpg", "refexp/cats.jpg", "counts/images/bowl.jpg", "counts/images/tree.jpg",
    "counts/images/table.jpg", *(f"clips/frames/{clip}/{i}.jpg" for clip in ("street", "kitchen") for i in range(3)),
)


@dataclass(frozen=True)
class Block:
    language: str
    file: str | None
    text: str


BLOCKS = [Block(*found) for found in re.findall(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```$", PAGE, re.M | re.S)]
COMMANDS = [
    (line, None if after is None or after.language != "text" or after.file else after.text.strip())
    for block, after in zip(BLOCKS, [*BLOCKS[1:], None], strict=True)
    if block.language == "bash"
    for line in block.text.splitlines()
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of the page, and the images they speak of."""
    for block in BLOCKS:
        if block.file:
            (tmp_path / block.file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / block.file).write_text(block.text)
    for image in IMAGES:
        picture(tmp_path / image, (640, 480))
    write_small_phrases("phrase_mix", tmp_path / "datasets")  # pickles, which a page cannot show
    write_small_points("fsc147", tmp_path / "FSC147")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_has_a_command_for_every_source() -> None:
    shown = {word for command, _ in COMMANDS for word in command.split() if word.startswith("data=")}
    assert shown == {f"data={p.stem}" for p in (FOLDER.parents[1] / "conf" / "data").glob("*.yaml")}


@pytest.mark.parametrize(("command", "message"), COMMANDS, ids=[f"{i}-{c.split()[3]}" for i, (c, _) in enumerate(COMMANDS)])
def test_commands_do_what_the_page_says(folder: Path, command: str, message: str | None) -> None:
    program, argv = command.split()[:3], shlex.split(command)[3:]
    assert program == ["python", "-m", "coordvlm.train"]
    small = ["trainer.max_steps=1", "trainer.val_check_interval=1", "data.batch_size=1", "data.val_images=1", "data.eval_batch_size=1"]
    if message is None:
        ran = finished(folder, *argv, *small)
        assert ran.record["data_counts"]["train"]["images"] >= 1
    else:
        assert refusal(train(folder, *FAST, *argv, *small)).strip() == message


def test_every_count_is_on_the_page() -> None:
    sources = "".join(p.read_text() for p in FOLDER.glob("*.py"))
    found = re.findall(r"refuse\(\s*\"(\w+)\"|(?:counts|dropped)\[\"(\w+)\"\]", sources)
    counted = {f.key for f in Fault if f} | {name for pair in found for name in pair if name}
    assert len(counted) > 20
    assert not {name for name in counted if f"`{name}`" not in PAGE}
