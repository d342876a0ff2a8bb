from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from coordvlm.contracts import ResizeRule
from coordvlm.data.images import ImageReader, open_image, resize_and_patchify, target_size
from coordvlm.utils.errors import ConfigError, DataError

LIMIT = 10_000


def noise(width=40, height=30, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def reopen(path, declared=(40, 30), limit=LIMIT):
    return open_image(path, declared=declared, max_pixels=limit)


def test_an_rgb_image_is_itself(tmp_path):
    noise().save(tmp_path / "x.png")
    image = reopen(tmp_path / "x.png")
    assert (image.mode, image.size) == ("RGB", (40, 30))
    assert image.tobytes() == noise().tobytes() == open_image(noise(), declared=(40, 30), max_pixels=LIMIT).tobytes()


def test_grey_becomes_three_equal_channels(tmp_path):
    grey = noise().convert("L")
    grey.save(tmp_path / "x.png")
    pixels = np.asarray(reopen(tmp_path / "x.png"))
    assert (pixels == np.asarray(grey)[..., None]).all()


def test_transparency_is_laid_on_white(tmp_path):
    pixels = np.zeros((30, 40, 4), np.uint8)
    pixels[:, :, 0], pixels[:, 20:, 3] = 200, 255
    pixels[0, 0, 3] = 128
    Image.fromarray(pixels, "RGBA").save(tmp_path / "x.png")
    out = np.asarray(reopen(tmp_path / "x.png"))
    assert out[5, 5].tolist() == [255, 255, 255]
    assert out[5, 30].tolist() == [200, 0, 0]
    assert np.abs(out[0, 0].astype(int) - [227, 127, 127]).max() <= 1


def test_palette_with_a_transparent_entry(tmp_path):
    image = Image.new("P", (40, 30), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(1, (0, 0, 20, 30))
    image.save(tmp_path / "x.png", transparency=0)
    out = np.asarray(reopen(tmp_path / "x.png"))
    assert out[0, 0].tolist() == [200, 100, 50]
    assert out[0, 30].tolist() == [255, 255, 255]


def test_cmyk_jpeg(tmp_path):
    Image.new("RGB", (40, 30), (250, 10, 10)).convert("CMYK").save(tmp_path / "x.jpg", quality=95)
    assert np.abs(np.asarray(reopen(tmp_path / "x.jpg"))[15, 20].astype(int) - [250, 10, 10]).max() < 12


def test_sixteen_bits_are_scaled_not_cut_off(tmp_path):
    values = np.linspace(0, 65535, 1200).astype(np.uint16).reshape(30, 40)
    Image.fromarray(values).save(tmp_path / "x.png")
    out = np.asarray(reopen(tmp_path / "x.png"))[..., 0].astype(float)
    assert np.abs(out - values / 257).max() <= 0.51


@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
def test_exif_orientation_is_applied_when_the_declared_size_fits(tmp_path, orientation):
    upright = noise()
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # Image.Transpose that the tag undoes
    stored, exif = upright.transpose(Image.Transpose(undo)), Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "x.png", exif=exif)
    assert reopen(tmp_path / "x.png").tobytes() == upright.tobytes()
    if orientation >= 5:
        assert reopen(tmp_path / "x.png", declared=(30, 40)).tobytes() == stored.tobytes()


def test_a_square_image_with_a_rotation_tag_is_turned(tmp_path):
    stored, exif = noise(30, 30), Image.Exif()
    exif[0x0112] = 6
    stored.save(tmp_path / "x.png", exif=exif)
    assert reopen(tmp_path / "x.png", declared=(30, 30)).tobytes() == stored.transpose(Image.Transpose.ROTATE_270).tobytes()


def test_a_size_unlike_the_declared_one_is_refused(tmp_path):
    noise().save(tmp_path / "x.png")
    with pytest.raises(DataError, match=r"x\.png.*annotated one, 41 x 30.*'40 x 30'"):
        reopen(tmp_path / "x.png", declared=(41, 30))
    with pytest.raises(DataError, match="annotated one, 30 x 40"):
        reopen(tmp_path / "x.png", declared=(30, 40))


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"gone\.jpg.*must exist"):
        reopen(tmp_path / "gone.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_truncated_file(tmp_path, suffix):
    buffer = io.BytesIO()
    noise().save(buffer, {"jpg": "JPEG", "png": "PNG"}[suffix])
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(DataError, match=rf"cut\.{suffix}.*readable and complete"):
        reopen(path)


def test_a_file_that_is_no_image(tmp_path):
    (tmp_path / "x.jpg").write_text("hello")
    with pytest.raises(DataError, match=r"x\.jpg.*readable and complete.*cannot identify"):
        reopen(tmp_path / "x.jpg")


def test_the_pixel_limit_holds_before_decoding(tmp_path):
    buffer = io.BytesIO()
    noise().save(buffer, "PNG")
    (tmp_path / "big.png").write_bytes(buffer.getvalue()[:200])  # header only: decoding would say something else
    with pytest.raises(DataError, match=r"big\.png.*more than 1000 pixels.*'40 x 30'"):
        reopen(tmp_path / "big.png", limit=1000)


def test_patches_are_those_of_the_library():
    pytest.importorskip("transformers")
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    rule = ResizeRule("smart", patch=8, merge=2, min_pixels=16 * 16 * 4, max_pixels=64 * 64)
    processor = Qwen2VLImageProcessorPil(patch_size=8, merge_size=2, min_pixels=rule.min_pixels, max_pixels=rule.max_pixels)
    for size in ((96, 96), (50, 37), (64, 32), (20, 90)):
        image = noise(*size, seed=size[0])
        theirs = processor(images=image, return_tensors="np")
        pixels, grid = resize_and_patchify(image, target_size(rule, *size), 8, 2)
        assert tuple(theirs["image_grid_thw"][0]) == grid
        mean, std = (np.array(v)[:, None, None] for v in (processor.image_mean, processor.image_std))
        ours = np.repeat(((pixels / 255 - mean) / std)[:, :, None], 2, axis=2).reshape(len(pixels), -1)
        assert np.abs(ours - theirs["pixel_values"]).max() < 1e-5


def test_a_patch_by_hand():
    image = noise(16, 8)
    pixels, grid = resize_and_patchify(image, (16, 8), 2, 2)
    assert grid == (1, 4, 8)
    array = np.asarray(image)
    # block (0, 1) starts at patch 4; inside it patch 3 is the lower right one: rows 2-3, columns 6-7
    assert (pixels[4 + 3] == array[2:4, 6:8].transpose(2, 0, 1)).all()


def test_target_sizes():
    assert target_size(ResizeRule("smart", 14, 2, min_pixels=3136, max_pixels=1003520), 640, 428) == (644, 420)
    assert target_size(ResizeRule("fixed", 16, 2, size=(320, 224)), 640, 480) == (320, 224)
    assert target_size(ResizeRule("square", 8, 2, size=(96, 96)), 1, 5) == (96, 96)


@pytest.mark.parametrize(("rule", "message"), [
    (ResizeRule("smart", 14, 2), "min_pixels <= max_pixels"),
    (ResizeRule("fixed", 16, 2, size=(100, 96)), "multiples of 32"),
    (ResizeRule("fixed", 16, 2), "needs a size"),
    (ResizeRule("square", 8, 2, size=(96, 64)), "equal sides"),
    (ResizeRule("stretch", 8, 2), "'stretch'"),
])
def test_broken_rules_are_refused(rule, message):
    with pytest.raises(ConfigError, match=message):
        target_size(rule, 40, 30)


def test_the_reader_names_file_and_sample(tmp_path):
    reader = ImageReader(ResizeRule("smart", 8, 2, min_pixels=256, max_pixels=4096), LIMIT)
    noise().save(tmp_path / "x.png")
    assert reader(tmp_path / "x.png", 40, 30, "image 5")[1] == (1, 4, 4)
    Image.new("RGB", (402, 2)).save(tmp_path / "thin.png")
    with pytest.raises(DataError, match=r"thin\.png \(image 5\).*at most 200 times"):
        reader(tmp_path / "thin.png", 402, 2, "image 5")


def test_a_turned_tiff_keeps_its_frame(tmp_path):
    """PIL turns TIFF files itself; turning them again, or handing out a frame unlike the declared one, would misplace every box."""
    exif = Image.Exif()
    exif[0x0112] = 6
    noise().save(tmp_path / "x.tif", exif=exif)
    turned = noise().transpose(Image.Transpose.ROTATE_270)
    for declared in ((30, 40), None):
        assert reopen(tmp_path / "x.tif", declared=declared).tobytes() == turned.tobytes()
    with pytest.raises(DataError, match="size must be the annotated one, 40 x 30"):
        reopen(tmp_path / "x.tif", declared=(40, 30))
