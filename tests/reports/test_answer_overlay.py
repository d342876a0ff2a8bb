"""The caption holds any phrase; the boxes stay where they are on the image."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from coordvlm.reports.answer_overlay import _wrapped, draw_answer
from coordvlm.reports.overlay import RED, Box, draw_overlay, font_of

WHITE = Image.new("RGB", (96, 64), "white")


@pytest.mark.parametrize("asked", ["", "a cup", "long " * 200, "x" * 900, "象 é \u202e \x00 \ud800", "a\nb\tc"])
def test_the_picture_is_the_overlay_under_its_caption(asked: str) -> None:
    boxes = [Box((10, 10, 50, 40), "0.50")]
    plain, drawn = draw_overlay(WHITE, (), boxes), draw_answer(WHITE, boxes, asked=asked, found="")
    assert drawn.width == plain.width
    assert plain.height < drawn.height <= plain.height + 100
    below = np.asarray(drawn)[drawn.height - plain.height :]
    np.testing.assert_array_equal(below, np.asarray(plain))
    assert (below == RED).all(-1).any()


@pytest.mark.parametrize("text", ["the red circle left of the blue square", "x" * 500, "a " * 400])
def test_lines_fit_and_what_is_cut_says_so(text: str) -> None:
    font = font_of((384, 384))
    lines = _wrapped(text, font, 150)
    assert len(lines) <= 3
    assert all(font.getlength(line) <= 150 for line in lines)
    whole = "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert whole != lines[-1].endswith("...")
