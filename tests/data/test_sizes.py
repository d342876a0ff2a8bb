from __future__ import annotations

import io
import logging
import time

import pytest
from PIL import Image

from coordvlm.data import sizes
from coordvlm.data.images import displayed_size, open_image
from coordvlm.data.sizes import read_sizes
from coordvlm.utils.errors import DataError
from tests.data.layouts import picture


@pytest.mark.parametrize("orientation", [None, 0, 1, 3, 5, 6, 7, 8])
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_the_header_tells_the_size_of_the_opened_image(tmp_path, suffix, orientation):
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    path = tmp_path / f"x.{suffix}"
    Image.new("RGB", (40, 30)).save(path, exif=exif)
    found = displayed_size(path, where="x")
    assert found == open_image(path, declared=None, max_pixels=10**6).size
    assert open_image(path, declared=found, max_pixels=10**6).size == found


def test_pixels_are_not_read(tmp_path):
    data = io.BytesIO()
    Image.effect_noise((400, 300), 90).save(data, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(data.getvalue()[:2000])
    assert displayed_size(tmp_path / "cut.jpg", where="x") == (400, 300)


def test_errors_take_the_place_of_sizes(tmp_path):
    for i in range(3):
        picture(tmp_path / f"{i}.png", (10 + i, 5))
    (tmp_path / "1.png").write_text("no image")
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    found = list(read_sizes(paths, lambda at: f"line {at}"))
    assert (found[0], found[2]) == ((10, 5), (12, 5))
    assert isinstance(found[1], DataError)
    assert f"line 3: {paths[3]}: the image file must exist" in str(found[3])
    assert list(read_sizes([], str)) == []


def test_slow_files_are_read_side_by_side_and_in_order(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sizes, "displayed_size", lambda path, where: (time.sleep(0.005), (int(path), 1))[1])
    monkeypatch.setattr(sizes, "_REPORT_EVERY_S", 0.05)
    monkeypatch.setattr(sizes, "_TRIAL", 4)
    monkeypatch.setattr(sizes, "_MANY", 100)
    caplog.set_level(logging.INFO, "coordvlm")
    start = time.perf_counter()
    assert [w for w, _ in read_sizes([str(i) for i in range(300)], str)] == list(range(300))  # type: ignore[misc, arg-type]
    assert time.perf_counter() - start < 1  # 1.5 s one after the other
    assert "reading the sizes of 300 images" in caplog.text
    assert "of 300 images in" in caplog.text
