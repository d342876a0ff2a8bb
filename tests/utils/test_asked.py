"""images= and phrases= in all their spellings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from coordvlm.utils.asked import find_images, read_requests
from coordvlm.utils.errors import ConfigError, CoordVLMError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images (empty files: nothing is opened here) among other things."""
    root = tmp_path / "a [b] *"
    for name in ("10.jpg", "2.PNG", "notes.txt", ".hidden.jpg", "sub/deep.webp", "dir.jpg/x.bmp"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def asked(*args: object, **kwargs: object) -> list[tuple[str, str | None]]:
    return [(r.image.name, r.phrase) for r in read_requests(*args, **kwargs)]  # type: ignore[arg-type]


def test_a_file_a_folder_and_patterns(folder: Path) -> None:
    assert [p.name for p in find_images(str(folder))] == ["10.jpg", "2.PNG"]  # by name, images only, not what is in folders in it
    assert find_images(str(folder / "notes.txt")) == [folder / "notes.txt"]  # named itself: the user means it
    plain = folder.rename(folder.with_name("plain"))
    assert [p.name for p in find_images(str(plain / "*"))] == ["10.jpg", "2.PNG"]
    assert [p.name for p in find_images(str(plain / "**" / "*.[wb]*"))] == ["x.bmp", "deep.webp"]
    assert [p.name for p in find_images(os.path.join(plain, "[0-9].*"))] == ["2.PNG"]


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ("nowhere", "no such file or folder"), ("nowhere/*.jpg", "matches 0 files and no image"),
        ("empty", "the folder has 1 files and no image"),
    ],
)  # fmt: skip
def test_no_image_is_refused(tmp_path: Path, images: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=words):
        find_images(images)


def test_one_phrase_arrives_as_it_is_on_every_image(folder: Path) -> None:
    phrase = "a, 'b' = [2] ${x}"
    assert asked(str(folder), phrase=f" {phrase} ", phrases=None) == [("10.jpg", phrase), ("2.PNG", phrase)]
    assert asked(str(folder), phrase=None, phrases=None) == [("10.jpg", None), ("2.PNG", None)]


def test_every_phrase_of_a_text_file_on_every_image(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "phrases.txt"
    file.write_bytes("\ufeffred cup\r\n\r\n  left, one \n{\"phrase\": 1}\nform\ffeed\n".encode())
    wanted = ["red cup", "left, one", '{"phrase": 1}', "form\ffeed"]
    assert asked(str(folder), phrase=None, phrases=str(file)) == [(image, p) for image in ("10.jpg", "2.PNG") for p in wanted]


def test_lines_that_name_their_images(folder: Path, tmp_path: Path) -> None:
    lines = '{"image": "b.jpg", "phrase": "two", "id": 7}\n\n{"image": "a.jpg", "phrase": " one "}\n{"image": "b.jpg", "phrase": "three"}\n'
    (tmp_path / "asked.jsonl").write_text(lines)
    (tmp_path / "asked.csv").write_text('phrase,image\ntwo,b.jpg\n" one",a.jpg\n"three",b.jpg\n')
    wanted = [(tmp_path / "a.jpg", "one"), (tmp_path / "b.jpg", "two"), (tmp_path / "b.jpg", "three")]
    for name in ("asked.jsonl", "asked.csv"):
        found = read_requests(None, phrase=None, phrases=str(tmp_path / name))
        assert [(r.image, r.phrase) for r in found] == wanted
        found = read_requests(str(folder), phrase=None, phrases=str(tmp_path / name))
        assert {r.image.parent for r in found} == {folder}
    assert found[1].where == f"{tmp_path / 'asked.csv'}:2"
    with pytest.raises(ConfigError, match="images= must be the folder they are relative to"):
        read_requests(str(folder / "10.jpg"), phrase=None, phrases=str(tmp_path / "asked.csv"))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"\n  \n", "must hold at least one phrase"), ("a.txt", b"\xff\xfe\x00", "readable as UTF-8"),
        ("a.jsonl", b"", "must hold at least one phrase"), ("a.jsonl", b'{"phrase": "x"}\n{oops', "a.jsonl:2: must be JSON"),
        ("a.jsonl", b'{"text": "x"}', 'a mapping with a text "phrase"'), ("a.jsonl", b'{"phrase": 3}', 'a text "phrase"'),
        ("a.jsonl", b'{"phrase": " "}', "a.jsonl:1: a phrase must have at least one word"),
        ("a.jsonl", b'{"phrase": "x", "image": 3}', '"image" must be a path'),
        ("a.jsonl", b'{"phrase": "x", "image": "a"}\n{"phrase": "y"}', "a.jsonl:2: either every line names its image or none"),
        ("a.jsonl", b"[" * 100_000, "must be JSON"),
        ("a.csv", b"text\nx\n", 'a column "phrase"'),
        ("a.csv", b"phrase,image\nx,a.jpg\nleft, of it,b.jpg\n", "a.csv:3: must have 2 fields"),
        ("a.csv", b"phrase,image\nx,\n", '"image" must be a path'), ("a.csv", b'phrase\n"open\n', "must be CSV"),
        ("a.csv", b"image,phrase\na.jpg\n", "must have 2 fields"),
    ],
)  # fmt: skip
def test_a_broken_phrases_file_is_named_with_its_line(folder: Path, tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CoordVLMError, match=words):
        read_requests(str(folder), phrase=None, phrases=str(tmp_path / name))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"phrase": "a", "phrases": "b"}, "exclude each other"), ({"phrase": "  "}, "at least one word"), ({"images": None}, "no images"),
        ({"images": None, "phrase": "a"}, "no images to look at"),
        ({"phrases": "nowhere.txt"}, "nowhere.txt: a phrases file must be readable"),
    ],
)  # fmt: skip
def test_nothing_to_ask_is_refused(folder: Path, given: dict[str, str | None], words: str) -> None:
    values: dict[str, str | None] = {"images": str(folder), "phrase": None, "phrases": None, **given}
    with pytest.raises(CoordVLMError, match=words):
        read_requests(values["images"], phrase=values["phrase"], phrases=values["phrases"])
