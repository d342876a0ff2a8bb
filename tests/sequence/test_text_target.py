from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from coordvlm.contracts import COORD, END, MARKER, TEXT, Object, Sample
from coordvlm.coords.grid import Digits, Grid
from coordvlm.models.tiny import tiny_tokenizer
from coordvlm.models.tokens import add_coord_tokens, coord_vocab
from coordvlm.sequence.target import Target
from coordvlm.sequence.text_target import JsonCoordTarget, JsonDigitsTarget, JsonUnitTarget, Qwen2BoxTarget
from coordvlm.utils.errors import DataError

QWEN2 = ("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>")
SETTINGS = {"order": "scan", "max_objects": 30, "on_too_many": "drop", "seed": 0}
NASTY = ["dog", 'a "quoted" [cat], {x}', "naïve 猫 🐈", "line\nbreak\t\\", '"bbox_2d": [1, 2, 3, 4]', "(1,2),(3,4)"]


def make(cls: type[Target], coords: Grid | Digits, **more: object) -> Target:
    tokenizer = tiny_tokenizer(600)
    tokens = {"num_bins": coords.num_bins, "coord_token": "<|coord_{k}|>", "markers": more.get("markers", ())}
    existing = add_coord_tokens(tokenizer, **tokens)
    return cls(tokenizer, coord_vocab(tokenizer, **tokens, existing=existing, num_rows=10**6), coords, **SETTINGS, **more)


ALL = {
    "json_coord": lambda: make(JsonCoordTarget, Grid("k999", 1000, 999)),
    "json_digits": lambda: make(JsonDigitsTarget, Digits("qwen1000")),
    "json_digits_pixel": lambda: make(JsonDigitsTarget, Digits("pixel")),
    "json_unit": lambda: make(JsonUnitTarget, Digits("unit")),
    "qwen2_box": lambda: make(Qwen2BoxTarget, Digits("qwen1000"), markers=QWEN2),
}


def sample(descs: list[str]) -> Sample:
    """Box i spans (10 i, 5 i) to (10 i + 20, 5 i + 10) in 200 x 100 px."""
    boxes = [(10.0 * i, 5.0 * i, 10.0 * i + 20, 5.0 * i + 10) for i in range(len(descs))]
    objects = tuple(Object(desc=d, box_xyxy_px=b, annotation_id=i) for i, (d, b) in enumerate(zip(descs, boxes, strict=True)))
    return Sample(id=1, image=Path("unused"), width=200, height=100, objects=objects)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "json_coord",
            '{"objects": [{"desc": "dog", "bbox_2d": [<|coord_0|>, <|coord_0|>, <|coord_100|>, <|coord_100|>]}, '
            '{"desc": "red cat", "bbox_2d": [<|coord_50|>, <|coord_50|>, <|coord_150|>, <|coord_150|>]}]}',
        ),
        ("json_digits", '[{"bbox_2d": [0, 0, 100, 100], "label": "dog"}, {"bbox_2d": [50, 50, 150, 150], "label": "red cat"}]'),
        ("json_digits_pixel", '[{"bbox_2d": [0, 0, 42, 21], "label": "dog"}, {"bbox_2d": [21, 11, 63, 32], "label": "red cat"}]'),
        (
            "json_unit",
            '[{"label": "dog", "x_min": 0.0000, "y_min": 0.0000, "x_max": 0.1000, "y_max": 0.1000}, '
            '{"label": "red cat", "x_min": 0.0500, "y_min": 0.0500, "x_max": 0.1500, "y_max": 0.1500}]',
        ),
        (
            "qwen2_box",
            "<|object_ref_start|>dog<|object_ref_end|><|box_start|>(0,0),(100,100)<|box_end|>"
            "<|object_ref_start|>red cat<|object_ref_end|><|box_start|>(50,50),(150,150)<|box_end|>",
        ),
    ],
)
def test_two_objects_by_hand(name: str, text: str) -> None:
    """999 * 0.05 = 49.95 -> 50; in pixels of a 420 x 210 px image 0.05 is 21 and 10.5 -> 11."""
    target = ALL[name]()
    answer = target.build(sample(["dog", "red cat"]), epoch=0, model_size=(420, 210))
    assert target.text(answer) == text + "<|im_end|>"


@pytest.mark.parametrize("name", list(ALL))
@pytest.mark.parametrize("descs", [[], ["dog"], NASTY], ids=["none", "one", "nasty"])
def test_ids_are_those_of_the_whole_text(name: str, descs: list[str]) -> None:
    """What the model is taught is what the tokenizer gives for the text, nothing else."""
    target = ALL[name]()
    answer = target.build(sample(descs), epoch=0, model_size=(420, 210))
    text = target.text(answer)
    assert target.tokenizer.encode(text, add_special_tokens=False) == answer.ids.tolist()
    numbers = [o.box_xyxy_px for o in answer.objects]
    assert len(answer.slot_bin) == (4 * len(numbers) if name == "json_coord" else 0)
    assert answer.kind[-1] == END
    assert (answer.kind == COORD).sum() == len(answer.slot_bin) == len(answer.slot_value)
    assert (answer.kind == MARKER).sum() == (4 * len(descs) if name == "qwen2_box" else 0)
    assert (answer.kind == TEXT).any() or name == "qwen2_box"
    assert answer.box_prev.shape == (len(answer.slot_bin) // 4,)


@pytest.mark.parametrize("name", ["json_digits", "json_unit"])
def test_digits_are_json(name: str) -> None:
    target = ALL[name]()
    found = json.loads(target.write(NASTY, np.tile([1.0, 2, 3, 4] if name == "json_digits" else [0.1, 0.2, 0.3, 0.4], (len(NASTY), 1))))
    assert [f["label"] for f in found] == NASTY


def test_json_coord_is_json_once_its_tokens_are_numbers() -> None:
    target = ALL["json_coord"]()
    text = target.write(NASTY, np.arange(4 * len(NASTY)).reshape(-1, 4)).replace("<|coord_", "").replace("|>", "")
    assert [o["desc"] for o in json.loads(text)["objects"]] == NASTY
    assert [n for o in json.loads(text)["objects"] for n in o["bbox_2d"]] == list(range(4 * len(NASTY)))


def test_slots_of_json_coord_are_where_its_coordinate_tokens_are() -> None:
    target = ALL["json_coord"]()
    answer = target.build(sample(["dog", "cat"]), epoch=0)
    np.testing.assert_array_equal(np.flatnonzero(answer.kind == COORD), target.index_target(answer.ids)["slot_pos"])
    assert answer.slot_axis.tolist() == [0, 1, 2, 3] * 2
    np.testing.assert_allclose(answer.slot_value[4:], [0.05, 0.05, 0.15, 0.15], atol=1e-7)


@pytest.mark.parametrize("name", list(ALL))
@pytest.mark.parametrize(
    ("desc", "rule"), [(" ", "must not be empty"), ("a<|im_end|>b", "control tokens"), ("<|box_end|>", "control tokens")]
)
def test_what_cannot_be_described(name: str, desc: str, rule: str) -> None:
    with pytest.raises(DataError, match=rule) as error:
        ALL[name]().build(sample(["dog", desc]), epoch=0, model_size=(28, 28))
    assert "annotation 1" in str(error.value)


def test_small_boxes_are_widened_in_every_convention() -> None:
    thin = Sample(id=1, image=Path("x"), width=10_000, height=10_000, objects=(Object("dog", (5000.0, 9999.9, 5000.1, 10_000.0)),))
    digits = ALL["json_digits"]()
    assert digits.text(digits.build(thin, epoch=0)) == '[{"bbox_2d": [500, 999, 501, 1000], "label": "dog"}]<|im_end|>'
    pixel = ALL["json_digits_pixel"]()
    assert '"bbox_2d": [14, 27, 15, 28]' in pixel.text(pixel.build(thin, epoch=0, model_size=(28, 28)))
    unit = ALL["json_unit"]()
    assert '"x_min": 0.5000, "y_min": 0.9999, "x_max": 0.5001, "y_max": 1.0000' in unit.text(unit.build(thin, epoch=0))
