from __future__ import annotations

from dataclasses import replace
from typing import Any

from coordvlm.analysis.groups import Group
from coordvlm.analysis.notes import notes
from tests.analysis.test_groups import run


def group(name: str, seeds: int, **record: Any) -> Group:
    runs = [run(f"{name}{s}", seed=s) for s in range(seeds)]
    return Group(f"loss={name}", name, tuple(replace(r, record={**r.record, "hostname": "box", "steps": 100, **record}) for r in runs))


def found(*groups: Group, **changes: Any) -> str:
    return "\n".join(notes(groups, **{"absent": (), "contracts": {}, **changes}))


def test_a_fair_comparison_needs_no_notes() -> None:
    assert found(group("a", 3), group("b", 3)) == ""


def test_few_or_unequal_seeds_come_first() -> None:
    text = found(group("a", 1), group("b", 2), group("c", 3))
    assert text.startswith("One seed only of a:")
    assert "Two seeds only of b" in text
    assert "do not have the same seeds" in text


def test_unequal_budgets_and_code_are_named() -> None:
    git = {"git": {"commit": "aaaa", "dirty": True}}
    text = found(group("a", 3, steps=100, **git), group("b", 3, steps=200, git={"commit": "bbbb"}, hostname="other"))
    assert "The training budgets differ in steps (a 100; b 200)." in text
    assert "2 different commits: aaaa, bbbb" in text
    assert "uncommitted" in text
    assert "2 machines" in text


def test_optimistic_data_contracts_and_gaps_are_named() -> None:
    first = group("a", 3, selected={"on": "test"}, resumed_from="x")
    text = found(first, group("b", 3), contracts={"coords": ["k999", "k1000"]}, absent=["px"])
    assert "Checkpoints were chosen on test" in text
    assert "contracts differ in coords" in text
    assert "resumed" in text
    assert "not compared: px" in text
