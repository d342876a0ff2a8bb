import json
from dataclasses import replace
from pathlib import Path

import pytest

from coordvlm.contracts import Contract, ResizeRule
from coordvlm.utils.errors import ContractError

CONTRACT = Contract(
    coords="k999", num_bins=1000, scale=999, format="objects", order="scan", prompt="Describe.", class_list=False,
    markers=("<obj_start>", "<obj_end>"), coord_token="<|coord_{k}|>", end_token="<|im_end|>",
    resize=ResizeRule("fixed", 16, 2, size=(96, 96)),
)


def test_it_survives_json(tmp_path: Path) -> None:
    file = tmp_path / "contract.json"
    file.write_text(json.dumps(CONTRACT.to_dict()))
    assert Contract.load(file) == CONTRACT


def test_the_hash_changes_with_every_field() -> None:
    changed = [replace(CONTRACT, scale=1000), replace(CONTRACT, order="size"), replace(CONTRACT, markers=()),
               replace(CONTRACT, resize=replace(CONTRACT.resize, size=(96, 64)))]
    assert len({c.hash() for c in (CONTRACT, *changed)}) == 5


def test_a_contradiction_names_the_field_and_both_values() -> None:
    with pytest.raises(ContractError, match=r"scale: checkpoint has 1000, config has 999"):
        replace(CONTRACT, scale=1000).require_equal(CONTRACT, mine="checkpoint", theirs="config")
    CONTRACT.require_equal(CONTRACT, mine="a", theirs="b")


def test_a_warm_start_asks_for_equal_tokens_only() -> None:
    other = replace(CONTRACT, prompt="Locate: {phrase}", order="size", format="json_coord", resize=replace(CONTRACT.resize, size=(64, 64)))
    other.require_same_tokens(CONTRACT, mine="a", theirs="b")
    for changed in (replace(other, scale=1000), replace(other, markers=()), replace(other, coord_token="<{k}>")):
        with pytest.raises(ContractError, match=r"a has .*, b has"):
            changed.require_same_tokens(CONTRACT, mine="a", theirs="b")


@pytest.mark.parametrize("broken", [{"scale": None}, {"bins": 3}])
def test_missing_and_unknown_fields_are_named(broken: dict[str, object]) -> None:
    data = CONTRACT.to_dict()
    for key, value in broken.items():
        if value is None:
            del data[key]
        else:
            data[key] = value
    with pytest.raises(ContractError, match=next(iter(broken))):
        Contract.from_dict(data)


def test_an_unreadable_file_is_a_contract_error(tmp_path: Path) -> None:
    (tmp_path / "contract.json").write_text("{")
    with pytest.raises(ContractError, match=r"contract\.json"):
        Contract.load(tmp_path / "contract.json")
    with pytest.raises(ContractError, match=r"none\.json"):
        Contract.load(tmp_path / "none.json")
