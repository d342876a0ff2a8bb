"""Checks of image files and of leaks between splits, on files written by the test."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from coordvlm.analysis.audit import audit_views, views_of
from coordvlm.analysis.checks_images import check_images, chosen_images
from coordvlm.analysis.checks_splits import check_splits
from coordvlm.analysis.checks_view import SplitView
from coordvlm.analysis.image_facts import ImageFacts, difference_hash, near_pairs, read_facts, same_content
from coordvlm.reports.audit_data import Finding, Level
from tests.analysis.views import SETTINGS, found, settings, view
from tests.data.phrase_layouts import embed, file_name

SIZE = (64, 48)


def photo(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """Smooth blobs, different for each seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def write(folder: Path, *seeds: int, name: str = "{}.png") -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / name.format(seed) for seed in seeds]
    for seed, file in zip(seeds, files, strict=True):
        photo(seed).save(file)
    return files


def of_files(files: list[Path], name: str = "train") -> SplitView:
    return view(size=SIZE, num_images=len(files), files=files, name=name)


def facts_of(made: SplitView) -> ImageFacts:
    return read_facts(made, np.arange(len(made.files)), max_pixels=10**6)


def checked(made: SplitView) -> list[Finding]:
    return check_images(made, facts_of(made), same_content(made.files), settings(max_pixels=10**6))


def leaks(*views: SplitView) -> list[Finding]:
    places = [(v.name, i) for v in views for i in range(len(v.files))]
    groups = [[places[k] for k in group] for group in same_content([f for v in views for f in v.files])]
    return check_splits(views, {v.name: facts_of(v) for v in views}, groups, SETTINGS)


def levels(findings: list[Finding]) -> dict[str, Level]:
    return {f.check: f.level for f in findings if f.level > Level.OK}


def test_good_images_pass(tmp_path: Path) -> None:
    findings = checked(of_files(write(tmp_path, 1, 2, 3)))
    assert levels(findings) == {}
    assert found(findings, "decoded").shown == "3 of 3"


def test_each_fault_of_a_file_has_its_own_line(tmp_path: Path) -> None:
    files = write(tmp_path, *range(8))
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-200])  # the header is whole, the pixels are not
    files[2].write_bytes(b"no image")
    photo(3, (48, 48)).save(files[3])
    turned = Image.Exif()
    turned[0x0112] = 6
    files[4] = tmp_path / "turned.jpg"
    photo(4).save(files[4], exif=turned)  # stored 64 x 48, annotated like that, shown 48 x 64
    files[5] = tmp_path / "upright.jpg"
    photo(5, (48, 64)).save(files[5], exif=turned)  # shown as annotated
    photo(6).convert("L").save(files[6])
    findings = checked(of_files(files))
    assert found(findings, "missing").examples[0].value == str(files[0])
    assert {e.where for e in found(findings, "unreadable").examples} == {"train image 1", "train image 2"}
    assert found(findings, "other_size").examples[0].value == "48 x 48 px, annotated 64 x 48"
    assert found(findings, "other_size").value == 1
    assert [e.where for e in found(findings, "exif").examples] == ["train image 4", "train image 5"]
    assert [e.where for e in found(findings, "exif_ignored").examples] == ["train image 4"]
    assert found(findings, "modes").shown == "L 1"
    assert {found(findings, n).level for n in ("missing", "unreadable", "other_size")} == {Level.FAIL}


def test_a_huge_image_is_not_decoded(tmp_path: Path) -> None:
    Image.new("1", (2000, 600)).save(tmp_path / "a.png")
    made = replace(of_files([tmp_path / "a.png"]), image_wh=np.array([[2000.0, 600.0]]))
    findings = checked(made)
    assert levels(findings) == {"huge": Level.FAIL, "modes": Level.NOTE}
    assert found(findings, "decoded").shown == "0 of 1"


def test_images_in_memory_are_looked_at_too() -> None:
    made = view(size=SIZE, num_images=2)
    assert {f.check for f in checked(made)} == {"files", "unreadable"}


def test_the_same_images_are_drawn_again() -> None:
    made = view(num_images=50)
    a, b = (chosen_images(made, settings(num_images=10, seed=s)) for s in (1, 1))
    assert a.tolist() == b.tolist() == sorted(set(a.tolist()))
    assert len(a) == 10
    assert len(chosen_images(made, settings(num_images=10, full=True))) == 50


def test_equal_bytes_are_found_whatever_the_name(tmp_path: Path) -> None:
    files = write(tmp_path, 1, 2, 3)
    copy = tmp_path / "copy.png"
    shutil.copy(files[1], copy)
    twin = tmp_path / "twin.bin"  # of the same size and with the same end
    data = bytearray(8192)
    (tmp_path / "zero.bin").write_bytes(data)
    data[0] = 1
    twin.write_bytes(data)
    every = [*files, copy, twin, tmp_path / "zero.bin", None, tmp_path / "gone.png"]
    assert same_content(every) == [[1, 3]]


def bits(a: Image.Image, b: Image.Image) -> int:
    return (difference_hash(a) ^ difference_hash(b)).bit_count()


@pytest.mark.parametrize("seed", range(5))
def test_a_hash_survives_what_saving_again_does_and_tells_images_apart(seed: int) -> None:
    image = photo(seed, (320, 240))
    same = image.resize((256, 192)).filter(ImageFilter.GaussianBlur(1))
    other = photo(seed + 100, (320, 240))
    assert bits(image, same) <= 4
    assert bits(image, other) > 12


def test_near_duplicates_are_pairs_that_look_alike(tmp_path: Path) -> None:
    files = write(tmp_path, *range(6))
    photo(2).save(tmp_path / "again.jpg", quality=80)
    Image.new("RGB", SIZE, (9, 9, 9)).save(tmp_path / "flat.png")
    Image.new("RGB", SIZE, (200, 9, 9)).save(tmp_path / "red.png")
    made = of_files([*files, tmp_path / "again.jpg", tmp_path / "flat.png", tmp_path / "red.png"])
    facts = facts_of(made)
    assert [(a, b) for a, b in near_pairs(facts, facts, bits=4, grey=6.0) if a < b] == [(2, 6)]
    findings = checked(made)
    assert [e.where for e in found(findings, "look_alike").examples] == ["train image 6"]
    assert found(findings, "identical").value == 0


def test_splits_of_different_images_pass(tmp_path: Path) -> None:
    findings = leaks(of_files(write(tmp_path / "a", 1, 2)), of_files(write(tmp_path / "b", 3, 4), "val"))
    assert levels(findings) == {}
    assert {f.split for f in findings} == {"train/val"}


def test_one_file_in_two_splits_fails(tmp_path: Path) -> None:
    files = write(tmp_path, 1, 2, 3)
    findings = leaks(of_files(files[:2]), of_files(files[1:], "val"))
    assert levels(findings) == {"same_file": Level.FAIL, "same_content": Level.FAIL}
    leak = found(findings, "same_file")
    assert (leak.value, leak.examples[0].where, leak.examples[0].value) == (1, "val image 0", "as train image 1")


def test_a_copy_under_another_name_fails(tmp_path: Path) -> None:
    files = write(tmp_path / "a", 1, 2)
    (tmp_path / "b").mkdir()
    shutil.copy(files[1], tmp_path / "b" / "other.png")
    assert levels(leaks(of_files(files), of_files([tmp_path / "b" / "other.png"], "val"))) == {"same_content": Level.FAIL}


def test_cocos_number_tells_even_without_files(tmp_path: Path) -> None:
    train = of_files([tmp_path / "train2014" / "COCO_train2014_000000581857.jpg"])
    val = of_files([tmp_path / "val2017" / "000000581857.jpg"], "val")
    assert levels(leaks(train, val)) == {"same_coco_image": Level.FAIL}


def test_an_equal_name_in_another_folder_is_judged_by_the_content(tmp_path: Path) -> None:
    train, val = write(tmp_path / "a", 1, 2, name="{}.png"), write(tmp_path / "b", 3, name="1.png")
    assert levels(leaks(of_files(train), of_files(val, "val"))) == {"same_name": Level.NOTE}
    val[0].unlink()
    assert levels(leaks(of_files(train), of_files(val, "val"))) == {"same_name": Level.FAIL}


def test_pictures_that_look_alike_across_splits_are_a_warning(tmp_path: Path) -> None:
    train = write(tmp_path / "a", 1, 2)
    (tmp_path / "b").mkdir()
    photo(2).save(tmp_path / "b" / "x.jpg", quality=85)
    assert levels(leaks(of_files(train), of_files([tmp_path / "b" / "x.jpg"], "val"))) == {"looks_alike": Level.WARN}


def test_what_is_only_scored_may_overlap_with_a_warning(tmp_path: Path) -> None:
    files = write(tmp_path, 1, 2)
    findings = leaks(of_files(files[:1], "val"), of_files(files[:1], "test"), of_files(files[1:]))
    assert {(f.split, f.check): f.level for f in findings if f.level > Level.OK} == {
        ("val/test", "same_file"): Level.WARN, ("val/test", "same_content"): Level.WARN,
    }
    assert {f.split for f in findings} == {"train/val", "train/test", "val/test"}


def test_what_is_made_up_is_not_compared() -> None:
    assert leaks(view(num_images=2, generated=True), view(num_images=2, generated=True, name="val")) == []


def test_images_held_by_the_file_are_compared_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = embed(monkeypatch, tmp_path, train=[("a.png", 1), (None, 2), ("b.png", 3), (file_name(7), 4)],
                   val=[("c.png", 1), ("b.png", 5), (file_name(7), 6)])
    views, problems = views_of(source, SETTINGS, on_error="raise")
    audit = audit_views(views, SETTINGS, before=problems, timer=lambda name: nullcontext())
    assert {f.check: f.value for f in audit.findings if f.level is Level.FAIL} == {"same_coco_image": 1, "same_content": 1}
    assert "row 0" in found(audit.findings, "same_content", "train/val").examples[0].where
