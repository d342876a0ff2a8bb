from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from coordvlm.utils.errors import ConfigError
from coordvlm.utils.targets import validate_targets

HERE = "tests.utils.test_targets"


class Thing:
    def __init__(self, width: int, *, depth: int, name: str = "x") -> None:
        raise AssertionError("must not be built")


class Child(Thing):
    def __init__(self, extra: int = 0, **kwargs: Any) -> None:
        raise AssertionError("must not be built")


class Inherits(Thing):
    pass


def function(a: int, /, b: int, *rest: int) -> None:
    raise AssertionError("must not be called")


def test_what_fits_is_counted_and_not_built() -> None:
    good = {"_target_": f"{HERE}.Thing", "width": 1, "depth": 2}
    tree = {
        "a": {**good, "_convert_": "all", "_recursive_": False},
        "list": [{"b": {"_target_": f"{HERE}.Thing", "_partial_": True, "name": {"_target_": f"{HERE}.Child", "anything": 1}}}],
        "c": {"_target_": f"{HERE}.function", "_args_": [1, 2, 3]},
        "d": {"_target_": f"{HERE}.Thing", "_args_": [1], "depth": 1},
        "e": {"_target_": f"{HERE}.Inherits", "width": 1, "depth": 2},
        "f": {"_target_": "builtins.dict", "x": 1},
        "plain": {"x": 1},
    }
    assert validate_targets(OmegaConf.create(tree)) == 7
    assert validate_targets(tree) == 7


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": f"{HERE}.Thing", "width": 1, "depth": 2, "nam": "a"}, f"m.x.nam: {HERE}.Thing takes no such argument; nearest: name"),
        ({"_target_": f"{HERE}.Inherits", "width": 1, "dept": 2, "depth": 1}, "m.x.dept: .* nearest: depth"),
        ({"_target_": f"{HERE}.Thing", "width": 1}, f"m.x: {HERE}.Thing needs depth"),
        ({"_target_": f"{HERE}.Thing", "_partial_": True, "wide": 1}, "m.x.wide"),
        ({"_target_": f"{HERE}.Thing", "_args_": [1], "width": 1, "depth": 1}, "m.x.width: given twice"),
        ({"_target_": f"{HERE}.Thing", "_args_": [1, 2], "depth": 1}, "m.x._args_: .* takes 1 positional arguments, got 2"),
        ({"_target_": f"{HERE}.Thing", "_partal_": True}, "m.x._partal_: no such instruction; nearest: _partial_"),
        ({"_target_": f"{HERE}.Think"}, "m.x._target_: .* has no Think; nearest: Thing"),
        ({"_target_": "coordvlm.nowhere.Thing"}, "m.x._target_: coordvlm has no nowhere"),
        ({"_target_": "no_such_package.Thing"}, "m.x._target_: no module named no_such_package"),
        ({"_target_": f"{HERE}.HERE"}, "not a class or function"),
        ({"_target_": 3}, "m.x._target_: 3 is not the dotted name"),
    ],
)
def test_what_does_not_fit_is_named_with_its_path(node: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate_targets({"m": {"x": node}})


def test_all_problems_are_told_at_once() -> None:
    bad = {"_target_": f"{HERE}.Thing", "width": 1}
    with pytest.raises(ConfigError) as caught:
        validate_targets({"a": bad, "b": [bad]})
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["a", "b[0]"]


def test_what_the_code_supplies_is_not_missing() -> None:
    bad = {"_target_": f"{HERE}.Thing", "width": 1}
    assert validate_targets({"a": bad, "b": {"c": bad, "d": bad}}, {"a": {"depth"}, "b.*": {"depth"}}) == 3
    with pytest.raises(ConfigError, match=r"b\.c: .* needs depth"):
        validate_targets({"a": bad, "b": {"c": bad}}, {"a": {"depth"}, "b": {"depth"}})


def test_lightnings_wrapped_trainer_is_read_through() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.max_step: lightning\.Trainer takes no such argument; nearest: max_steps"):
        validate_targets({"trainer": {"_target_": "lightning.Trainer", "max_step": 1}})
