from __future__ import annotations

import numpy as np
import pytest

from coordvlm.data.checks import Fault
from coordvlm.data.convention import BoxConvention
from coordvlm.utils.errors import ConfigError, DataError

WH = np.asarray([[200.0, 100.0]])


def px(numbers: list[float], boxes: str, box_format: str, **options: bool) -> list[float]:
    found: list[float] = BoxConvention(boxes, box_format, **options).to_xyxy_px(np.asarray([numbers], dtype=float), WH)[0].tolist()
    return found


@pytest.mark.parametrize(("boxes", "box_format", "numbers"), [
    ("pixel", "xyxy", [20, 10, 60, 50]), ("pixel", "xywh", [20, 10, 40, 40]), ("pixel", "cxcywh", [40, 30, 40, 40]),
    ("norm", "xyxy", [0.1, 0.1, 0.3, 0.5]), ("norm", "cxcywh", [0.2, 0.3, 0.2, 0.4]), ("norm1000", "xyxy", [100, 100, 300, 500]),
    ("norm999", "xywh", [99.9, 99.9, 199.8, 399.6]),
])
def test_one_box_in_every_convention(boxes: str, box_format: str, numbers: list[float]) -> None:
    assert px(numbers, boxes, box_format) == pytest.approx([20, 10, 60, 50], abs=1e-9)


def test_the_whole_image_counted_from_one() -> None:
    assert px([1, 1, 200, 100], "pixel", "xyxy", one_based=True) == [0, 0, 200, 100]
    assert px([0, 0, 999, 999], "norm999", "xyxy") == [0, 0, 200, 100]


def check(boxes: str, rows: list[list[float]]) -> None:
    BoxConvention(boxes, "xyxy").check_range(np.asarray(rows, dtype=float).reshape(-1, 4), lambda at: f"f:{at + 1}")


def test_pixels_declared_as_shares_are_refused() -> None:
    with pytest.raises(DataError, match=r"f:2: boxes are declared in 0\.\.1 \(data\.source\.boxes=norm\).*1 of 2 are.*pixel.*\[5\.0, 6\.0"):
        check("norm", [[0.1, 0.1, 0.5, 1.4], [5, 6, 50, 60]])
    with pytest.raises(DataError, match=r"0\.\.1000 .*norm1000"):
        check("norm1000", [[0, 0, 1800, 900]])
    check("norm", [[0, 0, 1.02, 1]])  # out of frame, but shares


@pytest.mark.parametrize("boxes", ["pixel", "norm1000", "norm999"])
def test_shares_declared_as_something_else_are_refused(boxes: str) -> None:
    with pytest.raises(DataError, match=r"f:2: .*no number of the file is above 1; declare data\.source\.boxes=norm"):
        check(boxes, [[0, 0, 0, 0], [0.1, 0.2, 0.9, 1.0]])
    check(boxes, [[0, 0, 0.5, 1], [0, 0, 3, 4]])
    check(boxes, [[np.nan] * 4])
    check(boxes, [])


def test_a_wrong_order_of_numbers_is_refused_as_a_whole() -> None:
    convention = BoxConvention("pixel", "xywh")
    faults = np.asarray([0, Fault.OUT_OF_FRAME, Fault.OUT_OF_FRAME, Fault.INVERTED], dtype=np.uint8)
    raw = np.arange(16.0).reshape(4, 4)
    message = r"f:2: 3 of 4 boxes are inverted or out of frame as declared .*boxes=pixel, .*box_format=xywh.*\[4\.0"
    with pytest.raises(DataError, match=message):
        convention.check_share(faults, raw, lambda at: f"f:{at + 1}")
    convention.check_share(faults[:3], raw[:3], lambda at: "")  # too few to tell
    convention.check_share(np.asarray([0, 0, 8, 8], dtype=np.uint8), raw, lambda at: "")


def test_the_declaration_is_one_of_few() -> None:
    message = r"data\.source\.boxes must be one of pixel, norm, norm999, norm1000, got 'norm100'; nearest: norm1000"
    with pytest.raises(ConfigError, match=message):
        BoxConvention("norm100", "xyxy")
    with pytest.raises(ConfigError, match=r"box_format must be one of xyxy, xywh, cxcywh, got None"):
        BoxConvention("norm", None)  # type: ignore[arg-type]


def test_a_refusal_names_the_declaration_that_fits() -> None:
    xyxy = np.asarray([[120.0, 20, 190, 95], [10, 50, 180, 99], [150, 5, 199, 60], [90, 40, 170, 80]])
    wh = np.repeat(WH, 4, 0)
    xywh = BoxConvention("pixel", "xywh")
    assert xywh.fitting(xyxy, wh) == ["data.source.boxes=pixel data.source.box_format=xyxy"]
    faults = np.full(4, Fault.OUT_OF_FRAME, dtype=np.uint8)
    with pytest.raises(DataError, match=r"4 of 4 .*; the numbers fit data\.source\.boxes=pixel data\.source\.box_format=xyxy: got"):
        xywh.check_share(faults, xyxy, lambda at: "f", wh_A2=wh)
    thousandths = xyxy * [5, 10, 5, 10]
    assert BoxConvention("pixel", "xyxy").fitting(thousandths, wh) == ["data.source.boxes=norm1000 data.source.box_format=xyxy"]
    assert xywh.fitting(np.asarray([[900.0, 900, 950, 950]] * 4) * 40, wh) == []
